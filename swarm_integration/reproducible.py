"""Makes a simulation a function of its scenario, its seed and its model's answers.

SWARM draws ids, times and some random numbers from the machine, and iterates sets
in an order that changes with PYTHONHASHSEED. While a `Reproducible` is active, the
code that runs in its context gets them from the run's seed and a logical clock.
Other threads, other runs and every other library see nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from scheduler.errors import SchedulerError
from swarm_integration.compat_repairs import SwarmModules
from swarm_integration.sources import Sources, active_sources

# SWARM's modules exist once per process, so what is put into them has one owner.
_swarm_modules = SwarmModules()


class Reproducible:
    """The repairs of one run.

    Args:
        seed: The run's seed.
        seconds_per_step: How much simulated time a step takes. It decides ages and
            the contagion velocity, which SWARM counts per minute.

    Raises:
        ValueError: `seconds_per_step` is not above 0.
    """

    def __init__(self, seed: int, *, seconds_per_step: float = 60.0) -> None:
        if not seconds_per_step > 0:
            raise ValueError(f"seconds_per_step must be above 0, got {seconds_per_step!r}")
        self._seed = seed
        self._seconds_per_step = seconds_per_step
        self._sources = Sources(seed, seconds_per_step)
        self._seeded: list[str] = []

    @property
    def repairs(self) -> tuple[str, ...]:
        """What was repaired, as the manifest lists it; complete after `prepare_scenario`."""
        return (
            "ids: from the run seed",
            f"clock: logical, {self._seconds_per_step:g} s per step",
            "feed: ranked at one instant",
            "sets: iterated in sorted order",
            "random: unseeded and module-level draws from the run seed",
            *(f"seed: the run's for {name}" for name in self._seeded),
        )

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the code of this context draw from the run, for the time of the block.

        May be entered again, in another context too: build within one block and
        run within the next, and the run goes on where it was.

        Raises:
            CompatError: This SWARM makes its ids or times in a way that is not known.
        """
        with _swarm_modules.repaired():
            token = active_sources.set(self._sources)
            try:
                yield
            finally:
                active_sources.reset(token)

    def prepare_scenario(self, scenario: Any) -> None:
        """Give the run's seed to the parts of a scenario that have a seed and name none.

        Councils keep theirs: without one, each of their shuffles is seeded from the
        run, and so differs from the one before it, as it does upstream.

        Args:
            scenario: Upstream's `ScenarioConfig`, before `build_orchestrator`.
        """
        config = scenario.orchestrator_config
        parts = {"simulation": config, **vars(config)}
        for name, part in parts.items():
            if getattr(part, "seed", self._seed) is None:
                part.seed = self._seed
                self._seeded.append(name.removesuffix("_config"))

    def prepare(self, orchestrator: Any) -> None:
        """Take over a simulation that was built while this run was active.

        Raises:
            SchedulerError: It was built outside, so its ids are random.
        """
        if not self._sources.clock.covers(orchestrator.state.created_at):
            raise SchedulerError(
                "the simulation was built before its run was made reproducible, so its ids are "
                "random. Build it within `Reproducible.active()`"
            )
        self._sources.clock.steps_per_epoch = orchestrator.config.steps_per_epoch
        _swarm_modules.refresh()

    def set_time(self, epoch: int, step: int) -> None:
        """Move the clock on to the start of a step."""
        self._sources.clock.move_to(epoch, step)
        _swarm_modules.refresh()
