"""What a way takes of the machine: CPU seconds and the most memory, of this process and a server's.

From `/proc` for a server, so None where there is none (macOS, Windows).
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds until a moment; `server_s` is None where they can't be told."""

    own_s: float
    server_s: float | None

    def until(self, later: Cpu) -> float | None:
        """Return the CPU seconds from here to `later`, all processes together."""
        if self.server_s is None or later.server_s is None:
            return None
        return later.own_s - self.own_s + later.server_s - self.server_s


def cpu(server_pid: int | None) -> Cpu:
    """Return what was used until now by this process and, if given, a server."""
    server_s: float | None = 0.0
    if server_pid is not None:
        fields = _read(Path(f"/proc/{server_pid}/stat")).rpartition(")")[2].split()
        ticks = os.sysconf("SC_CLK_TCK") if fields else 0
        server_s = (int(fields[11]) + int(fields[12])) / ticks if fields else None
    return Cpu(time.process_time(), server_s)


def peak_bytes(server_pid: int | None) -> int | None:
    """Return the most memory that this process and, if given, a server ever had, together."""
    own = _own_peak()
    if server_pid is None or own is None:
        return own
    for line in _read(Path(f"/proc/{server_pid}/status")).splitlines():
        if line.startswith("VmHWM:"):
            return own + int(line.split()[1]) * 1024
    return None


def _own_peak() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
