"""Where a run's inference happens: on the run's own event loop, or on one that several share.

Backends, journal and scheduler live on the loop of a `Place`; the simulation always has a
loop of its own, since its rounds are complete when nothing on it is ready to run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.observe import EventLog
from swarm_integration.monitoring import Endpoint
from swarm_integration.rounds import Asker
from swarm_integration.startup import Common, Started

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Seat:
    """An open scheduler, and who puts a round of this run to it."""

    scheduler: Scheduler
    asker: Asker


class Place(Protocol):
    """Where a run's inference happens.

    Attributes:
        common: What the run shares with others, None when it has all to itself.
        endpoint: Where the metrics of several runs are shown, None for one of the run's own.
    """

    common: Common | None
    endpoint: Endpoint | None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns on the loop of this place; not to be called on a loop."""
        ...

    def scheduler(
        self, started: Started, config: SchedulerConfig, log: EventLog
    ) -> AbstractAsyncContextManager[Seat]:
        """Keep a scheduler open for the time of the block, which is on the simulation's loop."""
        ...


class OwnPlace:
    """The simulation's loop itself.

    Args:
        runner: Has that loop.
    """

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self.common: Common | None = None
        self.endpoint: Endpoint | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns."""
        return self._runner.run(work)

    @asynccontextmanager
    async def scheduler(
        self,
        started: Started,
        config: SchedulerConfig,  # noqa: ARG002 - what follows from the run's own server is added
        log: EventLog,
    ) -> AsyncIterator[Seat]:
        """Keep a scheduler open for the time of the block."""
        async with Scheduler(
            started.fleet.backends, started.scheduler, log=log, journal=started.journal
        ) as scheduler:
            yield Seat(scheduler, scheduler)
