"""Opening, draining and closing a scheduler, in order and out of order."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from scheduler.backends.fake import FakeBackend
from scheduler.engine import Scheduler
from scheduler.errors import (
    BackendUnavailable,
    RunEndingError,
    SchedulerClosed,
    ServerFault,
)
from tests import virtual_time
from tests.doubles import NoLog, config
from tests.questions import names, names_of, question, questions

pytestmark = pytest.mark.virtual_time


async def test_drain_returns_when_everything_is_settled() -> None:
    async with Scheduler(FakeBackend(slots=2, delay=lambda *_: 1.0)) as scheduler:
        await scheduler.drain()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scheduler.run_step, questions(10))
            await checkpoint()
            await anyio.sleep(0.5)
            assert scheduler.in_flight == 2
            await scheduler.drain()
            assert scheduler.idle
            assert scheduler.stats.requests == 10


async def test_drain_waits_for_a_step_that_follows_another_at_once() -> None:
    async def two_steps(scheduler: Scheduler) -> None:
        await scheduler.run_step(questions(2))
        await scheduler.run_step(questions(2, step=1))

    async with (
        Scheduler(FakeBackend(delay=lambda *_: 1.0)) as scheduler,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(two_steps, scheduler)
        await anyio.sleep(0.5)
        await scheduler.drain()
        assert scheduler.idle
        assert scheduler.stats.requests == 4


async def test_a_scheduler_that_is_not_open_takes_nothing() -> None:
    scheduler = Scheduler(FakeBackend())
    with pytest.raises(SchedulerClosed):
        await scheduler.submit(question())
    async with scheduler:
        assert (await scheduler.submit(question())).ok
    with pytest.raises(SchedulerClosed):
        await scheduler.submit(question())


@pytest.mark.parametrize("slots", [1, 16])
@pytest.mark.parametrize("queue_limit", [1, 3, 100])
async def test_closing_finishes_what_was_asked(slots: int, queue_limit: int) -> None:
    results: list[list[str]] = []

    async def step(scheduler: Scheduler) -> None:
        results.append(names(await scheduler.run_step(questions(20))))

    async with anyio.create_task_group() as tasks:
        backend = FakeBackend(slots=slots)
        async with Scheduler(backend, config(queue_limit=queue_limit)) as scheduler:
            tasks.start_soon(step, scheduler)
            await checkpoint()
            await checkpoint()
    assert results == [names_of(20)]


@pytest.mark.parametrize("queue_limit", [1, 100])
async def test_closing_with_an_exception_leaves_nobody_waiting(queue_limit: int) -> None:
    ended: list[str] = []

    async def step(scheduler: Scheduler) -> None:
        with pytest.raises(SchedulerClosed):
            await scheduler.run_step(questions(20))
        ended.append("step")

    backend = FakeBackend(slots=2, delay=lambda *_: 1e6)
    scheduler = Scheduler(backend, config(queue_limit=queue_limit))

    async def owner() -> None:
        async with scheduler:
            tasks.start_soon(step, scheduler)
            tasks.start_soon(step, scheduler)
            await anyio.sleep(1.0)
            raise ValueError("mine")

    async with anyio.create_task_group() as tasks:
        with pytest.raises(ValueError, match="mine"):
            await owner()
    assert ended == ["step", "step"]
    assert backend.in_flight == 0
    assert scheduler.idle


async def test_cancelling_the_owner_leaves_nobody_waiting() -> None:
    ended: list[str] = []

    async def step(scheduler: Scheduler, count: int) -> None:
        with pytest.raises(SchedulerClosed):
            await scheduler.run_step(questions(count, timeout_s=1e9))
        ended.append("step")

    backend = FakeBackend(slots=2, delay=lambda *_: 1e6)
    async with anyio.create_task_group() as tasks:
        with anyio.move_on_after(5) as scope:
            async with Scheduler(backend) as scheduler:
                tasks.start_soon(step, scheduler, 2)
                tasks.start_soon(step, scheduler, 20)
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        await checkpoint()
    assert ended == ["step", "step"]
    assert backend.in_flight == 0
    assert scheduler.idle


async def test_cancelling_the_owner_while_it_closes_leaves_nobody_waiting() -> None:
    ended: list[str] = []

    async def step(scheduler: Scheduler) -> None:
        with pytest.raises(SchedulerClosed):
            await scheduler.run_step(questions(2, timeout_s=1e9))
        ended.append("step")

    backend = FakeBackend(slots=2, delay=lambda *_: 1e6)
    async with anyio.create_task_group() as tasks:
        with anyio.move_on_after(5) as scope:
            async with Scheduler(backend) as scheduler:
                tasks.start_soon(step, scheduler)
                await anyio.sleep(1)
        assert scope.cancelled_caught
    assert ended == ["step"]
    assert scheduler.idle


async def test_an_error_inside_keeps_its_type() -> None:
    async def owner(error: BaseException) -> None:
        async with Scheduler(FakeBackend()) as scheduler:
            await scheduler.submit(question())
            raise error

    for error in (ValueError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            await owner(error)
        assert caught.value is error


async def test_a_scheduler_can_be_opened_again() -> None:
    scheduler = Scheduler(FakeBackend())
    for _ in range(2):
        async with scheduler:
            assert (await scheduler.submit(question())).ok


async def test_a_backend_that_does_not_start_opens_nothing() -> None:
    class Absent(FakeBackend):
        async def start(self) -> Any:
            raise BackendUnavailable("not there")

    scheduler = Scheduler({"a": FakeBackend(), "b": Absent()})
    with pytest.raises(BackendUnavailable):
        async with scheduler:
            pytest.fail("opened")
    with pytest.raises(SchedulerClosed):
        await scheduler.submit(question(backend="a"))


@pytest.mark.parametrize("backend", virtual_time.BACKENDS)
def test_a_thousand_requests_on_four_slots(backend: str) -> None:
    async def main() -> float:
        fake = FakeBackend(slots=4, delay=lambda *_: 0.25)
        async with Scheduler(fake) as scheduler:
            began = anyio.current_time()
            assert len(await scheduler.run_step(questions(1_000, systems=4))) == 1_000
            return anyio.current_time() - began

    assert virtual_time.run(backend, main) == pytest.approx(62.5)


@pytest.mark.parametrize("word", ["queued", "dispatched", "retried", "answered", "settled"])
@pytest.mark.parametrize("nth", [1, 7])
async def test_a_log_that_breaks_ends_the_run_and_hangs_nobody(word: str, nth: int) -> None:
    breaking = f"request.{word}"

    class Full(NoLog):
        seen = 0
        writes_after = -1

        def info(self, event: str, **_: Any) -> None:
            self.seen += event == breaking
            if self.seen >= nth:
                self.writes_after += 1
                raise OSError("no space left")

        warning = info

    ended: list[str] = []

    async def step(scheduler: Scheduler, kind: str) -> None:
        with pytest.raises(RunEndingError, match=r"log can't be written .*: no space") as caught:
            await scheduler.run_step(questions(30, kind=kind))
        assert isinstance(caught.value.__cause__, OSError)
        ended.append(kind)

    log = Full()
    backend = FakeBackend(
        slots=2, delay=lambda *_: 1.0, fault=lambda _, n: ServerFault("500") if n == 1 else None
    )
    async with Scheduler(backend, config(on_failure="noop"), log=log) as scheduler:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(step, scheduler, "one")
            tasks.start_soon(step, scheduler, "other")
        await scheduler.drain()
    assert sorted(ended) == ["one", "other"]
    assert log.writes_after == 0
