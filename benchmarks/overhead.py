"""What the scheduler itself costs: CPU milliseconds per request, without a model.

    python benchmarks/overhead.py [--slots 64] [--rounds 5] [--sizes 10000,20000,50000,100000]
                                  [--journal] [--json]

The fake backend answers at once, so what is measured is queueing, planning, dispatch, the
checks and the event loop, together with the making of the fake's answer; what that costs alone
is measured beside it. Twice as many requests should cost twice as much. Also told is what a
waiting request holds in memory, beside the request itself.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import anyio

from scheduler.backends.fake import FakeBackend
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.journal import Journal
from scheduler.types import Message, Request

SIZES = (10_000, 20_000, 50_000, 100_000)
FAKE_ALONE = 10_000
WAITING = 4_000
"""How many wait while memory is measured: less than a queue holds."""


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


async def cpu_s(count: int, slots: int, journal: Journal | None = None) -> float:
    """Return the process's CPU seconds for one step of `count` requests."""
    requests = requests_of(count)
    scheduler = Scheduler(FakeBackend(slots=slots), SchedulerConfig(), journal=journal)
    async with scheduler:
        gc.collect()
        began = time.process_time()
        await scheduler.run_step(requests)
        return time.process_time() - began


async def journal_cpu_s(count: int, slots: int) -> float:
    """Return the same with each answer stored, in a directory under the current one."""
    with tempfile.TemporaryDirectory(prefix="overhead-", dir=Path.cwd()) as directory:
        journal = Journal(Path(directory) / "journal.sqlite3")
        await journal.open()
        try:
            return await cpu_s(count, slots, journal)
        finally:
            await journal.aclose()


async def fake_cpu_s(count: int) -> float:
    """Return the CPU seconds that the fake backend needs for `count` answers."""
    requests = requests_of(count)
    backend = FakeBackend(slots=1)
    gc.collect()
    began = time.process_time()
    for request in requests:
        await backend.generate(request, seed=0, slot=0)
    return time.process_time() - began


async def waiting_bytes(count: int) -> float:
    """Return the bytes that a request holds while it waits, beside the request itself."""
    requests = requests_of(count + 1)
    for request in requests:
        _ = request.group, request.prompt_chars  # kept by the request from then on
    backend = FakeBackend(slots=1, delay=lambda *_: 3600.0)
    async with (
        Scheduler(backend, SchedulerConfig(queue_limit=count + 1)) as scheduler,
        anyio.create_task_group() as tasks,
    ):
        gc.collect()
        tracemalloc.start()
        tasks.start_soon(scheduler.run_step, requests)
        while scheduler.in_flight == 0:
            await anyio.lowlevel.checkpoint()
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        tasks.cancel_scope.cancel()
    return held / count


def measure(slots: int, rounds: int, sizes: tuple[int, ...], *, journal: bool) -> dict[str, Any]:
    """Return the machine and the medians over `rounds`, sizes taking turns."""
    samples: dict[int, list[float]] = {size: [] for size in sizes}
    alone: list[float] = []
    run = journal_cpu_s if journal else cpu_s
    anyio.run(run, min(sizes[0], 500), slots)  # imports, and what is made once
    for _ in range(rounds):
        for size in sizes:
            samples[size].append(anyio.run(run, size, slots))
        alone.append(anyio.run(fake_cpu_s, min(sizes[0], FAKE_ALONE)))
    seconds = {size: statistics.median(values) for size, values in samples.items()}
    first = seconds[sizes[0]] / sizes[0]
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "slots": slots,
        "rounds": rounds,
        "journal": journal,
        "cpu_ms_per_request": {
            str(size): round(1000 * total / size, 4) for size, total in seconds.items()
        },
        "ratio_to_first": {
            str(size): round(total / size / first, 3) for size, total in seconds.items()
        },
        "fake_alone_ms": round(1000 * statistics.median(alone) / min(sizes[0], FAKE_ALONE), 4),
        "waiting_bytes": round(anyio.run(waiting_bytes, min(sizes[0], WAITING))),
    }


def sizes_of(text: str) -> tuple[int, ...]:
    """Return the sizes that an option names."""
    sizes = tuple(int(part.replace("_", "")) for part in text.split(","))
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError("sizes must be 1 or more")
    return sizes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=64, help="slots of the fake backend")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the median counts")
    parser.add_argument("--sizes", type=sizes_of, default=SIZES, help="requests of a step: N,N,...")
    parser.add_argument("--journal", action="store_true", help="store each answer")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.slots < 1 or options.rounds < 1:
        parser.error("--slots and --rounds must be 1 or more")
    found = measure(options.slots, options.rounds, options.sizes, journal=options.journal)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print("{cores} cores, {machine}, Python {python}; {slots} slots".format(**found))
    for size, cost in found["cpu_ms_per_request"].items():
        ratio = found["ratio_to_first"][size]
        print(f"{int(size):>7,} requests: {cost:.3f} ms CPU per request, {ratio:.3f} of the first")
    stored = ", each answer stored in a journal" if options.journal else ""
    print(f"medians of {options.rounds} rounds{stored}")
    print("the fake backend's answer alone: {fake_alone_ms:.3f} ms".format(**found))
    print("a waiting request: {waiting_bytes:,} bytes beside itself".format(**found))


if __name__ == "__main__":
    main()
