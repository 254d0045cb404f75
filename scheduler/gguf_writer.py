"""How a model with random weights becomes a GGUF file.

Metadata first, then one tensor after the other, so that no more than one is in memory. The
file says which recipe it was written from, and which bytes its weights have.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scheduler.gguf_shape import GgufModelError, ModelShape
from scheduler.gguf_vocabulary import CHAT_TEMPLATE, Vocabulary, tokenizer_text
from scheduler.gguf_weights import tensor_plan, tensors

if TYPE_CHECKING:
    import gguf

WRITER_VERSION = 1
ARCHITECTURE = "llama"
RECIPE_KEY = "swarm_inference.recipe"
DIGEST_KEY = "swarm_inference.tensors_sha256"


class GgufMissingError(GgufModelError):
    """The `gguf` package is not installed."""


def import_gguf() -> Any:
    """Return the `gguf` package.

    Raises:
        GgufMissingError: It is not installed.
    """
    try:
        import gguf  # noqa: PLC0415 - an optional extra
    except ImportError as exc:
        raise GgufMissingError(
            "writing a model needs the gguf package; "
            'install it with: pip install "swarm-inference-scheduler[demo]"'
        ) from exc
    return gguf


def recipe_of(shape: ModelShape, seed: int) -> str:
    """Return all that a file's bytes follow from, as canonical JSON."""
    tokenizer = hashlib.sha256(tokenizer_text().encode()).hexdigest()
    recipe = {
        "shape": asdict(shape),
        "seed": seed,
        "tokenizer": tokenizer,
        "writer": WRITER_VERSION,
    }
    return json.dumps(recipe, sort_keys=True)


def write_file(path: Path, shape: ModelShape, vocabulary: Vocabulary, seed: int) -> None:
    """Write the file at `path`, over what is there.

    Raises:
        OSError: It can't be written.
    """
    gguf = import_gguf()
    kind = gguf.GGMLQuantizationType
    matrix_type = kind[shape.weight_type]
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    try:
        _add_metadata(writer, shape, vocabulary)
        writer.add_string(RECIPE_KEY, recipe_of(shape, seed))
        writer.add_string(DIGEST_KEY, "0" * 64)
        for name, rows_columns, _ in tensor_plan(shape, len(vocabulary.tokens)):
            of_type = matrix_type if len(rows_columns) == 2 else kind.F32
            block, block_bytes = gguf.GGML_QUANT_SIZES[of_type]
            size = math.prod(rows_columns) // block * block_bytes
            writer.add_tensor_info(name, rows_columns, "float32", size, raw_dtype=of_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        digest_offset = writer.fout[0].tell() - 64
        writer.write_ti_data_to_file()
        digest = hashlib.sha256()
        for _, values in tensors(shape, vocabulary, seed):
            of_type = matrix_type if values.ndim == 2 else kind.F32
            data = gguf.quants.quantize(values, of_type)
            writer.write_tensor_data(data)
            digest.update(data)
    finally:
        writer.close()
    with path.open("r+b") as file:
        file.seek(digest_offset)
        file.write(digest.hexdigest().encode())


def _add_metadata(writer: gguf.GGUFWriter, shape: ModelShape, vocabulary: Vocabulary) -> None:
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
