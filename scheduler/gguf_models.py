"""Small GGUF models with random weights, for demonstrations, tests and speed measurements.

They have a real model's architecture, tokenizer and chat template, so a real llama-server runs
them as it runs any other, but what they say has no meaning. The same shape and seed give the same
bytes on every machine. Not a converter: no trained weights come in here. Needs the `gguf` package,
which the `demo` extra installs.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from scheduler.errors import ConfigError

if TYPE_CHECKING:
    import gguf
    import numpy as np
    from numpy.typing import NDArray

WRITER_VERSION = 1
ARCHITECTURE = "llama"
RECIPE_KEY = "swarm_inference.recipe"
DIGEST_KEY = "swarm_inference.tensors_sha256"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% endif %}"
)

# Chosen so that attention picks few tokens out of a thousand (answers depend on the prompt) and
# sampling at temperature 0.8 varies.
_ATTENTION_GAIN = 1.75
_BRANCH_GAIN = 2.0
_LOGIT_GAIN = 3.0
# What channel 0 of the residual stream always holds, which makes channel 0 of an output row that
# token's bias.
_CONSTANT_CHANNEL = 4.0


class GgufModelError(ConfigError, ValueError):
    """A model file could not be written or recognised."""


class UnknownPresetError(GgufModelError):
    """There is no preset of that name."""


class ModelShapeError(GgufModelError):
    """The shape's numbers do not fit together."""


class GgufMissingError(GgufModelError):
    """The `gguf` package is not installed."""


class ModelPathError(GgufModelError):
    """The path cannot take the model file."""


class ModelExistsError(ModelPathError):
    """A file is there that must not be replaced."""


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
    }
)


def write_model(
    path: Path, preset: str | ModelShape, *, seed: int = 0, overwrite: bool = False
) -> ModelFacts:
    """Writes a GGUF file with random weights; it appears under its name only when complete.

    Args:
        path: The file to write, in an existing directory.
        preset: A name in `PRESETS`, or a shape of your own.
        seed: Seed of the weights.
        overwrite: Replace a file that is there.

    Raises:
        UnknownPresetError: No such preset.
        ModelShapeError: The vocabulary is smaller than the tokenizer's.
        GgufMissingError: The `gguf` package is missing.
        ModelExistsError: The file exists and `overwrite` is false.
        ModelPathError: The directory is missing or cannot be written to.
    """
    shape = _shape(preset)
    _import_gguf()
    vocabulary = _Vocabulary.of(shape)
    if path.is_dir():
        raise ModelPathError(f"{path} is a directory; name a file in it, such as {path}/demo.gguf")
    if path.exists() and not overwrite:
        raise ModelExistsError(f"{path} exists already; remove it or choose another name")
    if not path.parent.is_dir():
        raise ModelPathError(f"no directory {path.parent} for {path.name}; create it first")
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        _write(partial, shape, vocabulary, seed)
        partial.replace(path)
    except OSError as exc:
        raise ModelPathError(f"cannot write {path}: {exc.strerror or exc}") from exc
    finally:
        with suppress(OSError):
            partial.unlink()
    return _facts(path, shape)


def ensure_model(path: Path, preset: str | ModelShape, *, seed: int = 0) -> ModelFacts:
    """Returns the facts of the model at `path`, writing it first where it is not there yet.

    A file that this module wrote from another recipe (shape, seed, tokenizer, version) or that was
    damaged since is replaced; a file that comes from anywhere else is never touched.

    Raises:
        ModelExistsError: A file is there that this module did not write.
        GgufModelError: As `write_model`.
    """
    shape = _shape(preset)
    if not path.is_file():
        return write_model(path, shape, seed=seed)
    if not _is_intact(path, _recipe(shape, seed)):
        return write_model(path, shape, seed=seed, overwrite=True)
    return _facts(path, shape)


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """Tokens in the byte-level alphabet of GPT-2, their GGUF types and output biases."""

    tokens: list[str]
    types: list[int]
    biases: list[float]
    merges: list[str]
    special: dict[str, int]
    pre: str

    @staticmethod
    def of(shape: ModelShape) -> _Vocabulary:
        data = json.loads(_tokenizer_text())
        alphabet = byte_alphabet()
        tokens = [*data["special_tokens"], *alphabet]
        tokens += (merge.replace(" ", "") for merge in data["merges"])
        special = {token: index for index, token in enumerate(data["special_tokens"])}
        size = len(tokens) if shape.vocabulary_size is None else shape.vocabulary_size
        if size < len(tokens):
            raise ModelShapeError(
                f"vocabulary_size {size} is too small; the tokenizer has {len(tokens)} tokens"
            )
        normal, control, unused = 1, 3, 5
        padding = size - len(tokens)
        types = [control] * len(special) + [normal] * (len(tokens) - len(special))
        byte_of = {character: byte for byte, character in enumerate(alphabet)}
        biases = [
            _output_bias(token, None if token in special else [byte_of[c] for c in token])
            for token in tokens
        ]
        return _Vocabulary(
            tokens=[*tokens, *(f"<|unused_{index}|>" for index in range(padding))],
            types=types + [unused] * padding,
            biases=biases + [-32.0] * padding,
            merges=data["merges"],
            special=special,
            pre=data["pre"],
        )


def byte_alphabet() -> list[str]:
    """Returns the character that stands for each byte in GPT-2's byte-level BPE.

    Printable Latin-1 characters stand for themselves, the others for those from U+0100 on (Radford
    et al., GPT-2, `bytes_to_unicode` in its `encoder.py`).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _output_bias(piece: str, spelled: list[int] | None) -> float:
    # Words, quotes that close and answers that end, instead of stray bytes up to the token limit.
    if spelled is None:
        return 3.0 if piece == "<|eot_id|>" else -32.0
    text = bytes(spelled)
    if not text.isascii() or text.isspace() or min(text) < 0x20:
        return -12.0
    if text == b'"':
        return 3.5
    return 1.0 if text[:1] == b" " and text[1:].isalpha() else -2.0


def _tokenizer_text() -> str:
    file = resources.files("scheduler").joinpath("data/demo_tokenizer.json")
    return file.read_text(encoding="utf-8")


def _shape(preset: str | ModelShape) -> ModelShape:
    if isinstance(preset, ModelShape):
        return preset
    if preset not in PRESETS:
        raise UnknownPresetError(f"no preset {preset!r}; there are {', '.join(sorted(PRESETS))}")
    return PRESETS[preset]


def _import_gguf() -> Any:
    try:
        import gguf  # noqa: PLC0415 - an optional extra
    except ImportError as exc:
        raise GgufMissingError(
            "writing a model needs the gguf package; "
            'install it with: pip install "swarm-inference-scheduler[demo]"'
        ) from exc
    return gguf


def _recipe(shape: ModelShape, seed: int) -> str:
    tokenizer = hashlib.sha256(_tokenizer_text().encode()).hexdigest()
    recipe = {
        "shape": asdict(shape),
        "seed": seed,
        "tokenizer": tokenizer,
        "writer": WRITER_VERSION,
    }
    return json.dumps(recipe, sort_keys=True)


def _tensor_plan(
    shape: ModelShape, vocabulary: int
) -> Iterator[tuple[str, tuple[int, ...], float]]:
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


def _tensors(
    shape: ModelShape, vocabulary: _Vocabulary, seed: int
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for name, rows_columns, deviation in _tensor_plan(shape, len(vocabulary.tokens)):
        values = _weights(rows_columns, deviation, f"{seed}/{name}")
        if name == "token_embd.weight":
            values[:, 0] = _CONSTANT_CHANNEL
        elif name == "output.weight":
            values[:, 0] = vocabulary.biases
        elif name.endswith(("attn_output.weight", "ffn_down.weight")):
            values[0] = 0.0
        yield name, values


def _write(path: Path, shape: ModelShape, vocabulary: _Vocabulary, seed: int) -> None:
    gguf = _import_gguf()
    kind = gguf.GGMLQuantizationType
    matrix_type = kind[shape.weight_type]
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    try:
        _add_metadata(writer, shape, vocabulary)
        writer.add_string(RECIPE_KEY, _recipe(shape, seed))
        writer.add_string(DIGEST_KEY, "0" * 64)
        for name, rows_columns, _ in _tensor_plan(shape, len(vocabulary.tokens)):
            of_type = matrix_type if len(rows_columns) == 2 else kind.F32
            block, block_bytes = gguf.GGML_QUANT_SIZES[of_type]
            size = math.prod(rows_columns) // block * block_bytes
            writer.add_tensor_info(name, rows_columns, "float32", size, raw_dtype=of_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        digest_offset = writer.fout[0].tell() - 64
        writer.write_ti_data_to_file()
        digest = hashlib.sha256()
        for _, values in _tensors(shape, vocabulary, seed):
            of_type = matrix_type if values.ndim == 2 else kind.F32
            data = gguf.quants.quantize(values, of_type)
            writer.write_tensor_data(data)
            digest.update(data)
    finally:
        writer.close()
    with path.open("r+b") as file:
        file.seek(digest_offset)
        file.write(digest.hexdigest().encode())


def _add_metadata(writer: gguf.GGUFWriter, shape: ModelShape, vocabulary: _Vocabulary) -> None:
    writer.add_name(f"swarm-inference {shape.label} (random weights, meaningless text)")
    writer.add_description("Random weights for demonstrations and measurements; not trained.")
    writer.add_license("mit")
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ff_width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_file_type({"Q8_0": 7, "F16": 1}[shape.weight_type])
    writer.add_quantization_version(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.special["<|begin_of_text|>"])
    writer.add_eos_token_id(vocabulary.special["<|eot_id|>"])
    writer.add_eot_token_id(vocabulary.special["<|eot_id|>"])
    writer.add_pad_token_id(vocabulary.special["<|pad|>"])
    writer.add_add_bos_token(value=True)
    writer.add_add_space_prefix(value=False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _is_intact(path: Path, recipe: str) -> bool:
    """Whether the file was written from this recipe and its weights are as they were written."""
    gguf = _import_gguf()
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
    vocabulary_size = len(_Vocabulary.of(shape).tokens)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return ModelFacts(
        path=path,
        sha256=sha256,
        bytes=path.stat().st_size,
        parameters=sum(math.prod(dims) for _, dims, _ in _tensor_plan(shape, vocabulary_size)),
        vocabulary_size=vocabulary_size,
        context_length=shape.context_length,
        architecture=ARCHITECTURE,
        quantization=shape.weight_type,
    )
