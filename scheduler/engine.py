"""The engine: queues requests, runs them on slots, hands completions back in order.

`run_step` and `submit` put entries into a lane's queue; the lane's `dispatch` pairs
free slots with entries whenever either changes; `_serve` is one entry's life on its
slots; what it asks there is in `answering.py`. Only this module changes slots and
settles entries. What runs next is decided in `plan.py`. Several schedulers may share
their lanes (`sharing.py`): whoever frees a slot gives it to the next entry, and the
scheduler whose entry that is starts it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import anyio
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from scheduler.answering import Answering
from scheduler.backends.base import Backend, BackendInfo
from scheduler.config import SchedulerConfig
from scheduler.errors import RunEndingError, SchedulerClosed, SchedulerError
from scheduler.events import Events
from scheduler.journal import Journal
from scheduler.lane import Entry, Lane
from scheduler.observe import EventLog, RunStats
from scheduler.sharing import SharedLanes
from scheduler.step import Step
from scheduler.types import Completion, Request


class Scheduler:
    """Runs requests on one or several backends; use it as `async with`.

    Args:
        backends: Who answers, by the name that requests give; one backend alone
            is named `default`.
        config: Window, slots, retries and what a failure means.
        log: Where events go (`request.settled`, ...); nowhere if not given.
        journal: Keeps each answer before it is used, and answers what it has; it is
            opened and closed by whoever made it.
        lanes: The slots and queues that this scheduler shares with others on the same
            event loop; its own if not given.

    Attributes:
        stats: Counts and times of what has settled.
        lanes: The slots and queues of each backend, to look at.
    """

    def __init__(
        self,
        backends: Backend | Mapping[str, Backend],
        config: SchedulerConfig | None = None,
        *,
        log: EventLog | None = None,
        journal: Journal | None = None,
        lanes: SharedLanes | None = None,
    ) -> None:
        self._backends = dict(backends) if isinstance(backends, Mapping) else {"default": backends}
        self._config = config or SchedulerConfig()
        self.stats = RunStats()
        self._events = Events(log, self.stats, self.end)
        self._answering = Answering(self._config, self._events, self, journal)
        self.lanes: dict[str, Lane] = {}
        self._shared = lanes
        self._serving = 0
        self._steps: dict[Step, None] = {}  # in the order in which they came
        self._fatal: SchedulerError | None = None
        self._idle = anyio.Event()
        self._open = False

    def __repr__(self) -> str:
        return f"<Scheduler {list(self.lanes.values())}>"

    @property
    def info(self) -> dict[str, BackendInfo]:
        """What each backend said at its start."""
        return {name: lane.info for name, lane in self.lanes.items()}

    @property
    def in_flight(self) -> int:
        """How many requests of this scheduler hold a slot now."""
        return sum(lane.held_by(self) for lane in self.lanes.values())

    @property
    def unsettled(self) -> int:
        """How many requests of the steps under way have not settled."""
        return sum(step.unsettled for step in list(self._steps))

    @property
    def idle(self) -> bool:
        """Whether nothing runs, nothing waits and no step is under way."""
        return not self._steps and not self._serving

    async def __aenter__(self) -> Self:
        """Start the backends and open for requests.

        Raises:
            ConfigError: More slots are configured than a backend has.
            BackendUnavailable: A backend did not get ready.
        """
        self._own = SharedLanes()  # watched here, and used when none are given
        lanes = self._own if self._shared is None else self._shared
        for name, backend in self._backends.items():
            self.lanes[name] = await lanes.lane(name, backend, self._config)
        self._tasks = await anyio.create_task_group().__aenter__()
        if self._own.need_watching:
            self._tasks.start_soon(self._own.watch)
        self._open = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish what was asked, or on an exception stop it; backends stay open."""
        self._open = False
        try:
            if exc is None:
                await self.drain()
        finally:
            self._own.stop_watching()
            try:
                if not self.idle:
                    self._tasks.cancel_scope.cancel()
                    self.end(SchedulerClosed("the scheduler was closed before all was settled"))
            finally:
                # A task group wraps what it is told of into an exception group: tell it nothing.
                await self._tasks.__aexit__(None, None, None)
                for lane in self.lanes.values():
                    lane.forget(self)

    async def drain(self) -> None:
        """Return once nothing runs, nothing waits and no step is under way."""
        while not self.idle:
            await self._idle.wait()

    async def submit(self, request: Request) -> Completion:
        """Run one request; see `run_step`."""
        return (await self.run_step([request]))[0]

    async def run_step(self, requests: Sequence[Request]) -> list[Completion]:
        """Run `requests` and return their completions in the order of `requests`.

        Cancelling the caller withdraws what waits and stops what is in flight.

        Raises:
            StepAborted: A request failed for good and `on_failure` is `abort`. What
                was in flight then was still finished.
            RunEndingError: The run's retries are spent, or the journal can't be written.
            SchedulerClosed: The scheduler is not open.
            ConfigError: A request names an unknown backend or a bad schema.
        """
        self._check_open()
        requests = self._answering.accepted(requests, self.lanes)
        step = Step(requests)
        self._steps[step] = None
        try:
            await self._enqueue(step, requests)
            await step.wait()
            if step.failed:  # perhaps by a cancellation that its tasks heard of first
                await checkpoint_if_cancelled()
        except BaseException:
            self._end(step, in_flight_too=True)
            raise
        finally:
            del self._steps[step]
            self._note_idle()
        completions = step.completions()
        self._events.step_settled(step.size)
        return completions

    def _check_open(self) -> None:
        if self._fatal is not None:
            raise self._fatal
        if not self._open:
            raise SchedulerClosed("the scheduler is not open: use `async with Scheduler(...)`")

    async def _enqueue(self, step: Step, requests: Sequence[Request]) -> None:
        """Queue `requests`, waiting for room where a queue is full."""
        asked_at = anyio.current_time()
        lanes = [self.lanes[name] for name in dict.fromkeys(r.backend for r in requests)]
        for request in requests:
            lane = self.lanes[request.backend]
            if lane.queue.full_for(self):
                for each in lanes:
                    each.dispatch()
                await lane.queue.wait_room(self)
                if step.failed:  # meanwhile
                    return
            entry = Entry(request, step, self, asked_at)
            recalled = self._answering.recall(lane, entry)
            if step.failed:  # because the log broke
                return
            step.add(entry)
            if recalled is not None:
                self._settle(entry, recalled)
                continue
            lane.queue.put(entry)
            self._events.queued(lane, request)
        for lane in lanes:
            lane.dispatch()

    def start(self, lane: Lane, entry: Entry) -> None:
        """Start a request that has been given a slot; the lane calls this."""
        if entry.got_slot is not None:
            entry.got_slot.set()
        else:
            self._serving += 1
            self._tasks.start_soon(self._serve, lane, entry)
        self.stats.saw_in_flight(self.in_flight)

    async def _serve(self, lane: Lane, entry: Entry) -> None:
        """Serve `entry`, then what gets the slot that it leaves: a task each would cost more."""
        following: Entry | None = entry
        try:
            while following is not None:
                await self._serve_one(lane, following)
                following = lane.dispatch(keep_for=self)
        finally:
            self._serving -= 1
            lane.dispatch()  # when cancelled, the slot is for others
            self._note_idle()

    async def _serve_one(self, lane: Lane, entry: Entry) -> None:
        """One entry's life from its first slot to its settlement."""
        completion: Completion | None = None
        try:
            with entry.scope:
                await checkpoint()  # a backend that never waits leaves the loop to others here
                completion = await self._answering.complete(lane, entry)
        except RunEndingError as exc:
            self.end(exc)
        finally:
            lane.release(entry)
            self._settle(entry, completion)

    async def hold(self, lane: Lane, entry: Entry) -> None:
        """Return once `entry` has a slot: the one it holds, or the next free one."""
        if entry.slot is not None:
            return
        entry.got_slot = anyio.Event()
        lane.give_back(entry)
        lane.dispatch()
        await entry.got_slot.wait()

    def let_go(self, lane: Lane, entry: Entry) -> None:
        """Give the slot of `entry` to others while it waits for its next attempt."""
        lane.release(entry)
        lane.dispatch()

    def _settle(self, entry: Entry, completion: Completion | None) -> None:
        """Record how `entry` ended; a failure may end its step."""
        step = entry.owner
        step.settle(entry, completion)
        self._events.settled(entry, completion)
        if step.failed:
            return
        if completion is None:
            self._end(step, SchedulerClosed(f"{entry.request.label} was cancelled from outside"))
        elif completion.error is not None and self._config.on_failure == "abort":
            self._end(step)

    def end(self, error: SchedulerError) -> None:
        """End every step with `error`, now and later; what is in flight may finish and is kept."""
        if self._fatal is not None:
            return
        self._fatal = error
        self._events.aborted(error)
        for step in list(self._steps):
            self._end(step, error)

    def _end(
        self, step: Step, error: SchedulerError | None = None, *, in_flight_too: bool = False
    ) -> None:
        """Take a failed step's entries out: those that wait, and if asked those that run."""
        step.fail(error)
        for entry in step.entries:
            if entry.settled:
                continue
            if not entry.dispatched:
                self.lanes[entry.request.backend].withdraw(entry)
                self._settle(entry, None)
            elif entry.slot is None or entry.waits_ready or in_flight_too:
                entry.scope.cancel()

    def _note_idle(self) -> None:
        if self.idle:
            self._idle.set()
            self._idle = anyio.Event()
