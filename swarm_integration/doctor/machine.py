"""What this machine has: cores, memory, room on the disk, and where may be written.

Looks and never tries: nothing is written, so an answer about a folder is what the system says
of its permissions.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from scheduler.backends.llama_memory import available_bytes
from scheduler.server_command import default_threads, physical_cores
from swarm_integration.doctor.findings import Finding, Level, Repair

FOLDERS = {
    "runs": "--run-dir DIR, to write a run elsewhere",
    "models": "swarm-inference make-model --output FILE, to write elsewhere",
}

_MIB = 1 << 20
_LEAST_BYTES = 64 * _MIB
_BYTES_PER_ANSWER = 12 << 10
"""What an answer takes in journal, log and transcript together; a high guess.

The short answers of the fake backend took 2.4 kB each.
"""


def check_threads(configured: int | None, source: str) -> Finding:
    """Return how many threads a model gets here.

    Args:
        configured: What is configured, or None for the default.
        source: Which key says so.
    """
    cores, default = physical_cores(), default_threads()
    facts = {"physical_cores": cores, "default": default, "configured": configured}
    if configured is not None and configured > cores:
        says = (
            f"{source} is {configured}, but there are {cores} physical cores: llama.cpp's threads "
            "wait for each other by spinning, and hold each other up"
        )
        return Finding("threads", "warning", says, f"set {source} to {default}", facts)
    chosen = f"{source} is {configured}" if configured else f"a model gets {default} of them"
    return Finding("threads", "ok", f"{cores} physical cores; {chosen}", facts=facts)


def check_memory() -> Finding:
    """Return how much memory can still be taken."""
    free = available_bytes()
    if free is None:
        return Finding("memory", "ok", "this system does not say how much is free")
    return Finding(
        "memory", "ok", f"{free // _MIB:,} MiB are free", facts={"available_bytes": free}
    )


def check_folders(base: Path) -> Iterator[Finding]:
    """Yield whether runs and models can be written below `base`."""
    for name, otherwise in FOLDERS.items():
        folder = base / name
        check, facts = f"folder {name}", {"path": str(folder.absolute())}
        if folder.is_dir():
            if os.access(folder, os.W_OK | os.X_OK):
                yield Finding(check, "ok", f"{folder.absolute()} can be written", facts=facts)
            else:
                says = f"{folder.absolute()} can't be written by this user"
                yield Finding(check, "error", says, f"chmod u+rwx {name}; or {otherwise}", facts)
        elif folder.exists() or folder.is_symlink():
            says = f"{folder.absolute()} is not a folder"
            yield Finding(check, "error", says, f"mv {name} {name}.old; or {otherwise}", facts)
        elif os.access(base, os.W_OK | os.X_OK):
            says = f"{folder.absolute()} does not exist; it is made when it is needed"
            repair = Repair(f"make {name}", partial(_make, folder))
            yield Finding(check, "ok", says, facts=facts, repair=repair)
        else:
            says = f"{base.absolute()} can't be written by this user, so {name} can't be made"
            yield Finding(check, "error", says, f"change to another folder; or {otherwise}", facts)


def check_disk(place: Path, answers: int | None) -> Finding:
    """Return whether the disk has room for the journal.

    Args:
        place: The journal's folder; it need not exist yet.
        answers: How many answers the scenario asks for at most, None without a scenario.
    """
    folder = next(one for one in [place.absolute(), *place.absolute().parents] if one.is_dir())
    free = shutil.disk_usage(folder).free
    needed = _LEAST_BYTES + (answers or 0) * _BYTES_PER_ANSWER
    facts = {"free_bytes": free, "needed_bytes": needed, "answers": answers, "path": str(folder)}
    level: Level = "ok" if free >= needed else "error"
    says = f"{free // _MIB:,} MiB are free for the journal in {folder}"
    if answers is not None:
        says += f"; at most {answers:,} answers take about {needed // _MIB:,} MiB"
    mend = "" if level == "ok" else "make room; or --run-dir DIR on another disk"
    return Finding("disk", level, says, mend, facts)


def check_port(host: str, port: int) -> Finding:
    """Return whether a server could listen there; nothing that answers is asked what it is."""
    facts = {"host": host, "port": port}
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        taken = probe.connect_ex((host, port)) == 0
    if not taken:
        return Finding(f"port {port}", "ok", f"free on {host}", facts={**facts, "free": True})
    return Finding(
        f"port {port}",
        "warning",
        f"another program listens on {host}:{port}, and it is no llama-server",
        f"swarm-inference serve --model FILE --port {port + 1}; or find it: lsof -nP -iTCP:{port}",
        {**facts, "free": False},
    )


def _make(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return f"made {folder.absolute()}"
