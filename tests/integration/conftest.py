"""What the tests against real programs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.gguf_models import write_model


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random-weight model that every llama.cpp can load."""
    path = tmp_path_factory.mktemp("model") / "demo.gguf"
    write_model(path, "demo")
    return path
