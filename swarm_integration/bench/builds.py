"""What compiled the arithmetic of a way: the build and its instruction sets.

A ratio between two ways compares their builds too, unless these are the same.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scheduler.server_command import ServerBinary

_WHEEL_INFO = "import xllamacpp; print(xllamacpp.get_system_info())"
_LISTED = re.compile(r"\b([A-Z][A-Z0-9_]+) = 1\b")
_LINE = re.compile(r"system_info: .*")


@dataclass(frozen=True, slots=True)
class Build:
    """A build of llama.cpp.

    Attributes:
        name: What it came from, with its version.
        instructions: Its instruction sets and libraries, as llama.cpp lists them.
    """

    name: str
    instructions: tuple[str, ...]


def inproc_build(lib: Any) -> Build:
    """Return llama-cpp-python's build."""
    info = lib.llama_print_system_info().decode()
    return Build(f"llama-cpp-python {lib.__version__}", _instructions(info))


def server_build(binary: ServerBinary, log: Path, build_info: str) -> Build:
    """Return the build of a server.

    Args:
        binary: What was started.
        log: What it has said, where a native one lists its instruction sets.
        build_info: What its `/props` say.
    """
    if binary.kind == "xllamacpp":
        # A process of its own: the wheel installs signal handlers.
        done = subprocess.run(  # noqa: S603  # our own words, and no shell
            [sys.executable, "-c", _WHEEL_INFO], capture_output=True, text=True, check=False
        )
        return Build(
            f"llama-server of xllamacpp {version('xllamacpp')}", _instructions(done.stdout)
        )
    found = _LINE.search(log.read_text(encoding="utf-8", errors="replace"))
    return Build(f"{binary.kind} {build_info}", _instructions(found.group() if found else ""))


def _instructions(info: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_LISTED.findall(info)))
