"""Small models with random weights in the types that people use, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.gguf_models import ModelShape, write_model

TYPES = ("Q8_0", "F16", "Q4_K_M")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import llama_cpp

    folder = tmp_path_factory.mktemp("models")
    paths = {name: folder / f"{name}.gguf" for name in TYPES}
    for name in ("Q8_0", "F16"):
        shape = ModelShape(
            "inproc", layers=3, width=256, heads=4, kv_heads=2, ff_width=512, weight_type=name
        )
        write_model(paths[name], shape)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    names = str(paths["F16"]).encode(), str(paths["Q4_K_M"]).encode()
    assert llama_cpp.llama_model_quantize(*names, params) == 0
    return paths


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where calibrations are kept, so that each model is calibrated once."""
    return tmp_path_factory.mktemp("calibrations")
