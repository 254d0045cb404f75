"""What it costs to store an answer before it is used: milliseconds per commit.

    python benchmarks/journal.py [--answers 2000] [--json]

One store after the other, as an engine with one slot has them, in a directory of its own
under the current one. `normal` writes without waiting for the disk, `full` waits.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio

from scheduler.journal import Journal, Synchronous
from scheduler.types import Answer, FinishReason, Message, Outcome, Request, Usage

TEXT = "a word of an answer " * 40


async def commit_ms(path: Path, synchronous: Synchronous, answers: int) -> list[float]:
    """Return the milliseconds of each of `answers` stores."""
    journal = Journal(path, synchronous=synchronous)
    await journal.open()
    samples = []
    for number in range(answers):
        request = Request(f"agent-{number}", (Message("user", f"Question {number}"),))
        answer = Answer(TEXT, Outcome.OK, FinishReason.STOP, seed=number, usage=Usage(1500, 200))
        began = time.perf_counter()
        await journal.store(request, answer, "model")
        samples.append(1000 * (time.perf_counter() - began))
    await journal.aclose()
    return samples


def percentile(samples: list[float], share: float) -> float:
    """Return the nearest-rank percentile."""
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


def measure(answers: int) -> dict[str, Any]:
    """Return the machine and the times of both settings."""
    found: dict[str, Any] = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "answers": answers,
    }
    settings: tuple[Synchronous, ...] = ("normal", "full")
    with tempfile.TemporaryDirectory(prefix="journal-", dir=Path.cwd()) as directory:
        for synchronous in settings:
            path = Path(directory) / synchronous
            samples = anyio.run(commit_ms, path, synchronous, answers)
            found[synchronous] = {
                "p50_ms": round(statistics.median(samples), 3),
                "p99_ms": round(percentile(samples, 0.99), 3),
                "max_ms": round(max(samples), 3),
            }
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=2000, help="how many are stored")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.answers < 1:
        parser.error("--answers must be 1 or more")
    found = measure(options.answers)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print("{cores} cores, {machine}, Python {python}; {answers} answers".format(**found))
    for synchronous in ("normal", "full"):
        times = found[synchronous]
        print("{}: p50 {p50_ms} ms, p99 {p99_ms} ms, max {max_ms} ms".format(synchronous, **times))


if __name__ == "__main__":
    main()
