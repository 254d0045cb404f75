"""The tokens of a model with random weights, and the template that makes a prompt of them.

The vocabulary was trained once (`data/demo_tokenizer.json`); each token's bias lets random
weights write words and end their answers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

from scheduler.gguf_shape import ModelShape, ModelShapeError

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens in the byte-level alphabet of GPT-2, their GGUF types and output biases."""

    tokens: list[str]
    types: list[int]
    biases: list[float]
    merges: list[str]
    special: dict[str, int]
    pre: str

    @staticmethod
    def of(shape: ModelShape) -> Vocabulary:
        """Return the tokenizer's vocabulary, filled up to the size that `shape` asks for.

        Raises:
            ModelShapeError: That size is smaller than the tokenizer's.
        """
        data = json.loads(tokenizer_text())
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
        return Vocabulary(
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


def tokenizer_text() -> str:
    """Return the trained tokenizer as it is stored, as JSON text."""
    file = resources.files("scheduler").joinpath("data/demo_tokenizer.json")
    return file.read_text(encoding="utf-8")
