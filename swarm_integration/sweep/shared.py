"""One set of backends and slots for several runs, and each run's place at it.

The inference of all runs lives on one event loop, in the main thread. Each simulation runs
on a thread and a loop of its own, because a round is complete when nothing on its loop is
ready to run, which must be seen for each run by itself. A round crosses over as one call.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import RunEndingError
from scheduler.observe import EventLog
from scheduler.sharing import SharedLanes
from scheduler.types import Completion, Request
from swarm_integration.monitoring import Endpoint
from swarm_integration.place import Seat
from swarm_integration.startup import Common, Started

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shared:
    """What all runs of a sweep have in common.

    Attributes:
        loop: Where their inference lives.
        common: Server, backends and context.
        endpoint: Where their metrics are shown.
        lanes: Their slots and queues.
    """

    loop: asyncio.AbstractEventLoop
    common: Common
    endpoint: Endpoint
    lanes: SharedLanes = field(default_factory=SharedLanes)


class _Broken(Exception):
    """The run has ended otherwise than it should; its scheduler is not to finish anything."""


class SharedPlace:
    """The place of one run; made and ended on the shared loop, used on the run's thread.

    Args:
        shared: What it shares.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.common: Common | None = shared.common
        self.endpoint: Endpoint | None = shared.endpoint
        self._scheduler: Scheduler | None = None
        self._error: RunEndingError | None = None
        self._waited_for: concurrent.futures.Future[Any] | None = None
        self._simulation: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None
        self._changing = threading.Lock()
        self._begun = self._stopped = False

    @property
    def in_flight(self) -> int:
        """How many requests of the run hold a slot now."""
        return 0 if self._scheduler is None else self._scheduler.in_flight

    @property
    def counted(self) -> Scheduler | None:
        """The run's scheduler, for its counters; None before the simulation has begun."""
        return self._scheduler

    def end(self, error: RunEndingError) -> None:
        """Let the run end with `error` when it asks next; what is in flight is finished."""
        self._error = error
        if self._scheduler is not None:
            self._scheduler.end(error)

    def stop(self) -> None:
        """End the run at once, wherever it waits, or as soon as it does."""
        with self._changing:
            self._stopped = True
            simulation, waited_for = self._simulation, self._waited_for
        if simulation is not None:
            loop, task = simulation
            with suppress(RuntimeError):  # it has just ended, and its loop with it
                loop.call_soon_threadsafe(task.cancel)
        elif waited_for is not None:
            waited_for.cancel()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns on the shared loop; called on the run's thread.

        Raises:
            KeyboardInterrupt: It was stopped.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._shared.loop)
        with self._changing:
            self._waited_for = future
            # What a run does after its start gives back what it has: no earlier stop ends that.
            missed = self._stopped and not self._begun
            self._begun = True
        if missed:
            future.cancel()
        try:
            return future.result()
        except concurrent.futures.CancelledError as exc:
            raise KeyboardInterrupt from exc
        finally:
            self._waited_for = None

    @asynccontextmanager
    async def scheduler(
        self, started: Started, config: SchedulerConfig, log: EventLog
    ) -> AsyncIterator[Seat]:
        """Keep a scheduler open on the shared loop for the time of the block.

        It has the settings as configured: `prefix_copies`, which a run chooses for a server
        of its own, would keep slots free that the questions of other runs can use.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is not None:
            with self._changing:
                self._simulation = loop, task
                missed = self._stopped
            if missed:
                task.cancel()
        opened: concurrent.futures.Future[Scheduler] = concurrent.futures.Future()
        over: concurrent.futures.Future[bool] = concurrent.futures.Future()
        work = self._keep_open(started, config, log, opened, over)
        open_ = asyncio.run_coroutine_threadsafe(work, self._shared.loop)
        well = False
        try:
            # Shielded: a run that is stopped meanwhile must not take the future from who opens.
            scheduler = await asyncio.shield(asyncio.wrap_future(opened))
            yield Seat(scheduler, _Across(scheduler, self._shared.loop))
            well = True
        finally:
            over.set_result(well)
            await asyncio.wrap_future(open_)
            self._simulation = None

    async def _keep_open(
        self,
        started: Started,
        config: SchedulerConfig,
        log: EventLog,
        opened: concurrent.futures.Future[Scheduler],
        over: concurrent.futures.Future[bool],
    ) -> None:
        """A scheduler's whole life, in one task, as its task group wants it."""
        backends, lanes = started.fleet.backends, self._shared.lanes
        try:
            async with Scheduler(
                backends, config, log=log, journal=started.journal, lanes=lanes
            ) as scheduler:
                self._scheduler = scheduler
                if self._error is not None:
                    scheduler.end(self._error)
                opened.set_result(scheduler)
                if not await asyncio.wrap_future(over):
                    raise _Broken
        except _Broken:
            return
        except BaseException as exc:
            if opened.done():
                raise
            opened.set_exception(exc)


class _Across:
    """Puts a run's rounds to its scheduler, which lives on another loop.

    Args:
        scheduler: Who answers.
        loop: Where it lives.
    """

    def __init__(self, scheduler: Scheduler, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduler = scheduler
        self._loop = loop

    async def run_step(self, requests: Sequence[Request]) -> list[Completion]:
        """Return the completions of `requests`; cancelled, withdraw them."""
        step = self._scheduler.run_step(requests)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(step, self._loop))
