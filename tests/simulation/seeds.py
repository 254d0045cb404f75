"""Runs worlds by their seeds, says how to repeat one that fails, and keeps those that did."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import anyio

from tests import virtual_time
from tests.simulation.world import World

_PLACED = "one that had a slot and was sent last counted as waiting"
KEPT: dict[int, str] = dict.fromkeys((817, 6129, 8544, 17031, 18169), _PLACED)
"""Seeds that have failed once, with what was wrong; they are run in every test run."""


def run_world(seed: int, backend: str, directory: Path) -> World:
    """Run the world of `seed` on `backend`, leaving nothing behind, and return it."""
    virtual_time.seed_schedule(seed)

    async def main() -> World:
        world = World(seed, directory)
        tasks = len(anyio.get_running_tasks())
        await world.live()
        for _ in range(3):  # trio's and asyncio's own book-keeping of what has just ended
            await anyio.lowlevel.checkpoint()
        assert len(anyio.get_running_tasks()) == tasks, "tasks are left"
        return world

    with tempfile.TemporaryDirectory(dir=directory) as own:
        directory = Path(own)
        return virtual_time.run(backend, main)


def repeat_command(seed: int, backend: str) -> str:
    """Return what to type to run this one world again."""
    return f"python -m tests.simulation.soak --first {seed} --seeds 1 --backend {backend}"


def run_seeds(seeds: range | list[int], backend: str, directory: Path) -> Counter[str]:
    """Run the worlds of `seeds` and return what happened in them, counted."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        try:
            world = run_world(seed, backend, directory)
        except BaseException:
            print(f"seed {seed} fails on {backend}; to repeat it:\n{repeat_command(seed, backend)}")
            raise
        counts["lives"] += world.lives
        counts += world.watch.counts
    return counts
