"""Which tokens each sequence holds, and where a prompt that shares some of them is put.

The first sequences answer, the others keep the beginnings that prompts are likely to share.
What is reused is decided by `batched_cuts.py`, so that a warm prefill gives the bits of a cold
one; any sequence may be reused, also one whose answer is being written. Only prompts' tokens are
counted here, never the answers' own. Calls nothing of llama.cpp: it says what is to be copied.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from scheduler.backends.batched_cuts import NOTHING, Cuts, Text
from scheduler.backends.batched_rows import rows_for


@dataclass(frozen=True, slots=True)
class Place:
    """Where a prompt goes.

    Attributes:
        sequence: The sequence that answers it.
        source: The sequence that holds its beginning; may be the same one.
        tokens: How many of its tokens are there.
    """

    sequence: int
    source: int
    tokens: int


class Prefixes:
    """What the sequences of a context hold.

    Args:
        cuts: How prompts are cut.
        slots: How many sequences answer; those with the lowest numbers.
        sequences: How many there are.
    """

    def __init__(self, cuts: Cuts, slots: int, sequences: int) -> None:
        self._cuts = cuts
        self._slots = slots
        self._held: list[Text] = [NOTHING] * sequences
        self._used = [0] * sequences
        self._uses = 0

    def tokens(self, sequence: int) -> int:
        """Return how many tokens of `sequence` are counted here."""
        return len(self._held[sequence])

    def find(self, prompt: Text, busy: Collection[int], rows: Collection[int]) -> Place:
        """Return where a prompt is put.

        Among the idle sequences only those that make the next step no wider than it must be.
        Of these, the one that holds the prompt's beginning; else what is given up is what was
        used least recently.

        Args:
            prompt: What will be read.
            busy: The sequences that answer now; fewer than there are slots.
            rows: The row counts that a step may have.
        """
        kept = [self._cuts.reusable(held, prompt) for held in self._held]
        most = max(kept)
        idle = [number for number in range(self._slots) if number not in busy]
        widths = {number: _width({*busy, number}, rows) for number in idle}
        narrow = [number for number in idle if widths[number] == min(widths.values())]
        inside = [number for number in narrow if kept[number] == most > 0]
        sequence = min(inside or narrow, key=lambda number: (self._used[number], number))
        source = sequence if inside else kept.index(most)
        self._use(source)
        self._use(sequence)
        return Place(sequence, source, most)

    def hold(self, sequence: int, text: Text) -> None:
        """Note that `sequence` holds exactly `text`."""
        self._held[sequence] = text

    def keeper(self, prefix: Text, lasting: int = 0) -> int | None:
        """Return the sequence that is to keep `prefix`.

        One that begins with the same `lasting` tokens, if there is one: the worlds of two steps
        differ after the same system message. Else the one used least recently.

        Args:
            prefix: What is to be kept.
            lasting: How many of its first tokens are shared for longer than the others.

        Returns:
            None where it is kept already, which then counts as used, or where nothing is kept.
        """
        keepers = range(self._slots, len(self._held))
        for number in keepers:
            if self._holds(number, prefix):
                self._use(number)
                return None
        if not keepers:
            return None
        outdated = [n for n in keepers if self._holds(n, prefix.first(lasting))] if lasting else []
        chosen = min(outdated or keepers, key=lambda number: self._used[number])
        self._use(chosen)
        return chosen

    def _holds(self, number: int, prefix: Text) -> bool:
        held = self._held[number].first(len(prefix))
        return held.ends == prefix.ends and held.tokens.tobytes() == prefix.tokens.tobytes()

    def _use(self, number: int) -> None:
        self._uses += 1
        self._used[number] = self._uses


def _width(busy: Collection[int], rows: Collection[int]) -> int:
    span = max(busy) - min(busy) + 1
    return rows_for(span, rows) or span
