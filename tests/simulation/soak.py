"""Runs many simulated worlds: `python -m tests.simulation.soak --seeds 20000`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tests import virtual_time
from tests.simulation.seeds import repeat_command, run_world
from tests.simulation.watchdog import watchdog

CHUNK = 250
LIMIT_S = 120.0
"""Seconds of real time that one world may take; it takes a few hundredths."""


def run_chunk(
    first: int, count: int, backend: str, limit_s: float = LIMIT_S
) -> tuple[Counter[str], dict[int, str]]:
    """Return what happened in `count` worlds, and the traceback of each that failed.

    A world that takes longer than `limit_s` of real time ends the process.
    """
    counts: Counter[str] = Counter()
    failed: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as directory:
        for seed in range(first, first + count):
            said = f"seed {seed} hangs on {backend}:\n{repeat_command(seed, backend)}"
            try:
                with watchdog(limit_s, said):
                    world = run_world(seed, backend, Path(directory))
            except Exception:  # noqa: BLE001 - a soak goes on and tells them all
                failed[seed] = traceback.format_exc()
            else:
                counts += world.watch.counts
                counts["worlds"] += 1
    return counts, failed


def main() -> int:
    """Run the seeds; exit code 1 when one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument(
        "--limit", type=float, default=LIMIT_S, metavar="S", help="seconds that a world may take"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--backend", choices=virtual_time.BACKENDS, help="one event loop only")
    args = parser.parse_args()
    began = time.monotonic()
    backends = [args.backend] if args.backend else list(virtual_time.BACKENDS)
    end = args.first + args.seeds
    counts: Counter[str] = Counter()
    failures = 0
    with ProcessPoolExecutor(args.jobs) as pool:
        chunks = [
            (backend, pool.submit(run_chunk, first, min(CHUNK, end - first), backend, args.limit))
            for first in range(args.first, end, CHUNK)
            for backend in backends
        ]
        for backend, chunk in chunks:
            try:
                found, failed = chunk.result()
            except BrokenProcessPool:
                print("a process has ended; the seed that it ran is named above", file=sys.stderr)
                return 1
            counts += found
            for seed, told in failed.items():
                failures += 1
                print(f"seed {seed} fails on {backend}:\n{told}{repeat_command(seed, backend)}\n")
    print(
        f"{counts.pop('worlds', 0)} worlds of {args.seeds} seeds on {' and '.join(backends)} in "
        f"{time.monotonic() - began:.0f} s, {failures} failed"
    )
    for name, count in sorted(counts.items()):
        print(f"  {name:<20} {count}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
