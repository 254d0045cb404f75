"""What a model with random weights looks like: its sizes, and the presets that have names.

Numbers alone, checked when a shape is made. What fills it is in `gguf_vocabulary` and
`gguf_weights`, what writes it in `gguf_writer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from scheduler.errors import ConfigError


class GgufModelError(ConfigError, ValueError):
    """A model file could not be written or recognised."""


class UnknownPresetError(GgufModelError):
    """There is no preset of that name."""


class ModelShapeError(GgufModelError):
    """The shape's numbers do not fit together."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a model looks like; `write_model` fills it with random weights.

    Attributes:
        label: Short name, part of the model's `general.name`.
        layers: Number of transformer blocks.
        width: Length of the residual stream; a multiple of 32, of 256 where the file is to be
            quantized further to a K type.
        heads: Query heads; `width / heads` is an even head dimension.
        kv_heads: Key and value heads; divides `heads`.
        ff_width: Width of the feed-forward network; a multiple of 32.
        context_length: Trained context in tokens.
        vocabulary_size: The tokenizer's own size when None; larger sizes add unused tokens.
        weight_type: Type of the matrices; norms are always F32.
    """

    label: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    ff_width: int
    context_length: int = 8192
    vocabulary_size: int | None = None
    weight_type: Literal["Q8_0", "F16"] = "Q8_0"

    def __post_init__(self) -> None:
        """Rejects numbers that do not fit together."""
        sizes = (self.layers, self.width, self.heads, self.kv_heads, self.ff_width)
        problem = None
        if min(*sizes, self.context_length) < 1:
            problem = "all sizes must be at least 1"
        elif self.width % 32 or self.ff_width % 32:
            problem = "width and ff_width must be multiples of 32"
        elif self.width % (2 * self.heads) or self.heads % self.kv_heads:
            problem = "width must be an even multiple of heads, and heads a multiple of kv_heads"
        elif self.weight_type not in ("Q8_0", "F16"):
            problem = "weight_type must be Q8_0 or F16"
        if problem:
            raise ModelShapeError(f"impossible model shape {self.label!r}: {problem}; got {self}")

    @property
    def head_width(self) -> int:
        """Length of one attention head's vectors."""
        return self.width // self.heads


PRESETS: Mapping[str, ModelShape] = MappingProxyType(
    {
        "demo": ModelShape("demo", layers=4, width=256, heads=4, kv_heads=2, ff_width=768),
        "bench": ModelShape(
            "bench",
            layers=12,
            width=768,
            heads=12,
            kv_heads=4,
            ff_width=2048,
            vocabulary_size=32768,
        ),
        "bench-1b": ModelShape(
            "bench-1b",
            layers=16,
            width=2048,
            heads=32,
            kv_heads=8,
            ff_width=8192,
            vocabulary_size=32768,
        ),
    }
)

PRESET_SEEDS: Mapping[str, int] = MappingProxyType({"demo": 5, "bench": 0, "bench-1b": 0})
"""Seeds of the presets' weights where none is given.

Random weights lean towards some tokens. Of the seeds 0 to 15 the demo has the one with which
an agent held to a schema takes every kind of action, and none of them most of the time.
"""


def shape_of(preset: str | ModelShape) -> ModelShape:
    """Return the shape of a preset's name, or the shape itself.

    Raises:
        UnknownPresetError: There is none of that name.
    """
    if isinstance(preset, ModelShape):
        return preset
    if preset not in PRESETS:
        raise UnknownPresetError(f"no preset {preset!r}; there are {', '.join(sorted(PRESETS))}")
    return PRESETS[preset]


def seed_of(preset: str | ModelShape, seed: int | None) -> int:
    """Return the seed of the weights: the given one, or the preset's own, 0 for other shapes."""
    if seed is not None:
        return seed
    return PRESET_SEEDS.get(preset, 0) if isinstance(preset, str) else 0
