"""Where prompts may be cut without changing bits: found by comparing scores, here and now.

llama.cpp's kernels work on groups of rows and take others for what is left over, so a prompt
that is cut between two groups gives other bits than one that is not. How large the groups are
is a property of build, processor and model; flash attention also takes another kernel for
chunks below some length. Each candidate is tried with prompts of different
lengths, cut in several ways; the scores of the last token follow from the keys and values of
all tokens before it, so one different bit anywhere shows there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from scheduler.backends.batched_cuts import Grain
from scheduler.backends.llama_library import Context, LoadedModel
from scheduler.backends.llama_prefix import CHUNK_TOKENS
from scheduler.backends.score_digest import score_digest
from scheduler.errors import ServerFault

GRAINS = (
    Grain(8, 8),
    Grain(1, 64),
    Grain(4, 64),
    Grain(8, 64),
    Grain(16, 16),
    Grain(16, 64),
    Grain(32, 32),
    Grain(32, 64),
    Grain(64, 64),
)
"""What is tried, in this order: the smaller, the more is reused."""


_COARSEST = 64

_EXTRA_STEPS = ((0, 1, 2, 3, 4, 5, 6), (7, 15, 11, 9, 13))
"""By how many steps of a grain chunks are longer than the shortest one, chunk after chunk."""


class GrainSearch:
    """Reads prompts in one piece and in several.

    Args:
        model: The loaded model.
        longest: Tokens of the longest prompt that is tried.

    Raises:
        ConfigError: There is no room for it.
    """

    def __init__(self, model: LoadedModel, longest: int) -> None:
        self._model = model
        self._longest = longest
        self._context = Context(model, sequences=1, n_ctx=longest, most_rows=CHUNK_TOKENS)
        self._whole: dict[int, str] = {}
        self.comparisons = 0

    def find(self, grains: Sequence[Grain] = GRAINS) -> Grain | None:
        """Return the first grain with which cuts change no bits, or None.

        Raises:
            ServerFault: llama.cpp failed.
        """
        return next((grain for grain in grains if self._holds(grain)), None)

    def close(self) -> None:
        """Free everything."""
        self._context.close()

    def _holds(self, grain: Grain) -> bool:
        least = 3 * grain.shortest
        for tokens in (least, *(least + odd for odd in (1, 2, 3, grain.step - 1)), self._longest):
            if tokens not in self._whole:
                self._whole[tokens] = self._read(_longest_chunks(tokens))
            for ends in _ways(tokens, grain):
                if self._read(ends) != self._whole[tokens]:
                    return False
        return self._holds_for_left_over_rows(grain) and self._holds_behind_another(grain)

    def _holds_for_left_over_rows(self, grain: Grain) -> bool:
        """Whether a first chunk may be longer than the shortest by any number of steps up to 15.

        Kernels work on groups of 4, 8 or 16 rows, and each number of rows may be left over.
        """
        shortest, tokens = grain.shortest, 3 * grain.shortest
        ends = [shortest + extra * grain.step for extra in range(16)]
        return all(
            self._read([end, tokens]) == self._whole[tokens] for end in ends if end <= 2 * shortest
        )

    def _holds_behind_another(self, grain: Grain) -> bool:
        """Whether what is kept of a prompt with an odd end is good for another one."""
        tokens = 3 * grain.shortest + 1
        for kept in (2 * grain.shortest, 2 * grain.shortest - grain.step):
            self._read([kept + 3])
            self._context.keep(0, kept)
            if self._read([tokens], start=kept) != self._whole[tokens]:
                return False
        return True

    def _read(self, ends: Sequence[int], start: int = 0) -> str:
        """Read a prompt in chunks with these ends; return the digest of the last scores."""
        self._context.keep(0, start)
        for end in ends:
            while start < end:
                stop = min(end, start + CHUNK_TOKENS)
                code = self._context.read([self._token(i) for i in range(start, stop)], start, 0)
                if code != 0:
                    raise ServerFault(f"llama.cpp failed while it was calibrated (code {code})")
                start = stop
        self.comparisons += 1
        return score_digest(self._model, self._context, -1)

    def _token(self, place: int) -> int:
        return (7919 + 104729 * place + 31 * place * place) % self._model.vocabulary_size


def _longest_chunks(tokens: int) -> list[int]:
    """Return the ends of the fewest chunks, cut where any grain allows it."""
    chunks = -(-tokens // CHUNK_TOKENS)
    size = -(-tokens // chunks // _COARSEST) * _COARSEST
    return [*range(size, tokens, size), tokens]


def _ways(tokens: int, grain: Grain) -> Iterator[list[int]]:
    """Yield ways to cut: many short chunks, chunks of all sizes, one long and one short."""
    step, shortest = grain.step, grain.shortest
    last = (tokens - shortest) // step * step
    yield [*range(shortest, last + 1, shortest), tokens]
    for extras in _EXTRA_STEPS:
        ends = [0]
        for extra in itertools.cycle(extras):
            end = ends[-1] + min(shortest + extra * step, CHUNK_TOKENS)
            if end > last:
                break
            ends.append(end)
        rest = tokens - ends[-1]
        if rest > CHUNK_TOKENS:
            ends.append(ends[-1] + rest // 2 // step * step)
        yield [*ends[1:], tokens]
    yield [last, tokens]
