"""Which tensors a model with random weights has, and the numbers in them.

Drawn by exact operations from a name and a seed alone, so the same on every machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from scheduler.gguf_shape import ModelShape
from scheduler.gguf_vocabulary import Vocabulary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Chosen so that attention picks few tokens out of a thousand (answers depend on the prompt) and
# sampling at temperature 0.8 varies.
_ATTENTION_GAIN = 1.75
_BRANCH_GAIN = 2.0
_LOGIT_GAIN = 3.0
# What channel 0 of the residual stream always holds, which makes channel 0 of an output row that
# token's bias.
_CONSTANT_CHANNEL = 4.0


def tensor_plan(shape: ModelShape, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Yields each tensor's name, shape (rows, columns) and standard deviation; norms have 0."""
    width, ff_width = shape.width, shape.ff_width
    kv_width = shape.kv_heads * shape.head_width
    unit = 1 / math.sqrt(width)
    branch = _BRANCH_GAIN / math.sqrt(shape.layers)
    yield "token_embd.weight", (vocabulary, width), 1.0
    for layer in range(shape.layers):
        prefix = f"blk.{layer}"
        yield f"{prefix}.attn_norm.weight", (width,), 0.0
        yield f"{prefix}.attn_q.weight", (width, width), _ATTENTION_GAIN * unit
        yield f"{prefix}.attn_k.weight", (kv_width, width), _ATTENTION_GAIN * unit
        yield f"{prefix}.attn_v.weight", (kv_width, width), unit
        yield f"{prefix}.attn_output.weight", (width, width), branch * unit
        yield f"{prefix}.ffn_norm.weight", (width,), 0.0
        yield f"{prefix}.ffn_gate.weight", (ff_width, width), unit
        yield f"{prefix}.ffn_up.weight", (ff_width, width), unit
        yield f"{prefix}.ffn_down.weight", (width, ff_width), branch / math.sqrt(ff_width)
    yield "output_norm.weight", (width,), 0.0
    yield "output.weight", (vocabulary, width), _LOGIT_GAIN * unit


def _weights(rows_columns: tuple[int, ...], deviation: float, stream: str) -> NDArray[np.float32]:
    # Uniform from 16 raw bits each, by exact operations only: the same floats on every machine.
    import numpy as np  # noqa: PLC0415 - an optional extra

    if deviation == 0.0:
        return np.ones(rows_columns, dtype=np.float32)
    count = math.prod(rows_columns)
    key = int.from_bytes(hashlib.sha256(stream.encode()).digest(), "little")
    raw = np.random.PCG64(key).random_raw(-(-count // 4))
    values = raw.astype("<u8").view("<i2")[:count].astype(np.float32)
    values *= np.float32(deviation * math.sqrt(3) / 32768)
    return values.reshape(rows_columns)


def tensors(
    shape: ModelShape, vocabulary: Vocabulary, seed: int
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield each tensor's name and its numbers, drawn from `seed`; in the order of the plan."""
    for name, rows_columns, deviation in tensor_plan(shape, len(vocabulary.tokens)):
        values = _weights(rows_columns, deviation, f"{seed}/{name}")
        if name == "token_embd.weight":
            values[:, 0] = _CONSTANT_CHANNEL
        elif name == "output.weight":
            values[:, 0] = vocabulary.biases
        elif name.endswith(("attn_output.weight", "ffn_down.weight")):
            values[0] = 0.0
        yield name, values
