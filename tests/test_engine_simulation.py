"""Random delays, faults, outages and cancellations from one seed; invariants after each event.

A failure prints its seed and the command that repeats it. `tox -e soak` runs many more.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import virtual_time
from tests.simulation.seeds import KEPT, run_seeds, run_world
from tests.simulation.watchdog import EXIT_CODE

SEEDS = range(250)


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


HANGS = """
import sys, trio, anyio
from tests import virtual_time
from tests.simulation.watchdog import watchdog
with watchdog(1.0, "seed 7 hangs"):
    if sys.argv[1] == "trio":
        virtual_time.run("trio", anyio.sleep_forever)
    while True:
        pass
"""


@pytest.mark.parametrize("how", ["trio", "loop"])
def test_a_world_that_hangs_is_ended_and_named(how: str) -> None:
    command = [sys.executable, "-c", HANGS, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == EXIT_CODE
    assert done.stderr.startswith("seed 7 hangs\n")
    assert "most recent call first" in done.stderr


def test_a_soak_with_a_world_that_takes_too_long_fails_and_says_how_to_repeat_it() -> None:
    words = ["--seeds", "50", "--jobs", "1", "--backend", "trio", "--limit", "0"]
    command = [sys.executable, "-m", "tests.simulation.soak", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert re.search(r"soak --first \d+ --seeds 1 --backend trio\n", done.stderr)
