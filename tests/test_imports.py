"""What takes long to import is imported only where it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import scheduler

ROOT = Path(__file__).parent.parent
SLOW = {"openai", "llama_cpp", "matplotlib", "pandas", "torch", "numpy"}
MODULES = ("scheduler", *(f"swarm_integration.{name}" for name in (
    "run", "demo", "replay", "certificates", "sweep.command", "bench.command", "commands", "cli"
)))  # fmt: skip


def loaded_by(statement: str) -> set[str]:
    """The slow packages that a fresh interpreter has loaded after `statement`."""
    code = f"import sys\n{statement}\nprint(*({SLOW!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", MODULES)
def test_importing_loads_no_client_and_no_library_for_numbers(module: str) -> None:
    assert loaded_by(f"import {module}") == set()


def test_a_backend_that_speaks_http_brings_its_client() -> None:
    assert loaded_by("import scheduler; scheduler.LlamaServerBackend") == {"openai"}


def test_every_public_name_is_there_and_no_other() -> None:
    for name in scheduler.__all__:
        assert getattr(scheduler, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'LlamaServer'"):
        scheduler.LlamaServer  # type: ignore[attr-defined] # noqa: B018 - mypy sees it too
