"""The oracle of slots that share nothing: a server's, or the one sequence of a locked engine.

Pure, like `oracle.py`, whose words and assumptions are its own too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from swarm_integration.bench.oracle import (
    Ask,
    Oracle,
    Rates,
    Steps,
    Tokens,
    prompt_tokens_of,
    rows_s,
    shared_tokens,
)


def chained_oracle(steps: Steps, slots: int, rates: Rates) -> Oracle:
    """Return what slots need that each keep their own last prompt and share nothing.

    The prompts of a step are sorted by their tokens and dealt to the slots in runs of neighbours;
    each run goes to the slot that holds most of its beginning, or to one that was not used for the
    longest time, and begins with the prompt that shares most with what is there. Runs are cut so
    that all slots write about as much, or where neighbours share least, and there are as many as
    take the least time in this step, up to a number that takes the least time in all.

    Args:
        steps: What is asked.
        slots: How many slots there are; 1 for a locked engine.
        rates: What was measured.
    """
    found = {}
    for price in (_Deal.seconds, _Deal.tokens):
        found[price] = [
            _chained(steps, slots, rates, _Choice(price, runs, least))
            for runs in range(1, slots + 1)
            for least in _LEAST_SHARED
        ]
    best = min(found[_Deal.seconds], key=lambda oracle: oracle.seconds)
    every = [oracle for oracles in found.values() for oracle in oracles]
    return replace(best, fewest_tokens=min(oracle.computed_tokens for oracle in every))


_LEAST_SHARED = (0.0, 0.25, 0.4)
"""A beginning that is a smaller part of its prompt does not decide which slot a run goes to.

Else the short beginning that all prompts of a persona have in common would drive out longer ones.
"""


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbours among sorted prompts that one slot answers, one after the other.

    Attributes:
        start: The place of the first of them.
        end: The place after the last.
        computed: Tokens that are evaluated in a slot that holds nothing.
        seconds: The time of that.
        load: Decode steps of their answers.
    """

    start: int
    end: int
    computed: int
    seconds: float
    load: int


@dataclass(frozen=True, slots=True)
class _Deal:
    """How one step is dealt: what it costs, and which place ends in which slot."""

    prefill_s: float
    decode_s: float
    computed: int
    ends: Mapping[int, int]

    def seconds(self) -> float:
        """Return the time of the step."""
        return self.prefill_s + self.decode_s

    def tokens(self) -> float:
        """Return how many prompt tokens it evaluates."""
        return self.computed


@dataclass(frozen=True, slots=True)
class _Choice:
    """How deals are chosen: by which price, of how many runs at most; see `_LEAST_SHARED`."""

    price: Callable[[_Deal], float]
    runs: int
    least: float


def _chained(steps: Steps, slots: int, rates: Rates, choice: _Choice) -> Oracle:
    prefill_s, decode_s, computed = 0.0, 0.0, 0
    held: list[Tokens] = [()] * slots
    used = [0] * slots
    for number, step in enumerate(steps, 1):
        if not step:
            continue
        asks = sorted(step, key=lambda ask: ask.tokens)
        lengths = [len(ask.tokens) for ask in asks]
        shares = [[shared_tokens(tokens, ask.tokens) for ask in asks] for tokens in held]
        deals = [
            _dealt(runs, shares, lengths, used, rates, choice.least)
            for runs in _cuts(asks, min(choice.runs, slots), rates)
        ]
        # Among equals the one with more runs, which leaves more prompts behind.
        deal = min(deals, key=lambda deal: (round(choice.price(deal), 9), -len(deal.ends)))
        for slot, place in deal.ends.items():
            held[slot], used[slot] = asks[place].tokens, number
        prefill_s += deal.prefill_s
        decode_s += deal.decode_s
        computed += deal.computed
    return Oracle(prefill_s, decode_s, prompt_tokens_of(steps), computed, computed,
                  sum(map(bool, used)))  # fmt: skip


def _cuts(asks: Sequence[Ask], most: int, rates: Rates) -> list[list[_Run]]:
    """Return sorted prompts cut into up to `most` runs, in two ways for each number of runs."""
    near = [0, *(shared_tokens(one.tokens, two.tokens) for one, two in pairwise(asks))]
    gaps = sorted(range(1, len(asks)), key=near.__getitem__)
    total = sum(ask.output for ask in asks)
    found = []
    for parts in range(1, min(most, len(asks)) + 1):
        level, done = [0], 0
        for index, ask in enumerate(asks):
            if len(level) <= done * parts // total and index > level[-1]:
                level.append(index)
            done += ask.output
        for starts in (level, [0, *sorted(gaps[: parts - 1])]):
            bounds = pairwise([*starts, len(asks)])
            found.append([_run(asks, near, start, end, rates) for start, end in bounds])
    return found


def _run(asks: Sequence[Ask], near: Sequence[int], start: int, end: int, rates: Rates) -> _Run:
    computed, seconds = 0, 0.0
    for place in range(start, end):
        length = len(asks[place].tokens)
        at = min(near[place], length - 1) if place > start else 0
        computed += length - at
        seconds += rates.read_s(at, length)
    load = sum(ask.output - 1 for ask in asks[start:end])
    return _Run(start, end, computed, seconds, load)


def _dealt(
    runs: Sequence[_Run],
    shares: Sequence[Sequence[int]],
    lengths: Sequence[int],
    used: Sequence[int],
    rates: Rates,
    least: float,
) -> _Deal:
    """Give each run a slot, the pair that shares most first.

    Args:
        runs: What is dealt.
        shares: How much of each prompt each slot holds.
        lengths: The prompts' lengths.
        used: The step in which each slot was used last, 0 for never.
        rates: What was measured.
        least: Which part of a prompt must be shared for that to count.
    """
    waiting, free = list(runs), set(range(len(shares)))
    prefill_s, computed = 0.0, 0
    ends: dict[int, int] = {}
    while waiting:
        best = (-1, 0, 0, 0)
        for place, run in enumerate(waiting):
            for slot in free:
                shared = max(shares[slot][run.start : run.end])
                counts = shared >= least * lengths[run.start]
                best = max(best, (shared if counts else 0, -used[slot], -slot, -place))
        slot, run = -best[2], waiting.pop(-best[3])
        free.remove(slot)
        held = shares[slot][run.start : run.end]
        shared = max(held)
        first = run.start + held.index(shared)
        # Of a prompt that is there as a whole the last token is evaluated again.
        whole = {
            length
            for share, length in zip(held, lengths[run.start : run.end], strict=True)
            if share == length
        }
        computed += run.computed - shared + len(whole)
        prefill_s += run.seconds - rates.read_s(0, shared)
        prefill_s += sum(rates.read_s(length - 1, length) for length in whole)
        # The first one's nearest kin come next, whoever is farthest last.
        ends[slot] = run.start if first == run.end - 1 else run.end - 1
    decode_s = rows_s([run.load for run in runs], rates)
    return _Deal(prefill_s, decode_s, computed, ends)
