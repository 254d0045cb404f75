"""What the scheduler itself costs: CPU milliseconds per request, without a model.

    python benchmarks/overhead.py [--slots 64] [--rounds 5] [--json]

The fake backend answers at once, so what is measured is queueing, planning,
dispatch, the checks and the event loop, together with the making of the fake's
answer. Twice as many requests should cost twice as much.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time

import anyio

from scheduler.backends.fake import FakeBackend
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.types import Message, Request

SIZES = (10_000, 20_000)


def requests_of(count: int) -> list[Request]:
    """Return `count` requests with four different system messages."""
    return [
        Request(
            f"agent-{i}",
            (
                Message("system", f"You are an agent of kind {i % 4}. " * 20),
                Message("user", f"Question {i}: what do you do?"),
            ),
        )
        for i in range(count)
    ]


async def cpu_s(count: int, slots: int) -> float:
    """Return the process's CPU seconds for one step of `count` requests."""
    requests = requests_of(count)
    async with Scheduler(FakeBackend(slots=slots), SchedulerConfig()) as scheduler:
        began = time.process_time()
        await scheduler.run_step(requests)
        return time.process_time() - began


def measure(slots: int, rounds: int) -> dict[str, object]:
    """Return the machine and the medians over `rounds`, sizes taking turns."""
    samples: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(rounds):
        for size in SIZES:
            samples[size].append(anyio.run(cpu_s, size, slots))
    seconds = {size: statistics.median(values) for size, values in samples.items()}
    ratio = statistics.median(more / less for less, more in zip(*samples.values(), strict=True))
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "slots": slots,
        "rounds": rounds,
        "cpu_ms_per_request": {
            str(size): round(1000 * total / size, 4) for size, total in seconds.items()
        },
        "ratio": round(ratio, 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=64, help="slots of the fake backend")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the median counts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.slots < 1 or options.rounds < 1:
        parser.error("--slots and --rounds must be 1 or more")
    found = measure(options.slots, options.rounds)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print("{cores} cores, {machine}, Python {python}; {slots} slots".format(**found))
    for size, cost in found["cpu_ms_per_request"].items():  # type: ignore[attr-defined] # made above
        print(f"{int(size):>7,} requests: {cost:.3f} ms CPU per request")
    print(
        f"twice the requests, {found['ratio']} times the CPU (medians of {options.rounds} rounds)"
    )


if __name__ == "__main__":
    main()
