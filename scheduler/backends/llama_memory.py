"""How much memory a model will take, and whether that much is there.

llama.cpp finds out by failing half-way, or the machine begins to swap. Numbers are estimates
from the file's header: weights as large as the file, which are read into memory once and not
mapped (llama_library.py), keys and values in F16, and room to compute.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from scheduler.backends.batched_rows import USEFUL_ROWS, rows_for
from scheduler.backends.llama_prefix import CHUNK_TOKENS
from scheduler.errors import ConfigError
from scheduler.gguf_file import GgufHeader

_MIB = 1 << 20
_MEMINFO = Path("proc/meminfo")
_CGROUP = Path("sys/fs/cgroup")

_CONTEXT_STEP = 256
"""llama.cpp rounds the length of a sequence up to a multiple of this."""

_TOKEN_BYTES = 250
"""What one token of the vocabulary takes in llama.cpp's maps."""

_LIBRARY_BYTES = 12 * _MIB
"""What llama.cpp's libraries, its graph and our own arrays take."""

SPARE_SEQUENCES = 4
"""Sequences beyond the slots, which keep the prefixes that prompts share."""

USUAL_ROWS = range(USEFUL_ROWS, 4096, 4)
"""The row counts that agree on most machines."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """The main memory that a model takes.

    Attributes:
        weights: The model's weights, in bytes.
        sequence: Keys and values of one sequence, in bytes.
        sequences: How many sequences there are.
        computing: Room to compute, in bytes.
    """

    weights: int
    sequence: int
    sequences: int
    computing: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.weights + self.sequence * self.sequences + self.computing

    def __str__(self) -> str:
        return (
            f"{self.total // _MIB:,} MiB ({self.weights // _MIB:,} for the weights, "
            f"{self.sequence // _MIB:,} for each of {self.sequences} sequences, "
            f"{self.computing // _MIB:,} to compute)"
        )


def memory_need(
    header: GgufHeader,
    n_ctx: int,
    n_gpu_layers: int = 0,
    *,
    sequences: int = 1,
    flash_attention: bool = False,
) -> MemoryNeed:
    """Return the main memory that a model takes with `sequences` of `n_ctx` tokens each.

    Args:
        header: The model file's header.
        n_ctx: Tokens of one sequence.
        n_gpu_layers: Layers on the GPU, which has memory of its own; -1 for all.
        sequences: How many sequences there are.
        flash_attention: Whether attention is computed in one pass.
    """
    layers = max(1, header.dimension("block_count"))
    heads = header.dimension("attention.head_count") or 1
    width = header.dimension("embedding_length")
    kv_heads = header.dimension("attention.head_count_kv") or heads
    key = header.dimension("attention.key_length") or width // heads
    value = header.dimension("attention.value_length") or width // heads
    vocabulary = header.vocabulary
    padded = -(-n_ctx // _CONTEXT_STEP) * _CONTEXT_STEP
    kv_cache = 2 * layers * padded * kv_heads * (key + value)
    on_cpu = 0.0 if n_gpu_layers < 0 else max(0, layers - n_gpu_layers) / layers
    # Without flash attention every head's scores are there at once, and the mask beside them.
    attended = 1 if flash_attention else heads + 1
    floats = CHUNK_TOKENS * (attended * padded + 3 * width + _ff_width(header))
    scores = sequences * vocabulary
    computing = 4 * (floats + scores) + _TOKEN_BYTES * vocabulary + _LIBRARY_BYTES
    return MemoryNeed(int(header.bytes * on_cpu), int(kv_cache * on_cpu), sequences, computing)


def sequences_for(slots: int, rows: Collection[int] = USUAL_ROWS) -> int:
    """Return how many sequences `slots` answers at once need.

    Args:
        slots: How many answers are written at once.
        rows: The row counts that agree; those that usually do if nobody says.
    """
    widest = rows_for(slots, rows) or max(rows)
    return max(widest, slots + SPARE_SEQUENCES)


def _ff_width(header: GgufHeader) -> int:
    return header.dimension("feed_forward_length") or 4 * header.dimension("embedding_length")


def needed_bytes(header: GgufHeader, n_ctx: int, n_gpu_layers: int = 0) -> int:
    """Return the main memory that a model takes with one context of `n_ctx` tokens."""
    return memory_need(header, n_ctx, n_gpu_layers).total


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that can still be taken, or None where the system does not say.

    Args:
        root: The folder in which `/proc` and `/sys` are.
    """
    found = [size for size in (_system_bytes(root), _cgroup_bytes(root)) if size is not None]
    return min(found, default=None)


def check_memory(
    header: GgufHeader,
    n_ctx: int,
    n_gpu_layers: int,
    available: int | None,
    *,
    flash_attention: bool = False,
) -> None:
    """Refuse a model that does not fit.

    Raises:
        ConfigError: It needs more than `available` bytes.
    """
    need = memory_need(header, n_ctx, n_gpu_layers, flash_attention=flash_attention)
    if available is not None and need.total > available:
        raise too_large(
            header.path,
            need,
            available,
            "lower n_ctx, take a smaller model or quantization, or free memory",
        )


def too_large(path: Path, need: MemoryNeed, available: int, remedy: str) -> ConfigError:
    """Return the error that says what a model needs and what there is."""
    return ConfigError(
        f"model {path} needs about {need}, and {available // _MIB:,} MiB are available; {remedy}"
    )


def _system_bytes(root: Path) -> int | None:
    try:
        for line in (root / _MEMINFO).read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _cgroup_bytes(root: Path) -> int | None:
    folder = root / _CGROUP
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = (folder / "memory.current").read_text(encoding="ascii").strip()
        stat = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    # Files that were read count as used until somebody needs the memory, a model's own among them.
    cached = sum(int(line.split()[1]) for line in stat if line.startswith("inactive_file "))
    return max(0, int(limit) - int(used) + cached) if limit.isdigit() else None
