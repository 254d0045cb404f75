"""What a GGUF file says about itself, read before anything heavy touches it.

A model that is missing, damaged or no model at all is found here, with an error that names it,
and not by a library's `None` after a run has begun. Reads the header alone, except `file_sha256`.
Needs no other package. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from scheduler.errors import ConfigError

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
# Elements and bytes of one block, by tensor type (`enum ggml_type`).
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 36), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4),
    27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip
# `enum llama_ftype`, the types that files are published in.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K",
    11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S",
    17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0",
    38: "MXFP4_MOE",
}  # fmt: skip
_MOST_ENTRIES = 1 << 24
_LONGEST_STRING = 1 << 26

Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A model file's header.

    Attributes:
        path: The file.
        bytes: Its size.
        metadata: The values that are no arrays, by key.
        tensors: How many tensors it holds.
        vocabulary: How many tokens its vocabulary has; 0 if the file has none.
    """

    path: Path
    bytes: int
    metadata: Mapping[str, Scalar]
    tensors: int
    vocabulary: int = 0

    @property
    def architecture(self) -> str:
        """The model family, such as `llama`; empty if the file does not say."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def quantization(self) -> str:
        """The file's weight type, such as `Q4_K_M`; empty if the file does not say."""
        number = self.metadata.get("general.file_type")
        return "" if number is None else _FILE_TYPES.get(int(number), f"type {number}")

    @property
    def chat_template(self) -> str:
        """The Jinja template that turns messages into a prompt, or an empty string."""
        return str(self.metadata.get("tokenizer.chat_template", ""))

    @property
    def has_experts(self) -> bool:
        """Whether it is a mixture of experts, of which each token takes some."""
        return self.dimension("expert_count") > 1

    def dimension(self, name: str) -> int:
        """Return a number of this architecture, such as `context_length`; 0 if not given."""
        value = self.metadata.get(f"{self.architecture}.{name}", 0)
        return int(value) if isinstance(value, int | float) else 0


def read_gguf_header(path: Path) -> GgufHeader:
    """Return the header of a complete model file.

    Raises:
        ConfigError: There is none at `path`, it can't be read, or it is cut off.
    """
    _check_path(path)
    try:
        with path.open("rb") as file:
            return _Reader(path, file, path.stat().st_size).header()
    except OSError as exc:
        raise ConfigError(f"model {path} can't be read: {exc.strerror or exc}") from exc


def file_sha256(path: Path) -> str:
    """Return the sha256 (hexadecimal) of a file; read once as long as it stays the same."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=32)
def _sha256(path: Path, _size: int, _mtime_ns: int, _inode: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_path(path: Path) -> None:
    problem = None
    if ".." in path.parts:
        problem = "has '..' in its path; give the path without it"
    elif path.is_dir():
        problem = "is a directory; name the .gguf file in it"
    elif path.suffix.lower() != ".gguf":
        problem = "does not end in .gguf; give a model in GGUF format"
    elif not path.exists():
        problem = "does not exist; check model_path, or download the file first"
    elif not path.is_file():
        problem = "is no file; name a model in GGUF format"
    if problem:
        raise ConfigError(f"model {path.absolute()} {problem}")


class _Reader:
    """Reads a header from front to back."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size

    def header(self) -> GgufHeader:
        if self._file.read(4) != _MAGIC:
            raise ConfigError(
                f"model {self._path} is not a GGUF file (it does not begin with 'GGUF'); "
                "a download page or another format may have been saved under its name"
            )
        version = self._number("<I")
        if version not in (2, 3):
            raise ConfigError(
                f"model {self._path} is GGUF version {version}, or big-endian; "
                "convert it to version 3, little-endian"
            )
        tensors, entries = self._count(), self._count()
        metadata: dict[str, Scalar] = {}
        lengths: dict[str, int] = {}
        for _ in range(entries):
            key, kind = self._string(), self._number("<I")
            if kind == _ARRAY:
                lengths[key] = self._pass_array()
            else:
                metadata[key] = self._value(kind)
        self._check_tensors(tensors, int(metadata.get("general.alignment", 32)))
        vocabulary = lengths.get("tokenizer.ggml.tokens", 0)
        return GgufHeader(self._path, self._size, metadata, tensors, vocabulary)

    def _check_tensors(self, tensors: int, alignment: int) -> None:
        end = 0
        for _ in range(tensors):
            self._string()
            elements = math.prod(self._number("<Q") for _ in range(self._number("<I")))
            kind, offset = self._number("<I"), self._number("<Q")
            per_block, block_bytes = _BLOCKS.get(kind, (1, 0))
            end = max(end, offset + elements // per_block * block_bytes)
        alignment = alignment if alignment > 0 else 32
        needed = -(-self._file.tell() // alignment) * alignment + end
        if needed > self._size:
            raise ConfigError(
                f"model {self._path} is cut off: its header needs {needed:,} bytes, "
                f"the file has {self._size:,}; download it again"
            )

    def _value(self, kind: int) -> Scalar:
        """Read one value that is no array."""
        return self._string() if kind == _STRING else self._scalar(self._format(kind))

    def _pass_array(self) -> int:
        """Pass over an array; return how many values it has."""
        of_kind, length = self._number("<I"), self._number("<Q")
        if of_kind == _STRING:
            for _ in range(length):
                self._skip(self._number("<Q"))
        else:
            self._skip(length * struct.calcsize(self._format(of_kind)))
        return length

    def _format(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise ConfigError(
                f"model {self._path} has a damaged header (value of unknown type {kind}); "
                "download it again"
            )
        return _SCALARS[kind]

    def _string(self) -> str:
        length = self._number("<Q")
        if length > _LONGEST_STRING:
            raise self._cut_off()
        return self._bytes(length).decode("utf-8", "replace")

    def _count(self) -> int:
        count = self._number("<Q")
        if count > _MOST_ENTRIES:
            raise self._cut_off()
        return count

    def _number(self, layout: str) -> int:
        return int(self._scalar(layout))

    def _scalar(self, layout: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(layout, self._bytes(struct.calcsize(layout)))[0]
        return value

    def _bytes(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) < length:
            raise self._cut_off()
        return data

    def _skip(self, length: int) -> None:
        if self._file.tell() + length > self._size:
            raise self._cut_off()
        self._file.seek(length, 1)

    def _cut_off(self) -> ConfigError:
        return ConfigError(
            f"model {self._path} is cut off or damaged: its header does not end within the "
            f"file's {self._size:,} bytes; download it again"
        )
