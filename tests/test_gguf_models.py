"""Written model files are read back with `gguf`'s own reader; no server runs here."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest

gguf = pytest.importorskip("gguf")

from scheduler.gguf_models import (  # noqa: E402 - after the check for gguf
    CHAT_TEMPLATE,
    PRESET_SEEDS,
    PRESETS,
    RECIPE_KEY,
    GgufMissingError,
    ModelExistsError,
    ModelFacts,
    ModelPathError,
    ModelShape,
    ModelShapeError,
    UnknownPresetError,
    byte_alphabet,
    ensure_model,
    write_model,
)

TINY = ModelShape("tiny", layers=2, width=64, heads=2, kv_heads=1, ff_width=96, context_length=4096)
DEMO_SHA256 = "526eaca56cd1ab3e64e16f879362f68b03393a4f86f2c7f762e44ed0a4bc6081"


def field(reader: Any, key: str) -> Any:
    found = reader.get_field(key)
    assert found is not None, key
    return found.contents()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TINY)


@pytest.fixture(scope="module")
def reader(tiny: ModelFacts) -> Any:
    return gguf.GGUFReader(tiny.path)


def test_written_file_describes_the_shape(reader: Any) -> None:
    assert field(reader, "general.architecture") == "llama"
    assert "random weights" in field(reader, "general.name")
    assert field(reader, "general.license") == "mit"
    assert field(reader, "llama.context_length") == 4096
    assert field(reader, "llama.block_count") == 2
    assert field(reader, "llama.embedding_length") == 64
    assert field(reader, "llama.feed_forward_length") == 96
    assert field(reader, "llama.attention.head_count") == 2
    assert field(reader, "llama.attention.head_count_kv") == 1
    assert field(reader, "llama.rope.dimension_count") == 32
    assert field(reader, "tokenizer.chat_template") == CHAT_TEMPLATE
    assert field(reader, "tokenizer.ggml.pre") == "smollm"


def test_facts_agree_with_the_file(tiny: ModelFacts, reader: Any) -> None:
    assert tiny.sha256 == hashlib.sha256(tiny.path.read_bytes()).hexdigest()
    assert tiny.bytes == tiny.path.stat().st_size
    assert tiny.parameters == sum(tensor.n_elements for tensor in reader.tensors)
    assert tiny.vocabulary_size == len(field(reader, "tokenizer.ggml.tokens"))


def test_special_tokens_are_control_tokens(reader: Any) -> None:
    tokens = field(reader, "tokenizer.ggml.tokens")
    types = field(reader, "tokenizer.ggml.token_type")
    for key, token in [
        ("bos", "<|begin_of_text|>"),
        ("eos", "<|eot_id|>"),
        ("eot", "<|eot_id|>"),
        ("padding", "<|pad|>"),
    ]:
        index = field(reader, f"tokenizer.ggml.{key}_token_id")
        assert (tokens[index], types[index]) == (token, gguf.TokenType.CONTROL)


@pytest.mark.parametrize("weight_type", ["Q8_0", "F16"])
def test_matrices_have_the_weight_type_and_norms_are_f32(tmp_path: Path, weight_type: Any) -> None:
    shape = dataclasses.replace(TINY, weight_type=weight_type)
    facts = write_model(tmp_path / "tiny.gguf", shape)
    assert facts.quantization == weight_type
    for tensor in gguf.GGUFReader(facts.path).tensors:
        expected = "F32" if "norm" in tensor.name else weight_type
        assert tensor.tensor_type.name == expected


def test_weights_have_the_intended_spread(reader: Any) -> None:
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    query = by_name["blk.1.attn_q.weight"]
    values = gguf.quants.dequantize(query.data, query.tensor_type)
    assert values.shape == (64, 64)
    assert abs(float(values.mean())) < 0.02
    assert float(values.std()) == pytest.approx(1.75 / 8, rel=0.05)


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    first = write_model(tmp_path / "a.gguf", TINY, seed=7)
    again = write_model(tmp_path / "b.gguf", TINY, seed=7)
    other = write_model(tmp_path / "c.gguf", TINY, seed=8)
    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256


def test_demo_preset_has_its_known_hash_on_every_machine(tmp_path: Path) -> None:
    facts = write_model(tmp_path / "demo.gguf", "demo")
    assert facts.sha256 == DEMO_SHA256, "changed on purpose? raise WRITER_VERSION and this hash"
    assert facts.bytes < 10_000_000


@pytest.mark.parametrize("preset", ["bench", "bench-1b"])
def test_presets_for_measurements_can_be_quantized_to_k_types(preset: str) -> None:
    bench = PRESETS[preset]
    assert bench.width % 256 == 0
    assert bench.ff_width % 256 == 0
    assert bench.kv_heads * bench.head_width % 256 == 0


def test_larger_vocabulary_is_filled_with_unused_tokens(tmp_path: Path) -> None:
    facts = write_model(tmp_path / "a.gguf", dataclasses.replace(TINY, vocabulary_size=5000))
    reader = gguf.GGUFReader(facts.path)
    tokens = field(reader, "tokenizer.ggml.tokens")
    assert facts.vocabulary_size == len(tokens) == len(set(tokens)) == 5000
    assert field(reader, "tokenizer.ggml.token_type")[4096:] == [gguf.TokenType.UNUSED] * 904


def test_vocabulary_smaller_than_the_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelShapeError, match="4096 tokens"):
        write_model(tmp_path / "a.gguf", dataclasses.replace(TINY, vocabulary_size=100))


@pytest.mark.parametrize(
    "change",
    [{"layers": 0}, {"width": 65}, {"ff_width": 100}, {"heads": 3}, {"weight_type": "Q4_K"}],
)
def test_impossible_shape_is_an_error_that_shows_it(change: dict[str, Any]) -> None:
    with pytest.raises(ModelShapeError, match="impossible model shape 'tiny'"):
        dataclasses.replace(TINY, **change)


def test_unknown_preset_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownPresetError, match="'huge'; there are bench, bench-1b, demo"):
        write_model(tmp_path / "a.gguf", "huge")


def test_missing_gguf_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(GgufMissingError, match=r"swarm-inference-scheduler\[demo\]"):
        write_model(tmp_path / "a.gguf", TINY)


def test_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelPathError, match="create it first"):
        write_model(tmp_path / "none" / "a.gguf", TINY)


def test_directory_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelPathError, match="is a directory"):
        write_model(tmp_path, TINY)


def test_failed_write_leaves_no_file_behind(tmp_path: Path) -> None:
    unwritable = tmp_path / ("a" * 240 + ".gguf")
    with pytest.raises(ModelPathError, match="cannot write"):
        write_model(unwritable, TINY)
    assert list(tmp_path.iterdir()) == []


def test_existing_file_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    first = write_model(path, TINY)
    with pytest.raises(ModelExistsError):
        write_model(path, TINY, seed=1)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == first.sha256
    assert write_model(path, TINY, seed=1, overwrite=True).sha256 != first.sha256
    assert list(tmp_path.iterdir()) == [path]


def test_ensure_writes_once_and_then_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    first = ensure_model(path, TINY)
    written = path.stat()
    assert ensure_model(path, TINY) == first
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_ensure_replaces_a_file_of_another_seed(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    old = ensure_model(path, TINY, seed=1)
    new = ensure_model(path, TINY, seed=2)
    assert new.sha256 != old.sha256
    assert '"seed": 2' in field(gguf.GGUFReader(path), RECIPE_KEY)


def test_ensure_repairs_damaged_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    intact = ensure_model(path, TINY)
    damaged = bytearray(path.read_bytes())
    damaged[-100] ^= 0xFF
    path.write_bytes(damaged)
    assert ensure_model(path, TINY) == intact


@pytest.mark.parametrize("cut", [100, 10_000, -500])
def test_ensure_refuses_a_truncated_file(tmp_path: Path, tiny: ModelFacts, cut: int) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(tiny.path.read_bytes()[:cut])
    with pytest.raises(ModelExistsError, match="remove it or choose another name"):
        ensure_model(path, TINY)


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"GGUF\x03\x00\x00\x00"])
def test_ensure_never_touches_a_foreign_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelExistsError, match="not a model that this tool wrote"):
        ensure_model(path, TINY)
    assert path.read_bytes() == content


def test_vocabulary_covers_every_byte_and_every_merge(reader: Any) -> None:
    tokens = field(reader, "tokenizer.ggml.tokens")
    known = set(tokens)
    assert len(known) == len(tokens)
    assert known >= set(byte_alphabet())
    for merge in field(reader, "tokenizer.ggml.merges"):
        left, right = merge.split(" ")
        assert {left, right, left + right} <= known


@pytest.mark.parametrize(
    "text",
    [
        '{"action_type": "VOTE", "params": {"post_id": "3fa9c01b", "direction": -1}}',
        "- agent_12: rep=0.50, resources=100.0\n\n\t  naïve café 漢字 😀\r\n",
        "it's we'll \x00\x7f  ",
    ],
)
def test_any_text_survives_the_tokenizer(reader: Any, text: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {token: i for i, token in enumerate(field(reader, "tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ")) for merge in field(reader, "tokenizer.ggml.merges")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert not any(
        len(token) > 1 and any(character.isdigit() for character in token)
        for token in (tokenizer.id_to_token(index) for index in ids)
    )


def test_a_preset_has_a_seed_of_its_own_and_a_shape_has_none(tmp_path: Path) -> None:
    own = write_model(tmp_path / "a.gguf", "demo", seed=PRESET_SEEDS["demo"])
    assert own.sha256 == DEMO_SHA256
    assert ensure_model(own.path, "demo").sha256 == DEMO_SHA256
    tiny = write_model(tmp_path / "b.gguf", TINY)
    assert write_model(tmp_path / "c.gguf", TINY, seed=0).sha256 == tiny.sha256
