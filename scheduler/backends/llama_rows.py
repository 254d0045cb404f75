"""The rows of one evaluation, in arrays that llama.cpp reads.

Allocated once and filled as a whole: one assignment through ctypes for each field of each row
takes longer than a small model takes for the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Tokens = Sequence[int] | np.ndarray[Any, np.dtype[np.int32]]

Row = tuple[int, int, int, bool]
"""A token, its position, its sequence, and whether its scores are wanted."""


class RowArrays:
    """Room for rows.

    Args:
        lib: The module `llama_cpp`.
        most: How many rows there is room for.
    """

    def __init__(self, lib: Any, most: int) -> None:
        self._tokens, self._positions, self._sequences, self._ones = np.ones(
            (4, most), dtype=np.int32
        )
        self._wanted = np.zeros(most, dtype=np.int8)
        # llama.cpp takes a list of sequences for each row; here each list has one entry.
        start, size = self._sequences.ctypes.data, self._sequences.itemsize
        self._lists = start + size * np.arange(most, dtype=np.uintp)
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "token": self._tokens,
            "pos": self._positions,
            "n_seq_id": self._ones,
            "seq_id": self._lists,
            "logits": self._wanted,
        }
        kinds = dict(lib.llama_batch._fields_)
        self._batch = lib.llama_batch(
            n_tokens=0,
            **{name: array.ctypes.data_as(kinds[name]) for name, array in arrays.items()},
        )

    def of(self, rows: Sequence[Row]) -> Any:
        """Return llama.cpp's batch of `rows`."""
        count = len(rows)
        columns = np.array(rows, dtype=np.int32).T
        self._tokens[:count], self._positions[:count], self._sequences[:count] = columns[:3]
        self._wanted[:count] = columns[3]
        self._batch.n_tokens = count
        return self._batch

    def of_neighbours(self, tokens: Tokens, position: int, sequence: int) -> Any:
        """Return llama.cpp's batch of `tokens` in their order, the last one's scores wanted."""
        count = len(tokens)
        self._tokens[:count] = tokens
        self._positions[:count] = np.arange(position, position + count)
        self._sequences[:count] = sequence
        self._wanted[:count] = 0
        self._wanted[count - 1] = 1
        self._batch.n_tokens = count
        return self._batch
