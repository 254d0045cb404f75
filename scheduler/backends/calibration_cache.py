"""Calibrations on this machine, kept by all that they follow from.

In the user's cache directory, one small file each. A file that is missing, damaged or of
another kind is as good as none; one that can't be written is left out.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from scheduler.backends.batched_calibration import CALIBRATION_VERSION, Calibration
from scheduler.backends.batched_cuts import Grain
from scheduler.backends.native_model import NativeSpec, arithmetic_variables, uses_flash_attention
from scheduler.canonical import canonical_json


class CalibrationCache:
    """One calibration's file.

    Args:
        identity: All that the calibration follows from, as plain JSON data.
        folder: Where the files are; the user's cache directory if not given.
    """

    def __init__(self, identity: Mapping[str, Any], folder: Path | None = None) -> None:
        self._identity = dict(identity)
        digest = sha256(canonical_json(self._identity).encode()).hexdigest()
        self.path = (folder or cache_folder()) / f"{digest}.json"

    def read(self) -> Calibration | None:
        """Return what was found before, or None."""
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            if data["identity"] != self._identity:
                return None
            found = Calibration(
                level=data["level"],
                rows=tuple(data["rows"]),
                tried=tuple(data["tried"]),
                comparisons=data["comparisons"],
                grain=None if data["grain"] is None else Grain(**data["grain"]),
                wider=tuple(data["wider"]),
                wider_tried=data["wider_tried"],
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if _makes_sense(found) else None

    def write(self, found: Calibration) -> None:
        """Keep what was found; it is there whole, or not at all."""
        data = {
            "identity": self._identity,
            "level": found.level,
            "rows": found.rows,
            "tried": found.tried,
            "comparisons": found.comparisons,
            "grain": found.facts()["grain"],
            "wider": found.wider,
            "wider_tried": found.wider_tried,
        }
        partial = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_text(json.dumps(data, indent=1), encoding="utf-8")
                partial.replace(self.path)
            finally:
                partial.unlink(missing_ok=True)


def identity(lib: Any, spec: NativeSpec, model_sha256: str) -> dict[str, Any]:
    """Return all that a calibration follows from: file, build, processor and settings.

    Args:
        lib: The module `llama_cpp`.
        spec: What is loaded, and with how many threads.
        model_sha256: The file's sha256 (hexadecimal).
    """
    return {
        "version": CALIBRATION_VERSION,
        "model_sha256": model_sha256,
        "llama_cpp_python": lib.__version__,
        "library": _library(lib),
        "instruction_sets": lib.llama_print_system_info().decode("utf-8", "replace"),
        "processor": processor(),
        "environment": arithmetic_variables(),
        "n_threads": spec.n_threads,
        "n_gpu_layers": spec.n_gpu_layers,
        "flash_attention": uses_flash_attention(lib, spec),
        "repacking": spec.repacking,
    }


def processor() -> str:
    """Return the processor's name and kind, as exactly as the system says it."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        wanted = ("model name", "model", "cpu family", "flags", "CPU part", "Features")
        found: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() in wanted:
                found.setdefault(name.strip(), value.strip())
        if found:
            flags = found.pop("flags", "") + found.pop("Features", "")
            found["flags_sha256"] = sha256(flags.encode()).hexdigest()[:16]
            return ", ".join(f"{name} {value}" for name, value in sorted(found.items()))
    return f"{platform.machine()} {platform.processor()}".strip()


def cache_folder() -> Path:
    """Return where this user's calibrations are."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "swarm-inference" / "calibration"


def _library(lib: Any) -> list[str]:
    """Return names, sizes and times of the compiled libraries, wherever they were loaded from."""
    loaded = getattr(getattr(lib.llama_cpp, "_lib", None), "_name", None)
    folder = Path(loaded).parent if loaded else Path(lib.__file__).parent / "lib"
    files = sorted(path for path in folder.glob("*") if path.is_file() and _is_library(path))
    return [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]


def _is_library(path: Path) -> bool:
    return any(f".{ending}" in path.name for ending in ("so", "dylib", "dll"))


def _makes_sense(found: Calibration) -> bool:
    numbers = [*found.rows, *found.tried, found.comparisons]
    if found.grain is not None:
        numbers += [found.grain.step, found.grain.shortest]
    return (
        type(found.wider_tried) is int
        and found.level in ("invariant", "repeatable")
        and all(type(number) is int and number > 0 for number in numbers)
        and set(found.rows) <= set(found.tried)
        and bool(found.rows) == (found.level == "invariant")
        and all(
            type(rows) is int and max(found.rows, default=0) < rows <= found.wider_tried
            for rows in found.wider
        )
    )
