"""The model that a measurement writes for itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scheduler.errors import ConfigError
from scheduler.gguf_file import read_gguf_header
from scheduler.gguf_models import write_model
from swarm_integration.bench.models import QUANTIZATION, preset_model


def test_without_the_library_the_preset_keeps_its_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    path = preset_model("demo", tmp_path / "models")
    assert path == tmp_path / "models/demo.gguf"
    assert read_gguf_header(path).quantization == "Q8_0"
    written = path.stat().st_mtime_ns
    assert preset_model("demo", tmp_path / "models") == path
    assert path.stat().st_mtime_ns == written


def test_a_model_of_somebody_else_is_neither_taken_nor_written_over(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    path = tmp_path / f"demo-{QUANTIZATION}.gguf"
    write_model(path, "demo", seed=99)
    content = path.read_bytes()
    with pytest.raises(ConfigError, match=rf"{path.name} was not written by this command; move"):
        preset_model("demo", tmp_path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]
