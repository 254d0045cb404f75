"""How fast a way could be: the time of its own build with nothing lost, as an explicit schedule.

Pure. An oracle knows all prompts and all answers' lengths beforehand, waits for nothing and does
nothing but evaluate tokens; what a token costs was measured on the same build (`Rates`). It keeps
the steps apart: no prompt of a step is read before the one before is answered. What else it takes
for granted:

- One thing is evaluated at a time: prompts in the chunk size that was fastest alone, or one token
  of each answer under way. A server may mix both in one batch and so be a little faster than this.
- A token's price depends on its position (prompts) and on the number of rows (answers, at the
  length that is usual here), and on nothing else. Drawing a token costs nothing.
- Rows may be padded where more rows take less time.
- A batched engine keeps each prefix for ever, and copying one costs nothing (`batched_oracle`).
- A slot of a server, or the one sequence of a locked engine, keeps its last prompt only, and
  nothing is shared between slots (`chained_oracle.py`).
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scheduler.backends.llama_prefix import shared_length

Tokens = tuple[int, ...]
_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt as tokens, and how many tokens its answer has."""

    tokens: Tokens
    output: int


Steps = Sequence[Sequence[Ask]]
"""What is asked together, step after step."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What a build needs for its work, as measured.

    Attributes:
        prefill: Pairs of a number of tokens and the seconds that a prompt of so many takes from
            nothing, ascending.
        step_s: Seconds of a decode step by its number of rows.
    """

    prefill: tuple[tuple[int, float], ...]
    step_s: Mapping[int, float]

    def read_s(self, start: int, end: int) -> float:
        """Return the seconds that the tokens at positions `start` to `end` - 1 take."""
        return self._until_s(end) - self._until_s(start)

    def _until_s(self, tokens: int) -> float:
        before = (0, 0.0)
        points = self.prefill
        for index, point in enumerate(points):
            if tokens <= point[0] or index == len(points) - 1:
                slope = (point[1] - before[1]) / (point[0] - before[0])
                return before[1] + slope * (tokens - before[0])
            before = point
        raise ValueError("no prefill was measured")

    def decode_s(self, rows: int) -> float:
        """Return the seconds of a step with so many rows, padded where that is faster.

        Raises:
            ValueError: Steps of so many rows were not measured.
        """
        wider = [took for measured, took in self.step_s.items() if measured >= rows]
        if not wider:
            raise ValueError(f"steps of {rows} rows were not measured: {sorted(self.step_s)}")
        below = max((measured for measured in self.step_s if measured <= rows), default=None)
        above = min(measured for measured in self.step_s if measured >= rows)
        if below is None or below == above:
            return min(wider)
        share = (rows - below) / (above - below)
        between = self.step_s[below] + share * (self.step_s[above] - self.step_s[below])
        return min(between, *wider)


@dataclass(frozen=True, slots=True)
class Oracle:
    """What an oracle needs.

    Attributes:
        prefill_s: Seconds for reading prompts.
        decode_s: Seconds for writing answers.
        prompt_tokens: Tokens of all prompts.
        computed_tokens: How many of them are evaluated in the time that it needs.
        fewest_tokens: How many are, where it does not matter how long that takes; exact for the
            prefix tree, the fewest that was found for slots that share nothing.
        slots: How many slots the schedule uses.
    """

    prefill_s: float
    decode_s: float
    prompt_tokens: int
    computed_tokens: int
    fewest_tokens: int
    slots: int

    @property
    def seconds(self) -> float:
        """The time of the whole work."""
        return self.prefill_s + self.decode_s


def batched_oracle(steps: Steps, slots: int, rates: Rates) -> Oracle:
    """Return what an engine needs that copies prefixes between its sequences.

    Each token of the prefix tree of all prompts so far is evaluated once, and at least the last
    one of each prompt, from whose scores the answer begins. Then the answers of the step are
    written, the longest first, and a slot that is free takes the next one at once.

    Args:
        steps: What is asked.
        slots: How many answers are written at once at most.
        rates: What was measured.
    """
    computed, prefill_s = 0, 0.0
    held: list[Tokens] = []
    for step in steps:
        for ask in sorted(step, key=lambda ask: ask.tokens):
            start = min(__longest_shared(held, ask.tokens), len(ask.tokens) - 1)
            computed += len(ask.tokens) - start
            prefill_s += rates.read_s(start, len(ask.tokens))
            insort(held, ask.tokens)
    best = min(range(1, slots + 1), key=lambda used: _packed_s(steps, used, rates))
    decode_s = _packed_s(steps, best, rates)
    return Oracle(prefill_s, decode_s, prompt_tokens_of(steps), computed, computed, best)


def _packed_s(steps: Steps, slots: int, rates: Rates) -> float:
    """Return the seconds that writing the answers takes, the longest first."""
    seconds = 0.0
    for step in steps:
        loads = [0] * min(slots, max(1, len(step)))
        for length in sorted((ask.output - 1 for ask in step), reverse=True):
            heapq.heapreplace(loads, loads[0] + length)
        seconds += rows_s(loads, rates)
    return seconds


def rows_s(loads: Iterable[int], rates: Rates) -> float:
    """Return the seconds of decode steps in which slots with so much to write all go on."""
    seconds, done = 0.0, 0
    ascending = sorted(load for load in loads if load > 0)
    for index, load in enumerate(ascending):
        if load > done:
            seconds += (load - done) * rates.decode_s(len(ascending) - index)
            done = load
    return seconds


def __longest_shared(held: Sequence[Tokens], tokens: Tokens) -> int:
    place = bisect_left(held, tokens)
    return max(
        (shared_tokens(one, tokens) for one in held[max(0, place - 1) : place + 1]), default=0
    )


def shared_tokens(one: Tokens, other: Tokens) -> int:
    """Return how many leading tokens the two have in common, by whole blocks first."""
    at = 0
    while at + _BLOCK <= len(one) and one[at : at + _BLOCK] == other[at : at + _BLOCK]:
        at += _BLOCK
    return at + shared_length(one[at : at + _BLOCK], other[at : at + _BLOCK])


def prompt_tokens_of(steps: Steps) -> int:
    """Return the number of tokens of all prompts."""
    return sum(len(ask.tokens) for step in steps for ask in step)
