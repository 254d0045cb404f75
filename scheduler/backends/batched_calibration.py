"""Which row counts of a decode step agree bit for bit: found by comparing scores, here and now.

Where prompts may be cut is found beside it, in `batched_grain.py`.

It is a property of the kernels that this build picks on this processor for this model, so it is
measured and not assumed. Probes of different lengths are put into neighbouring sequences and
evaluated in steps of each row count, at several places; their scores are compared by digest.
What is found follows from the machine and the file alone, never from the configured slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from scheduler.backends.batched_cuts import Grain
from scheduler.backends.batched_grain import GRAINS, GrainSearch
from scheduler.backends.batched_rows import agreeing
from scheduler.backends.llama_library import Context, LoadedModel
from scheduler.backends.llama_prefix import BORDER_STEP, CHUNK_TOKENS
from scheduler.backends.llama_rows import Row
from scheduler.backends.score_digest import score_digest
from scheduler.errors import ServerFault

Level = Literal["invariant", "repeatable"]

CALIBRATION_VERSION = 8
"""Changes with what is tried and with how the engine evaluates, so that older findings do not
count and older answers are not continued."""

CALIBRATED_ROWS = (1, 2, 4, 8, 12, 16)
"""The row counts that are always tried, however many slots there are.

Kernels work on groups of 4 rows and take others for what is left over. Those often, but not
always, give the same bits, which a few probes do not tell: once 9 rows seemed to agree with 8.
"""

LARGE_MODEL_GRAINS = (Grain(16, 16), Grain(1, 64), Grain(16, 64), Grain(64, 64))
"""Where a large model's prompts are tried to be cut."""

LARGE_MODEL_BYTES = 1 << 30
"""Of a model whose file is larger, fewer steps and shorter probes are tried."""

_LONGEST = 530
_LONGEST_OF_LARGE_MODEL = 280
_STEPS = 12
_LARGE_MODEL_STEPS = 3


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was found.

    Attributes:
        level: `invariant`: answers do not depend on what else is in the batch. `repeatable`: no
            row count is known for which that is so, not even one row, so that one prompt is
            answered after the other, in the plan's order.
        rows: The row counts that agree with each other, ascending.
        tried: The row counts that were compared.
        comparisons: How many rows of scores were compared.
        grain: How prompts may be cut without changing bits; None where nothing is known, and
            they are cut at fixed places.
        wider: Larger row counts that agree with these, for more than the usual slots.
        wider_tried: Up to how many rows such were looked for; 0 for not at all.
    """

    level: Level
    rows: tuple[int, ...]
    tried: tuple[int, ...]
    comparisons: int
    grain: Grain | None = None
    wider: tuple[int, ...] = ()
    wider_tried: int = 0

    def rows_for(self, slots: int) -> tuple[int, ...] | None:
        """Return the row counts that agree for so many slots, None where not all were tried."""
        if not self.rows or slots <= max(self.rows) or max(self.rows) == 1:
            return self.rows
        top = widest(slots)
        if top > self.wider_tried:
            return None
        return (*self.rows, *(count for count in self.wider if count <= top))

    def facts(self) -> dict[str, Any]:
        """Return it as plain JSON data."""
        return {
            "level": self.level,
            "rows": list(self.rows),
            "tried": list(self.tried),
            "comparisons": self.comparisons,
            "grain": None if self.grain is None else asdict(self.grain),
            "version": CALIBRATION_VERSION,
            "chunk_tokens": CHUNK_TOKENS,
            **({} if self.grain else {"border_step": BORDER_STEP}),
        }


def probes_need(model_bytes: int) -> tuple[int, int]:
    """Return how many sequences a calibration takes, and how many tokens each of them has."""
    return max(CALIBRATED_ROWS) + 2, _longest(model_bytes) + 2 * _STEPS


def _longest(model_bytes: int) -> int:
    return _LONGEST_OF_LARGE_MODEL if model_bytes > LARGE_MODEL_BYTES else _LONGEST


def calibrate(model: LoadedModel, model_bytes: int) -> Calibration:
    """Find the row counts that agree; this takes seconds with a small model.

    Args:
        model: The loaded model.
        model_bytes: The size of its file, which decides how much is tried.

    Raises:
        ConfigError: There is no room for the probes.
        ServerFault: llama.cpp failed.
    """
    large = model_bytes > LARGE_MODEL_BYTES
    tried = CALIBRATED_ROWS
    longest = _longest(model_bytes)
    probes = _Probes(model, max(tried) + 2, longest=longest)
    try:
        rows = agreeing({count: probes.signature(count) for count in tried})
        rows = probes.hold_on(rows, _LARGE_MODEL_STEPS if large else _STEPS)
        if not rows or not probes.move(max(rows)):
            return Calibration("repeatable", (), tried, probes.comparisons)
    finally:
        probes.close()
    search = GrainSearch(model, longest + 1)
    try:
        grain = search.find(LARGE_MODEL_GRAINS if large else GRAINS)
    finally:
        search.close()
    comparisons = probes.comparisons + search.comparisons
    return Calibration("invariant", rows, tried, comparisons, grain)


def widest(slots: int) -> int:
    """Return the most rows of a step for so many slots: whole groups of 4."""
    return -(-slots // 4) * 4


def extend(model: LoadedModel, model_bytes: int, found: Calibration, slots: int) -> Calibration:
    """Return what was found with larger row counts that agree too, to hold `slots`.

    Args:
        model: The loaded model.
        model_bytes: The size of its file, which decides how much is tried.
        found: What was found before, with rows that agree.
        slots: How many answers are to be written at once.

    Raises:
        ConfigError: There is no room for the probes.
        ServerFault: llama.cpp failed.
    """
    known, top = max(found.rows), widest(slots)
    more = [count for count in range(4, top + 1, 4) if count > max(*found.tried, known)]
    if not more:
        return replace(found, wider_tried=top)
    large = model_bytes > LARGE_MODEL_BYTES
    probes = _Probes(model, top + 2, longest=_longest(model_bytes))
    try:
        gave = {count: probes.signature(count) for count in (known, *more)}
        same = [n for n in more if agreeing({known: gave[known], n: gave[n]}) == (known, n)]
        steps = _LARGE_MODEL_STEPS if large else _STEPS
        steady: tuple[int, ...] = ()
        while same and known not in (steady := probes.hold_on((known, *same), steps)):
            same.pop()  # all are compared with the most rows, so it may be these that differ
    finally:
        probes.close()
    return replace(found, wider=tuple(n for n in same if n in steady), wider_tried=top)


class _Probes:
    """Sequences of fixed tokens whose scores are compared.

    Args:
        model: The loaded model.
        count: How many sequences.
        longest: Tokens of the longest one.
    """

    def __init__(self, model: LoadedModel, count: int, *, longest: int) -> None:
        self._model = model
        self._count = count
        # Lengths on both sides of 256, by which llama.cpp rounds up the keys that it looks at.
        self._lengths = [3 + 7 * number % 29 for number in range(count)]
        self._lengths[count // 2] = min(longest, 270)
        self._lengths[-1] = longest
        self._context = Context(
            model, sequences=count, n_ctx=longest + 2 * _STEPS, most_rows=CHUNK_TOKENS
        )
        self.comparisons = 0
        try:
            for number in range(count):
                self._read(number, number)
        except BaseException:
            self.close()
            raise

    def signature(self, rows: int) -> dict[int, frozenset[str]]:
        """Return what each probe gives in steps of `rows` rows, at several places."""
        found: dict[int, set[str]] = {}
        last = self._count - rows
        for start in {0, 1, last} if rows % 4 == 0 else {1, last}:
            for number, digest in self._step(range(start, start + rows), 0).items():
                found.setdefault(number, set()).add(digest)
            self._back()
        return {number: frozenset(digests) for number, digests in found.items()}

    def hold_on(self, rows: Sequence[int], steps: int) -> tuple[int, ...]:
        """Return those of `rows` whose steps go on giving what steps of the most rows give."""
        if not rows:
            return ()
        most = max(rows)
        expected = self._walk(most, most, steps)
        return tuple(
            count
            for count in rows
            if all(
                digest == expected[key] for key, digest in self._walk(count, most, steps).items()
            )
        )

    def _walk(self, rows: int, most: int, steps: int) -> dict[tuple[int, int], str]:
        """Return what each probe of the first `most` gives in each of several steps."""
        digests: dict[tuple[int, int], str] = {}
        for step in range(steps):
            for start in range(0, most - rows + 1, rows):
                for number, digest in self._step(range(start, start + rows), step).items():
                    digests[step, number] = digest
        self._back()
        return digests

    def move(self, rows: int) -> bool:
        """Whether a copied probe, and one read again in a used sequence, give the same."""
        longest = self._count - 1
        start = self._count - rows
        before = self._step(range(start, self._count), 0)[longest]
        self._back()
        self._context.copy(longest, start)
        copied = self._digest_of_moved(longest, start, rows)
        self._context.keep(start, 0)
        again = self._read(longest, start)
        read = self._digest_of_moved(longest, start, rows)
        # The first chunk copied, the rest read behind it, as with a prefix that is kept.
        self._context.copy(longest, start)
        self._context.keep(start, CHUNK_TOKENS)
        warm = self._read(longest, start, kept=CHUNK_TOKENS)
        self.comparisons += 1
        return before == copied == read and again == warm

    def close(self) -> None:
        """Free everything."""
        self._context.close()

    def _digest_of_moved(self, probe: int, sequence: int, rows: int) -> str:
        """Return the digest of `probe` from the first row of a step, where it was moved to."""
        window = range(sequence, sequence + rows)
        lengths = [self._lengths[number] for number in window]
        lengths[0] = self._lengths[probe]
        tokens = [_token(self._model, number, -1) for number in window]
        tokens[0] = _token(self._model, probe, -1)
        self._evaluate(zip(tokens, lengths, window, [True] * rows, strict=True))
        digest = self._digest(0)
        for number, length in zip(window, lengths, strict=True):
            self._context.keep(number, length)
        return digest

    def _read(self, probe: int, sequence: int, *, kept: int = 0) -> str:
        """Read a probe into a sequence, chunk by chunk; return the digest of its last row."""
        for start in range(kept, self._lengths[probe], CHUNK_TOKENS):
            end = min(start + CHUNK_TOKENS, self._lengths[probe])
            self._evaluate(
                (_token(self._model, probe, place), place, sequence, place == end - 1)
                for place in range(start, end)
            )
        return self._digest(-1)

    def _step(self, window: range, step: int) -> dict[int, str]:
        """Evaluate one more token of each probe of `window`; return the digests of the scores."""
        self._evaluate(
            (_token(self._model, number, -1 - step), self._lengths[number] + step, number, True)
            for number in window
        )
        return {number: self._digest(row) for row, number in enumerate(window)}

    def _back(self) -> None:
        """Drop all steps."""
        for number in range(self._count):
            self._context.keep(number, self._lengths[number])

    def _evaluate(self, rows: Iterable[Row]) -> None:
        code = self._context.evaluate(list(rows))
        if code != 0:
            raise ServerFault(f"llama.cpp failed while it was calibrated (code {code})")

    def _digest(self, row: int) -> str:
        self.comparisons += 1
        return score_digest(self._model, self._context, row)


def _token(model: LoadedModel, probe: int, place: int) -> int:
    """Return a token that follows from its place alone."""
    return (7919 * (probe + 1) + 104729 * (place + 17)) % model.vocabulary_size
