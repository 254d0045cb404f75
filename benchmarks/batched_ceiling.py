"""How fast the batched engine could be: what this build evaluates, and what an oracle needs.

    python benchmarks/batched_ceiling.py MODEL.gguf [--threads N]

Prints the prompt tokens per second by the size of the chunks that are read, and the tokens of
answers per second by the rows of a step, behind about 1,000 tokens, for each choice of
kernels in turns. `batched_engine.py --part speed` measures the same in
turns with the engine, and compares it with `oracle_s`.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import llama_cpp

from scheduler.backends.llama_library import Context, LoadedModel
from scheduler.backends.native_model import NativeSpec

CHUNKS = (64, 128, 256, 512)
ROWS = (1, 2, 4, 8, 12, 16)
KERNELS = {
    "all scores at once, weights repacked": (False, True),
    "all scores at once, not repacked": (False, False),
    "one pass (flash attention), weights repacked": (True, True),
    "one pass (flash attention), not repacked": (True, False),
}
HALF = 512
"""Prefill is measured for the first so many tokens, and for the next so many."""


@dataclass(frozen=True)
class Rates:
    """Seconds by size: of one token of a chunk, for each half; of one step."""

    first_s: dict[int, float]
    second_s: dict[int, float]
    step_s: dict[int, float]

    @property
    def prefill_tokens_s(self) -> dict[int, float]:
        """Tokens per second by the size of a chunk, over both halves."""
        return {size: 2 / (self.first_s[size] + self.second_s[size]) for size in self.first_s}

    @property
    def decode_tokens_s(self) -> dict[int, float]:
        """Tokens per second by the rows of a step."""
        return {rows: rows / seconds for rows, seconds in self.step_s.items()}


class Ceiling:
    """A context that is timed; the first time warms up."""

    def __init__(self, model: LoadedModel) -> None:
        self._context = Context(model, sequences=max(ROWS), n_ctx=2048, most_rows=max(CHUNKS))
        self._rates: list[Rates] = []
        self._measure()

    def measure(self) -> None:
        """Time everything once more."""
        self._rates.append(self._measure())

    def rates(self) -> Rates:
        """Return the medians of what was timed."""

        def medians(name: str) -> dict[int, float]:
            found = [getattr(rates, name) for rates in self._rates]
            return {size: statistics.median(one[size] for one in found) for size in found[0]}

        return Rates(medians("first_s"), medians("second_s"), medians("step_s"))

    def close(self) -> None:
        """Free everything."""
        self._context.close()

    def _measure(self) -> Rates:
        first, second = {}, {}
        for size in CHUNKS:
            self._context.keep(0, 0)
            first[size], second[size] = self._read(0, size), self._read(HALF, size)
        self._context.keep(0, 1000)
        for other in range(1, max(ROWS)):
            self._context.copy(0, other)
        self._step(1)  # llama.cpp copies when it evaluates next
        return Rates(
            first, second, {rows: min(self._step(rows), self._step(rows)) for rows in ROWS}
        )

    def _read(self, start: int, size: int) -> float:
        began = perf_counter()
        for at in range(start, start + HALF, size):
            self._context.read([7 + i for i in range(at, at + size)], at, 0)
        return (perf_counter() - began) / HALF

    def _step(self, rows: int) -> float:
        began = perf_counter()
        self._context.evaluate([(9, 1000, number, True) for number in range(rows)])
        took = perf_counter() - began
        for number in range(rows):
            self._context.keep(number, 1000)
        return took


def fewest_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens must be read if all that any prompt before had is there."""
    known: set[tuple[int, ...]] = set()
    total = 0
    for prompt in prompts:
        tokens = tuple(prompt)
        low, high = 0, len(tokens) - 1
        while low < high:  # how many first tokens are known
            middle = (low + high + 1) // 2
            low, high = (middle, high) if tokens[:middle] in known else (low, middle - 1)
        total += len(tokens) - low
        known.update(tokens[:end] for end in range(1, len(tokens) + 1))
    return total


def oracle_s(
    rates: Rates, prompts: Sequence[Sequence[int]], written: Sequence[int], slots: int
) -> float:
    """Return the seconds that prompts and answers need with no overhead and no waiting.

    Only the fewest tokens are read, each at the rate of the best chunk size; what is read first
    is the cheaper half. Each step has exactly the rows that still have something to write (the
    next measured number of them), and a place that is free is taken in no time.
    """
    fewest = fewest_tokens(prompts)
    whole = sum(map(len, prompts))
    first = min(rates.first_s.values())
    second = min(rates.second_s.values())
    early = sum(min(len(prompt), HALF) for prompt in prompts)
    # What need not be read is at the beginning of a prompt.
    read_early = max(0, early - (whole - fewest))
    seconds = read_early * first + (fewest - read_early) * second
    waiting = [count - 1 for count in written if count > 1]  # the first comes with the prompt
    writing: list[int] = []
    while waiting or writing:
        while waiting and len(writing) < slots:
            writing.append(waiting.pop(0))
        seconds += min(cost for rows, cost in rates.step_s.items() if rows >= len(writing))
        writing = [rest - 1 for rest in writing if rest > 1]
    return seconds


def main() -> None:
    """Measure one model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is timed")
    options = parser.parse_args()
    models = {
        name: LoadedModel(llama_cpp, NativeSpec(options.model, 2048, options.threads, 0, *kernels))
        for name, kernels in KERNELS.items()
    }
    ceilings = {name: Ceiling(model) for name, model in models.items()}
    for _ in range(options.rounds):
        for ceiling in ceilings.values():
            ceiling.measure()
    print(f"{os.cpu_count()} {platform.machine()} cores, {options.threads} threads")
    for name, ceiling in ceilings.items():
        rates = ceiling.rates()
        print(f"{name}:")
        for kind, found in (("read", rates.prefill_tokens_s), ("wrote", rates.decode_tokens_s)):
            print(f"  {kind} " + ", ".join(f"{size}: {rate:.0f}" for size, rate in found.items()))
        ceiling.close()
        models[name].close()


if __name__ == "__main__":
    main()
