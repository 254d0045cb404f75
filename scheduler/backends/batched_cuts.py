"""Where the batched engine cuts a prompt into chunks, and how much of a held one it may reuse.

llama.cpp's kernels choose by the number of rows, so the bits of a prompt's keys and values may
depend on where its prefill was cut. Where a calibration found that they do not, as long as cuts
stand at multiples of some number of tokens and no chunk is too short (`Grained`), chunks are as
long as is fast and whatever two prompts share is read once. Elsewhere each prompt is cut at
places that follow from its own tokens alone (`Fixed`), and whole chunks are reused. Either way
warm bits are cold bits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from scheduler.backends.llama_prefix import CHUNK_TOKENS, border_of, cut

_LEAST_REST = 64
"""What is left for the last chunk has at least so many tokens, for speed."""

Tokens = np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """A prompt, or as much of one as a sequence holds.

    Attributes:
        tokens: What is read, in this order.
        ends: Where its chunks must end, ascending; of no meaning where cuts are grained.
        border: How many of its first tokens other prompts may well begin with too.
        lasting: How many of these belong to the system message, which outlasts a step.
    """

    tokens: Tokens
    ends: tuple[int, ...] = ()
    border: int = 0
    lasting: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, count: int) -> Text:
        """Return its first tokens."""
        return Text(self.tokens[:count], self.ends[: bisect_right(self.ends, count)])


NOTHING = Text(np.empty(0, dtype=np.int32))


@dataclass(frozen=True, slots=True)
class Grain:
    """How a prompt may be cut without changing bits.

    Attributes:
        step: Cuts stand at multiples of so many tokens.
        shortest: No chunk of a prompt that is cut has fewer tokens than this. A prompt that
            itself has fewer is read whole, perhaps by another kernel, and shares nothing.
    """

    step: int
    shortest: int


class Cuts(Protocol):
    """How prompts are cut."""

    def text(self, tokens: Sequence[int], system_tokens: int, shared: Sequence[int] = ()) -> Text:
        """Return a prompt with its cuts.

        Args:
            tokens: The whole prompt, one token or more.
            system_tokens: How many at its start belong to the system message.
            shared: Where other beginnings end that prompts may share.
        """
        ...

    def end(self, text: Text, start: int) -> int:
        """Return where the chunk of `text` ends that begins at `start`."""
        ...

    def reusable(self, held: Text, wanted: Text) -> int:
        """Return how many first tokens of `wanted` need not be read, as they are in `held`.

        Never all: the answer's first token is drawn from the scores of the last chunk.
        """
        ...


@dataclass(frozen=True, slots=True)
class Grained:
    """Cuts at any multiple of the grain's step that leaves no chunk too short.

    Attributes:
        grain: What a calibration found to change no bits.
    """

    grain: Grain

    def text(self, tokens: Sequence[int], system_tokens: int, shared: Sequence[int] = ()) -> Text:
        """Return a prompt; where it is cut is decided when it is read."""
        array = np.array(tokens, dtype=np.int32)
        last = self._last(len(array))
        border, lasting = (
            min(self._down(end), last) for end in (max((system_tokens, *shared)), system_tokens)
        )
        if border < self.grain.shortest:
            border = lasting = 0
        return Text(array, border=border, lasting=lasting)

    def end(self, text: Text, start: int) -> int:
        """Return where the next of the fewest chunks ends: whole ones, and a rest of some size.

        Whole ones are fastest, since kernels work on tiles of up to 64 rows.
        """
        rest = len(text) - start
        if rest <= CHUNK_TOKENS:
            return len(text)
        least = max(self.grain.shortest, _LEAST_REST)
        return start + min(CHUNK_TOKENS, self._down(rest - least))

    def reusable(self, held: Text, wanted: Text) -> int:
        """Return how many first tokens the two share, down to a cut.

        Less than the shortest chunk is nothing: it is not worth a copy, nor a sequence.
        """
        if len(held) < self.grain.shortest:
            return 0
        found = min(self._down(shared(held.tokens, wanted.tokens)), self._last(len(wanted)))
        return found if found >= self.grain.shortest else 0

    def _down(self, tokens: int) -> int:
        return tokens // self.grain.step * self.grain.step

    def _last(self, tokens: int) -> int:
        """Return the last place where a prompt of so many tokens may be cut."""
        return max(0, self._down(tokens - self.grain.shortest))


@dataclass(frozen=True, slots=True)
class Fixed:
    """Cuts that follow from each prompt's own tokens, as in `llama_prefix.py`."""

    def text(self, tokens: Sequence[int], system_tokens: int, shared: Sequence[int] = ()) -> Text:
        """Return a prompt with its cuts."""
        ends, end = [], 0
        for chunk in cut(tokens, system_tokens, shared):
            end += len(chunk)
            ends.append(end)
        border = border_of(tokens, max((system_tokens, *shared)))
        lasting = border_of(tokens, system_tokens)
        return Text(np.array(tokens, dtype=np.int32), tuple(ends), border, lasting)

    def end(self, text: Text, start: int) -> int:
        """Return the next place where the prompt is cut."""
        return text.ends[bisect_right(text.ends, start)]

    def reusable(self, held: Text, wanted: Text) -> int:
        """Return how many tokens the chunks have that the two share, cut for cut."""
        common, found = shared(held.tokens, wanted.tokens), 0
        for ours, theirs in zip(held.ends, wanted.ends[:-1], strict=False):
            if ours != theirs or ours > common:
                break
            found = ours
        return found


def cuts_for(grain: Grain | None) -> Cuts:
    """Return how prompts are cut where this grain was found, or none."""
    return Fixed() if grain is None else Grained(grain)


def shared(some: Tokens, others: Tokens) -> int:
    """Return how many first tokens the two have in common."""
    length = min(len(some), len(others))
    different = np.flatnonzero(some[:length] != others[:length])
    return int(different[0]) if len(different) else length
