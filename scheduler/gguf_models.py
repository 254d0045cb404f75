"""Small GGUF models with random weights, for demonstrations, tests and speed measurements.

They have a real model's architecture, tokenizer and chat template, so a real llama-server runs
them as it runs any other, but what they say has no meaning. The same shape and seed give the same
bytes on every machine. Not a converter: no trained weights come in here. Needs the `gguf` package,
which the `demo` extra installs.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scheduler.gguf_shape import (
    PRESET_SEEDS,
    PRESETS,
    GgufModelError,
    ModelShape,
    ModelShapeError,
    UnknownPresetError,
    seed_of,
    shape_of,
)
from scheduler.gguf_vocabulary import CHAT_TEMPLATE, Vocabulary, byte_alphabet
from scheduler.gguf_weights import tensor_plan
from scheduler.gguf_writer import (
    ARCHITECTURE,
    DIGEST_KEY,
    RECIPE_KEY,
    GgufMissingError,
    import_gguf,
    recipe_of,
    write_file,
)

__all__ = [
    "CHAT_TEMPLATE",
    "PRESETS",
    "PRESET_SEEDS",
    "RECIPE_KEY",
    "GgufMissingError",
    "GgufModelError",
    "ModelExistsError",
    "ModelFacts",
    "ModelPathError",
    "ModelShape",
    "ModelShapeError",
    "UnknownPresetError",
    "byte_alphabet",
    "ensure_model",
    "write_model",
]


class ModelPathError(GgufModelError):
    """The path cannot take the model file."""


class ModelExistsError(ModelPathError):
    """A file is there that must not be replaced."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is true of a written model file."""

    path: Path
    sha256: str
    bytes: int
    parameters: int
    vocabulary_size: int
    context_length: int
    architecture: str
    quantization: str


def write_model(
    path: Path, preset: str | ModelShape, *, seed: int | None = None, overwrite: bool = False
) -> ModelFacts:
    """Writes a GGUF file with random weights; it appears under its name only when complete.

    Args:
        path: The file to write, in an existing directory.
        preset: A name in `PRESETS`, or a shape of your own.
        seed: Seed of the weights; None takes the preset's own, and 0 for other shapes.
        overwrite: Replace a file that is there.

    Raises:
        UnknownPresetError: No such preset.
        ModelShapeError: The vocabulary is smaller than the tokenizer's.
        GgufMissingError: The `gguf` package is missing.
        ModelExistsError: The file exists and `overwrite` is false.
        ModelPathError: The directory is missing or cannot be written to.
    """
    shape, drawn_from = shape_of(preset), seed_of(preset, seed)
    import_gguf()
    vocabulary = Vocabulary.of(shape)
    if path.is_dir():
        raise ModelPathError(f"{path} is a directory; name a file in it, such as {path}/demo.gguf")
    if path.exists() and not overwrite:
        raise ModelExistsError(f"{path} exists already; remove it or choose another name")
    if not path.parent.is_dir():
        raise ModelPathError(f"no directory {path.parent} for {path.name}; create it first")
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        write_file(partial, shape, vocabulary, drawn_from)
        partial.replace(path)
    except OSError as exc:
        raise ModelPathError(f"cannot write {path}: {exc.strerror or exc}") from exc
    finally:
        with suppress(OSError):
            partial.unlink()
    return _facts(path, shape)


def ensure_model(path: Path, preset: str | ModelShape, *, seed: int | None = None) -> ModelFacts:
    """Returns the facts of the model at `path`, writing it first where it is not there yet.

    A file that this module wrote from another recipe (shape, seed, tokenizer, version) or that was
    damaged since is replaced; a file that comes from anywhere else is never touched.

    Raises:
        ModelExistsError: A file is there that this module did not write.
        GgufModelError: As `write_model`.
    """
    shape, drawn_from = shape_of(preset), seed_of(preset, seed)
    if not path.is_file():
        return write_model(path, shape, seed=drawn_from)
    if not _is_intact(path, recipe_of(shape, drawn_from)):
        return write_model(path, shape, seed=drawn_from, overwrite=True)
    return _facts(path, shape)


def _is_intact(path: Path, recipe: str) -> bool:
    """Whether the file was written from this recipe and its weights are as they were written."""
    gguf = import_gguf()
    foreign = ModelExistsError(
        f"{path} is not a model that this tool wrote; remove it or choose another name"
    )
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError) as exc:
        raise foreign from exc
    written, expected = (reader.get_field(key) for key in (RECIPE_KEY, DIGEST_KEY))
    if written is None or expected is None:
        raise foreign
    if written.contents() != recipe:
        return False
    digest = hashlib.sha256()
    for tensor in reader.tensors:
        digest.update(tensor.data)
    return digest.hexdigest() == str(expected.contents())


def _facts(path: Path, shape: ModelShape) -> ModelFacts:
    vocabulary_size = len(Vocabulary.of(shape).tokens)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return ModelFacts(
        path=path,
        sha256=sha256,
        bytes=path.stat().st_size,
        parameters=sum(math.prod(dims) for _, dims, _ in tensor_plan(shape, vocabulary_size)),
        vocabulary_size=vocabulary_size,
        context_length=shape.context_length,
        architecture=ARCHITECTURE,
        quantization=shape.weight_type,
    )
