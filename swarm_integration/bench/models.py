"""The model that a measurement writes for itself: a preset with random weights, as Q4_K_M."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from scheduler.backends.native_model import NativeSpec
from scheduler.errors import ConfigError
from scheduler.gguf_file import read_gguf_header
from scheduler.gguf_models import RECIPE_KEY, ensure_model
from scheduler.gguf_shape import seed_of, shape_of
from scheduler.gguf_writer import recipe_of

QUANTIZATION = "Q4_K_M"


def preset_model(preset: str, folder: Path) -> Path:
    """Return the preset's file in `folder`, written first where it is not there yet.

    Quantized by llama-cpp-python; without it the file has the preset's own weights.

    Raises:
        ConfigError: It can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if find_spec("llama_cpp") is None:
        return ensure_model(folder / f"{preset}.gguf", preset).path
    path = folder / f"{preset}-{QUANTIZATION}.gguf"
    shape, seed = replace(shape_of(preset), weight_type="F16"), seed_of(preset, None)
    if path.exists():
        header = read_gguf_header(path)
        if header.metadata.get(RECIPE_KEY) == recipe_of(shape, seed):
            return path
        raise ConfigError(f"{path} was not written by this command; move it away")
    with TemporaryDirectory(dir=folder) as name:
        whole, part = Path(name) / "whole.gguf", Path(name) / "part.gguf"
        ensure_model(whole, shape, seed=seed)
        _quantize(whole, part)
        part.replace(path)
    return path


def _quantize(source: Path, target: Path) -> None:
    import llama_cpp

    from scheduler.backends.llama_library import saying_why

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    names = str(source).encode(), str(target).encode()
    with saying_why(llama_cpp, NativeSpec(source, 1, 1, 0)):
        if llama_cpp.llama_model_quantize(*names, params) != 0:
            raise ConfigError(f"could not be quantized to {QUANTIZATION}")
