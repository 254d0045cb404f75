"""Random delays, faults, outages and cancellations from one seed; invariants after each event.

A failure prints its seed and the command that repeats it. `tox -e soak` runs many more.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests import virtual_time
from tests.simulation.seeds import KEPT, run_seeds, run_world

SEEDS = range(120)


@pytest.mark.parametrize("backend", virtual_time.BACKENDS)
def test_invariants_hold_in_random_worlds(backend: str, tmp_path: Path) -> None:
    counts = run_seeds([*KEPT, *SEEDS], backend, tmp_path)
    # The worlds are worth nothing unless all of this happens in them.
    for event in (
        *("request.answered", "request.recalled", "request.retried", "request.withdrawn"),
        *("run.aborted", "backend.lost", "backend.back", "failed"),
    ):
        assert counts[event] > 0, event


@pytest.mark.parametrize("backend", virtual_time.BACKENDS)
def test_a_seed_gives_the_same_world_again(backend: str, tmp_path: Path) -> None:
    for seed in range(20):
        first, second = (run_world(seed, backend, tmp_path) for _ in range(2))
        # asyncio tells tasks of a cancellation in an order of its own.
        assert Counter(first.watch.trail) == Counter(second.watch.trail), seed
