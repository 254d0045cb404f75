"""Starts a command's interpreter once more with a fixed PYTHONHASHSEED.

A second line of defence: what iterates a set that the repairs do not reach is then
at least the same in every run of the command. Only commands may call it, first
thing, since the process is replaced; libraries take the interpreter as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

SWITCH_OFF = "SWARM_INFERENCE_KEEP_HASH_SEED"
_RESTARTED = "SWARM_INFERENCE_RESTARTED"


def restart_with_fixed_hash_seed() -> None:
    """Re-execute this process with PYTHONHASHSEED=0, unless it has a fixed one already.

    Does nothing the second time, with `SWARM_INFERENCE_KEEP_HASH_SEED` set, and where
    the interpreter ignores the environment (`python -E`, `-I`). On Windows, where a
    process can't be replaced, it waits for the second and exits with its exit code.
    """
    environment = restart_environment(os.environ)
    if environment is None or sys.flags.ignore_environment or len(sys.orig_argv) < 2:
        return
    command = [sys.executable, *sys.orig_argv[1:]]
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by whoever started this
            stream.flush()
    if sys.platform == "win32":
        sys.exit(_wait_for(command, environment))
    os.execve(sys.executable, command, environment)  # noqa: S606  # our own command line


def restart_environment(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Return the environment to restart with, or None where that is not needed."""
    if environment.get("PYTHONHASHSEED", "random") not in {"", "random"}:
        return None
    if environment.get(_RESTARTED) or environment.get(SWITCH_OFF):
        return None
    return {**environment, "PYTHONHASHSEED": "0", _RESTARTED: "1"}


def _wait_for(command: Sequence[str], environment: Mapping[str, str]) -> int:
    process = subprocess.Popen(command, env=environment)  # noqa: S603  # our own command line
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the console sends Ctrl-C to both; the other one decides
            continue
