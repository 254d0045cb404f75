"""A run's place at shared slots: used on the run's thread, ended from the loop of all runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest

from scheduler.backends.base import Backend, BackendInfo, RawAnswer
from scheduler.backends.fake import FakeBackend
from scheduler.config import SchedulerConfig
from scheduler.errors import BackendUnavailable
from scheduler.journal import Journal
from scheduler.types import Request
from swarm_integration.interrupts import RunInterrupted
from swarm_integration.monitoring import NO_ENDPOINT
from swarm_integration.place import Seat
from swarm_integration.schemas import Instructions
from swarm_integration.services import Fleet
from swarm_integration.startup import Common, Started
from swarm_integration.sweep.shared import Shared, SharedPlace
from swarm_integration.sweep.threads import in_thread
from tests.doubles import NoLog
from tests.questions import names, names_of, questions

PATIENCE_S = 100.0
STOP = RunInterrupted("the test ends the run")


class HeldBackend(FakeBackend):
    """Answers once it is let go; an event of the shared loop."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.entered = anyio.Event()
        self.let_go = anyio.Event()
        self.withdrawn = 0

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
        self.entered.set()
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.withdrawn += 1
            raise
        return await super().generate(request, seed=seed, slot=slot)


class MissingBackend(FakeBackend):
    """A server that is not there."""

    async def start(self) -> BackendInfo:
        raise BackendUnavailable("nobody listens")


class Bench:
    """The shared loop and one run's place at it; the simulation is a function of the test."""

    def __init__(self, journal: Journal) -> None:
        self.shared = Shared(asyncio.get_running_loop(), Common(0), NO_ENDPOINT)
        self.place = SharedPlace(self.shared)
        self._journal = journal
        self.result: Any = None

    async def play(
        self, backend: Backend, simulation: Callable[[Seat], Coroutine[Any, Any, Any]]
    ) -> None:
        """Run a simulation on a thread and a loop of its own; note what it returns or raises."""
        fleet = Fleet({"default": backend}, {}, names_must_match=False)
        config = SchedulerConfig()
        started = Started(fleet, {}, Instructions(), self._journal, config)

        async def whole() -> Any:
            async with self.place.scheduler(started, config, NoLog()) as seat:
                return await simulation(seat)

        await self.on_thread(lambda: asyncio.run(whole()))

    async def on_thread(self, call: Callable[[], Any]) -> None:
        def noted() -> None:
            try:
                self.result = call()
            except BaseException as exc:  # noqa: BLE001  # whatever ended it is the result
                self.result = exc

        with anyio.fail_after(PATIENCE_S):
            await in_thread(noted, name="run", stop=self.place.stop)

    @property
    def idle(self) -> bool:
        return all(lane.idle for lane in self.shared.lanes.lanes)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    journal = Journal(tmp_path / "journal.sqlite3")
    await journal.open()
    yield Bench(journal)
    await journal.aclose()


async def test_a_round_crosses_over_and_its_answers_come_back_in_order(bench: Bench) -> None:
    backend, place = HeldBackend(2), bench.place
    assert (place.in_flight, place.counted) == (0, None)

    async def simulation(seat: Seat) -> list[str]:
        assert asyncio.get_running_loop() is not bench.shared.loop
        return names(await seat.asker.run_step(questions(3)))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bench.play(backend, simulation))
        await backend.entered.wait()
        assert place.in_flight in (1, 2)
        backend.let_go.set()
    assert bench.result == names_of(3)
    assert place.counted is not None
    assert (place.in_flight, place.counted.stats.requests) == (0, 3)
    assert bench.idle


async def test_a_run_that_is_ended_gets_what_is_in_flight_and_asks_no_more(bench: Bench) -> None:
    backend = HeldBackend(1)

    async def simulation(seat: Seat) -> None:
        await seat.asker.run_step(questions(4))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bench.play(backend, simulation))
        await backend.entered.wait()
        bench.place.end(STOP)
        backend.let_go.set()
    assert bench.result is STOP
    assert (backend.calls, backend.withdrawn) == (1, 0)
    assert bench.idle


async def test_a_run_that_is_ended_before_it_begins_asks_nothing(bench: Bench) -> None:
    backend = FakeBackend()
    bench.place.end(STOP)

    async def simulation(seat: Seat) -> None:
        await seat.asker.run_step(questions(1))

    await bench.play(backend, simulation)
    assert bench.result is STOP
    assert backend.calls == 0


async def test_a_run_that_is_stopped_withdraws_what_is_in_flight(bench: Bench) -> None:
    backend = HeldBackend(2)

    async def simulation(seat: Seat) -> None:
        await seat.asker.run_step(questions(5))

    async with asyncio.TaskGroup() as tasks:
        playing = tasks.create_task(bench.play(backend, simulation))
        await backend.entered.wait()
        playing.cancel()
    assert isinstance(bench.result, asyncio.CancelledError)
    assert backend.withdrawn in (1, 2)
    assert backend.calls == 0
    assert bench.idle


async def test_what_a_simulation_raises_ends_its_scheduler_and_comes_through(bench: Bench) -> None:
    async def simulation(seat: Seat) -> None:
        await seat.asker.run_step(questions(2))
        raise ZeroDivisionError

    await bench.play(FakeBackend(), simulation)
    assert isinstance(bench.result, ZeroDivisionError)
    assert bench.idle


async def test_a_scheduler_that_does_not_open_says_why_to_the_simulation(bench: Bench) -> None:
    async def simulation(seat: Seat) -> None:
        raise AssertionError("never begun")

    await bench.play(MissingBackend(), simulation)
    assert isinstance(bench.result, BackendUnavailable)
    assert "nobody listens" in str(bench.result)


async def test_work_on_the_shared_loop_returns_to_the_thread(bench: Bench) -> None:
    async def work() -> tuple[bool, str]:
        return asyncio.get_running_loop() is bench.shared.loop, threading.current_thread().name

    await bench.on_thread(lambda: bench.place.run(work()))
    assert bench.result == (True, threading.current_thread().name)


async def test_stopped_while_it_starts_a_run_is_interrupted(bench: Bench) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(bench.on_thread(lambda: bench.place.run(work())))
        await begun.wait()
        starting.cancel()
    assert isinstance(bench.result, KeyboardInterrupt)
    with anyio.fail_after(PATIENCE_S):
        await ended.wait()


async def test_stopped_before_it_starts_a_run_is_interrupted_all_the_same(bench: Bench) -> None:
    async def start() -> None:
        await asyncio.Event().wait()

    async def give_back() -> str:
        await asyncio.sleep(0)
        return "given back"

    bench.place.stop()
    await bench.on_thread(lambda: bench.place.run(start()))
    interrupted: Any = bench.result
    assert isinstance(interrupted, KeyboardInterrupt)
    await bench.on_thread(lambda: bench.place.run(give_back()))
    assert bench.result == "given back"


async def test_stopped_before_its_simulation_waits_a_run_asks_nothing(bench: Bench) -> None:
    backend = FakeBackend()

    async def nothing() -> None:
        return None

    async def simulation(seat: Seat) -> None:
        raise AssertionError("never begun")

    await bench.on_thread(lambda: bench.place.run(nothing()))
    bench.place.stop()
    await bench.play(backend, simulation)
    assert isinstance(bench.result, asyncio.CancelledError)
    assert (backend.calls, bench.idle) == (0, True)


async def test_a_run_that_has_ended_is_stopped_in_vain(bench: Bench) -> None:
    async def simulation(seat: Seat) -> list[str]:
        return names(await seat.asker.run_step(questions(1)))

    await bench.play(FakeBackend(), simulation)
    bench.place.stop()
    assert bench.result == names_of(1)
