"""Certificates: what `swarm-inference certify` measured, kept for the runs that come after.

One file for each backend and number of slots, in the user's cache directory, found by the
backend's fingerprint. That does not tell how a server was started or on which machine, and
both decide its bits: so a certificate also names its conditions, and a run quotes it only
where they are its own. For a server that somebody else started they can't be known.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from scheduler.backends.base import BackendInfo
from scheduler.backends.native_model import arithmetic_variables
from scheduler.certification import Certification
from scheduler.errors import ConfigError
from scheduler.gguf_file import file_sha256
from scheduler.server import ManagedServer
from scheduler.server_command import CHILD, server_flags
from scheduler.verdict import Level

NOT_OURS = "not started by this program, so its flags are not known"
NOT_CERTIFIED = "not certified"

# What does not decide an answer's bits: the place, the slots, the room.
_FREE_FLAGS = frozenset({"--model", "--host", "--port", "--parallel", "--ctx-size", "--alias"})


class Certificate(BaseModel):
    """What was measured, of what, and under which conditions.

    Attributes:
        format: The version of this record.
        level: What the backend's arithmetic promises.
        reason: Why it is this level.
        date: When it was measured (UTC).
        backend: Kind, model, build, fingerprint and facts.
        slots: How many requests ran at once, at most: for more it says nothing.
        most_in_flight: How many really did.
        trials: How often the whole plan was asked.
        answers: How many answers were compared.
        longest_prompt_tokens: Tokens of the longest prompt.
        compared: What was compared beside the text.
        evidence: The numbers of each question and temperature.
        conditions: What else decides the bits; see `conditions_of`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    level: Level
    reason: str
    date: str
    backend: dict[str, Any]
    slots: int
    most_in_flight: int
    trials: int
    answers: int
    longest_prompt_tokens: int
    compared: tuple[str, ...]
    evidence: tuple[dict[str, Any], ...]
    conditions: dict[str, Any]

    @property
    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.level.value}: certified {self.date[:10]}, up to {self.slots} slots, "
            f"{self.answers} answers in {self.trials} trials"
        )


def certificate_of(found: Certification, conditions: Mapping[str, Any]) -> Certificate:
    """Return the certificate of a measurement that was made just now."""
    info = found.info
    return Certificate(
        level=found.verdict.level,
        reason=found.verdict.reason,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        backend={
            "kind": info.kind,
            "model": info.model,
            "build": info.build,
            "fingerprint": info.fingerprint,
            "context_per_slot": info.context_per_slot,
            "facts": dict(info.facts),
        },
        slots=found.slots,
        most_in_flight=found.most_in_flight,
        trials=found.trials,
        answers=found.answers,
        longest_prompt_tokens=found.longest_prompt_tokens,
        compared=found.compared,
        evidence=tuple(asdict(one) for one in found.evidence),
        conditions=dict(conditions),
    )


def conditions_of(info: BackendInfo, server: ManagedServer | None) -> dict[str, Any]:
    """Return what decides a backend's bits and is not in its fingerprint.

    Args:
        info: What the backend said at its start.
        server: The server behind it, where this program started that.
    """
    started: Any = None
    variables = arithmetic_variables()
    if server is not None:
        started = _started_as(server)
        variables |= server.environment
    elif info.kind not in ("llama_inproc", "fake"):
        started = NOT_OURS
    return {
        "machine": _machine(),
        "environment": dict(sorted(variables.items())),
        "server": started,
        "versions": {name: _version(name) for name in ("swarm-inference-scheduler", "xllamacpp")},
    }


def cache_directory() -> Path:
    """Return where certificates are kept: `swarm-inference/certificates` in the user's cache."""
    usual = Path.home() / (".cache" if sys.platform != "darwin" else "Library/Caches")
    given = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    # A relative path is to be ignored, says the XDG base directory specification.
    root = Path(given) if Path(given).is_absolute() else usual
    return root / "swarm-inference" / "certificates"


def keep(certificate: Certificate) -> tuple[Path, bool]:
    """Keep a certificate in the cache; return where, and whether it is the one kept there.

    An earlier one of the same backend stays where it measured more and the new one did not
    find it worse: a quick measurement does not undo a thorough one.

    Raises:
        ConfigError: It can't be written.
    """
    target = cache_directory() / _file_name(certificate)
    earlier = _read(target)
    if earlier is not None and not _says_more(certificate, earlier):
        return target, False
    write(certificate, target)
    return target, True


def write(certificate: Certificate, target: Path) -> None:
    """Write a certificate to a file, whole or not at all.

    Raises:
        ConfigError: It can't be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(target, certificate.model_dump_json(indent=2) + "\n")
    except OSError as exc:
        raise ConfigError(f"the certificate can't be written to {target}: {exc}") from exc


def kept(fingerprint: str) -> list[Certificate]:
    """Return the certificates of a backend, of fewest slots first; unreadable ones are skipped."""
    found = [_read(path) for path in sorted(cache_directory().glob(f"{fingerprint}-*.json"))]
    return sorted(
        (one for one in found if one and one.backend.get("fingerprint") == fingerprint),
        key=lambda one: one.slots,
    )


def matching(
    info: BackendInfo, slots: int, conditions: Callable[[], Mapping[str, Any]], *, trusted: bool
) -> tuple[Certificate | None, str]:
    """Return the certificate that a run may quote, or why there is none.

    Args:
        info: What the run's backend said at its start.
        slots: How many requests the run sends it at once.
        conditions: Gives the run's conditions; called only where there is a certificate, since
            it may read a whole model.
        trusted: Take one of a server whose flags can't be known.
    """
    certificates = kept(info.fingerprint)
    if not certificates:
        return None, ""
    now = dict(conditions())
    fitting = [one for one in certificates if one.conditions == now]
    if not fitting:
        names = sorted(
            {key for one in certificates for key in now if one.conditions.get(key) != now[key]}
        )
        return None, f"there is a certificate, but its conditions ({', '.join(names)}) are others"
    enough = [one for one in fitting if one.slots >= slots]
    if not enough:
        return None, f"there is a certificate, but only for up to {fitting[-1].slots} slots"
    if now.get("server") == NOT_OURS and not trusted:
        return None, (
            "there is a certificate, but nobody can tell whether this server is started as that "
            "one was; if it is, set determinism.trust_certificate to true"
        )
    return enough[0], ""


def _write_whole(target: Path, text: str) -> None:
    file = NamedTemporaryFile(  # noqa: SIM115  # it is closed before it gets its name
        "w", encoding="utf-8", dir=target.parent, suffix=".part", delete=False
    )
    part = Path(file.name)
    try:
        with file:
            file.write(text)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path) -> Certificate | None:
    try:
        return Certificate.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _says_more(new: Certificate, old: Certificate) -> bool:
    """Whether `new` may take the place of `old`: it measured as much, or found it worse."""
    levels = list(Level)
    return new.answers >= old.answers or levels.index(new.level) > levels.index(old.level)


def _file_name(certificate: Certificate) -> str:
    fingerprint = str(certificate.backend["fingerprint"])
    text = repr(sorted(certificate.conditions.items()))
    return f"{fingerprint}-{sha256(text.encode()).hexdigest()[:12]}-{certificate.slots}.json"


def _started_as(server: ManagedServer) -> dict[str, Any]:
    words = iter(server_flags(server.spec))
    flags = []
    for word in words:
        if word in _FREE_FLAGS:
            next(words)
        else:
            flags.append(word)
    return {
        "program": "xllamacpp" if server.command[: len(CHILD)] == [*CHILD] else "llama-server",
        "flags": flags,
        "profile": server.spec.profile,
        "model_sha256": file_sha256(server.spec.model_path),
    }


def _machine() -> dict[str, str]:
    """Return what is known of the processor; another one may have other kernels."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    lines = [line.partition(":") for line in text.partition("\n\n")[0].splitlines()]
    fields = {name.strip(): value.strip() for name, _, value in lines}
    features = fields.get("flags") or fields.get("Features") or ""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": fields.get("model name") or platform.processor(),
        "features_sha256": sha256(" ".join(sorted(features.split())).encode()).hexdigest()[:16],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
