"""Small mixtures of experts with random weights, of the same architecture as Mixtral."""

from __future__ import annotations

import zlib
from pathlib import Path

import gguf
import numpy as np

from scheduler.gguf_shape import ModelShape
from scheduler.gguf_vocabulary import Vocabulary
from scheduler.gguf_weights import tensors
from scheduler.gguf_writer import ARCHITECTURE, _add_metadata

SHAPE = ModelShape(
    "mixture", layers=2, width=256, heads=4, kv_heads=2, ff_width=256, weight_type="F16"
)


def write_mixture(path: Path, experts: int = 8, used: int = 2) -> Path:
    """Write a model whose feed-forward layers have `experts`, of which a token takes `used`."""
    vocabulary = Vocabulary.of(SHAPE)
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    _add_metadata(writer, SHAPE, vocabulary)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(used)
    for name, values in tensors(SHAPE, vocabulary, 3):
        block, _, part = name.removesuffix(".weight").rpartition(".")
        if part in ("ffn_gate", "ffn_up", "ffn_down"):
            own = [_noise(f"{name}{n}", values.shape, float(values.std())) for n in range(experts)]
            writer.add_tensor(f"{block}.{part}_exps.weight", np.stack(own).astype(np.float16))
            if part == "ffn_gate":
                router = _noise(f"{block}router", (experts, SHAPE.width), 1 / 16)
                writer.add_tensor(f"{block}.ffn_gate_inp.weight", router)
        else:
            writer.add_tensor(name, values if values.ndim == 1 else values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _noise(name: str, shape: tuple[int, ...], deviation: float) -> np.ndarray:
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    return draw.normal(0.0, deviation, shape).astype(np.float32)
