"""Which tokens each sequence holds, and where a prompt that shares some of them is put.

The first sequences answer, the others keep the beginnings that prompts share. What is reused is
whole chunks, token for token and cut for cut (`llama_prefix.py`), so that a warm prefill gives
the bits of a cold one. Only what can be reused is counted here, never the answers' own tokens.
Calls nothing of llama.cpp: it says what is to be copied.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from scheduler.backends.batched_rows import rows_for
from scheduler.backends.llama_prefix import Chunk, count_kept


@dataclass(frozen=True, slots=True)
class Place:
    """Where a prompt goes.

    Attributes:
        sequence: The sequence that answers it.
        source: The sequence that holds its beginning; may be the same one.
        chunks: How many of its chunks are there.
    """

    sequence: int
    source: int
    chunks: int


class Prefixes:
    """What the sequences of a context hold.

    Args:
        slots: How many sequences answer; those with the lowest numbers.
        sequences: How many there are.
    """

    def __init__(self, slots: int, sequences: int) -> None:
        self._slots = slots
        self._held: list[tuple[Chunk, ...]] = [()] * sequences
        self._used = [0] * sequences
        self._uses = 0

    def tokens(self, sequence: int) -> int:
        """Return how many tokens of `sequence` are counted here."""
        return sum(len(chunk) for chunk in self._held[sequence])

    def find(self, chunks: Sequence[Chunk], busy: Collection[int], rows: Collection[int]) -> Place:
        """Return where a prompt is put.

        In the lowest idle sequence, since answers side by side make narrow steps; in the one
        that holds its beginning where the step gets no wider by it.

        Args:
            chunks: The prompt.
            busy: The sequences that answer now; fewer than there are slots.
            rows: The row counts that a step may have.
        """
        kept = [count_kept(held, chunks) for held in self._held]
        source = max(range(len(kept)), key=lambda number: (kept[number], -number))
        idle = [number for number in range(self._slots) if number not in busy]
        lowest = idle[0]
        width = _width({*busy, lowest}, rows)
        for number in idle:
            if kept[number] == kept[source] > 0 and _width({*busy, number}, rows) <= width:
                return Place(number, number, kept[number])
        return Place(lowest, source, kept[source])

    def hold(self, sequence: int, chunks: Sequence[Chunk]) -> None:
        """Note that `sequence` holds exactly `chunks`."""
        self._held[sequence] = tuple(chunks)

    def keeper(self, prefix: Sequence[Chunk]) -> int | None:
        """Return the sequence that is to keep `prefix`: the one used least recently.

        Returns:
            None where it is kept already, which then counts as used, or where nothing is kept.
        """
        keepers = range(self._slots, len(self._held))
        self._uses += 1
        for number in keepers:
            if self._held[number][: len(prefix)] == tuple(prefix):
                self._used[number] = self._uses
                return None
        if not keepers:
            return None
        chosen = min(keepers, key=lambda number: self._used[number])
        self._used[chosen] = self._uses
        return chosen


def _width(busy: Collection[int], rows: Collection[int]) -> int:
    span = max(busy) - min(busy) + 1
    return rows_for(span, rows) or span
