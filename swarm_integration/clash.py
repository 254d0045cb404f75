"""Whether the import name `scheduler` is ours.

It is short, so a folder in the way, a PYTHONPATH or another distribution may have it too, and
then no command of ours could say what is wrong. Knows the standard library alone: it is asked
before anything of `scheduler` is imported.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import distributions
from pathlib import Path

_NAME = "scheduler"
_OURS = "swarm-inference-scheduler"
_PROOF = "engine.py"
"""A file that our package has and another of that name need not have."""


@dataclass(frozen=True, slots=True)
class Clash:
    """Who else has the name.

    Attributes:
        what: What was found.
        why: How that came about.
        mend: What to type.
    """

    what: str
    why: str
    mend: str

    def __str__(self) -> str:
        return f"error: {self.what}\n  why:  {self.why}\n  type: {self.mend}"


def find_clash(*, thorough: bool = False, root: Path | None = None) -> Clash | None:
    """Return who has the import name `scheduler` in our place, or None.

    Args:
        thorough: Also look for another package's files among ours, which takes longer.
        root: The folder that both of our packages are in; this module's by default.
    """
    expected = (root or Path(__file__).parent.parent) / _NAME
    found = _importable()
    if found is not None and found.resolve() != expected.resolve():
        return _shadowed(found, expected)
    other = _other_distribution(expected) if thorough else ""
    if other:
        return Clash(
            f"the package {other} has installed its files over those of {_OURS}",
            f"both are imported as `{_NAME}`, so one of them overwrites the other's "
            f"{expected / '__init__.py'}",
            f"{_python()} -m pip uninstall {other}, then {_python()} -m pip install "
            f"--force-reinstall --no-deps {_OURS}",
        )
    if found is None or not (expected / _PROOF).is_file():
        return Clash(
            f"the package `{_NAME}` of {_OURS} is not where it belongs, at {expected}",
            "the installation is not complete",
            f"{_python()} -m pip install --force-reinstall --no-deps {_OURS}",
        )
    return None


def _shadowed(found: Path, expected: Path) -> Clash:
    what = f"`import {_NAME}` gives {found}, not {_OURS}"
    place = found.parent
    if place.resolve() == Path.cwd().resolve():
        return Clash(
            what,
            "it lies in the folder in which you typed the command, where Python looks first",
            f"mv {found.name} another_name; or change to another folder",
        )
    return Clash(
        what,
        f"Python looks in {place} before {expected.parent}; PYTHONPATH decides that, or the order "
        "of installed packages",
        f"unset PYTHONPATH; or rename {found}",
    )


def _importable() -> Path | None:
    """Return the file or folder that `import scheduler` would read."""
    spec = PathFinder.find_spec(_NAME, sys.path)
    if spec is None:
        return _editable()
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin else None


def _editable() -> Path | None:
    """Ask the finders that some editable installations add."""
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = find(_NAME, None) if find else None
        if spec is not None and spec.origin:
            return Path(spec.origin).parent
    return None


def _other_distribution(expected: Path) -> str:
    """Return another distribution that has files in our package's folder, or nothing."""
    for one in distributions():
        if not any(file.parts[:1] == (_NAME,) for file in one.files or ()):
            continue
        place = Path(str(one.locate_file(_NAME)))
        if one.name != _OURS and place.resolve() == expected.resolve():
            return one.name
    return ""


def _python() -> str:
    return sys.executable or "python"
