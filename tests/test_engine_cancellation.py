"""Cancelling a caller at every point leaves an idle engine that works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from scheduler.backends.fake import FakeBackend
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import (
    AttemptError,
    ConnectionFailed,
    RequestRejected,
    ServerBusy,
    ServerFault,
)
from scheduler.types import Request
from tests.doubles import NoLog, always
from tests.questions import SCHEMA, names, question, questions, transcript

pytestmark = pytest.mark.virtual_time

TICK_S = 0.35
TICKS = 16
CHECKPOINTS = 6

CONFIG = SchedulerConfig(max_batch=3, queue_limit=4, retry_base_s=0.5)


class SlowToReturn(FakeBackend):
    """Takes a moment until it is ready again."""

    async def wait_ready(self) -> None:
        await anyio.sleep(0.3)


def nothing(_: Request, __: int) -> AttemptError | None:
    return None


def one_failure_each(request: Request, attempt: int) -> AttemptError | None:
    kinds = (ServerFault("500"), ConnectionFailed("refused"), ServerBusy("429", 0.7))
    return kinds[int(request.agent_id[-1]) % 3] if attempt == 1 else None


def backend(fault: Callable[[Request, int], AttemptError | None], **options: float) -> FakeBackend:
    return SlowToReturn(slots=2, delay=lambda *_: options.get("delay_s", 0.6), fault=fault)


async def cancelled_after(
    scheduler: Scheduler, requests: list[Request], ticks: int, checkpoints: int
) -> bool:
    """Cancel a step after so much time and so many checkpoints; whether it was still on."""
    finished = False

    async def step() -> None:
        nonlocal finished
        await scheduler.run_step(requests)
        finished = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(step)
        await anyio.sleep(ticks * TICK_S)
        for _ in range(checkpoints):
            await checkpoint()
        tasks.cancel_scope.cancel()
    return not finished


@pytest.mark.parametrize("fault", [nothing, one_failure_each])
@pytest.mark.parametrize("checkpoints", range(CHECKPOINTS))
async def test_cancel_anywhere_leaves_all_slots_free(
    fault: Callable[[Request, int], AttemptError | None], checkpoints: int
) -> None:
    requests = questions(9, systems=2, schema=SCHEMA)
    cancelled = 0
    for ticks in range(TICKS):
        fake = backend(fault)
        async with Scheduler(fake, CONFIG) as scheduler:
            cancelled += await cancelled_after(scheduler, requests, ticks, checkpoints)
            began = anyio.current_time()
            await scheduler.drain()
            assert anyio.current_time() == began, "what was in flight went on"
            lane = scheduler.lanes["default"]
            assert (lane.in_flight, len(lane.queue), fake.in_flight) == (0, 0, 0)
            again = await scheduler.run_step(questions(5, kind="again"))
            assert all(completion.ok for completion in again)
        assert scheduler.idle
    assert cancelled >= 5


@pytest.mark.parametrize("checkpoints", range(0, CHECKPOINTS, 2))
async def test_cancel_of_one_step_does_not_touch_another(checkpoints: int) -> None:
    kept = questions(9, systems=2, kind="kept")
    async with Scheduler(FakeBackend()) as scheduler:
        expected = transcript(await scheduler.run_step(kept))
    got: list[bytes] = []

    async def keep(scheduler: Scheduler) -> None:
        got.append(transcript(await scheduler.run_step(kept)))

    for ticks in range(0, TICKS, 2):
        fake = backend(one_failure_each)
        async with Scheduler(fake, CONFIG) as scheduler:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(keep, scheduler)
                await cancelled_after(scheduler, questions(9, systems=3), ticks, checkpoints)
            assert scheduler.idle
            assert fake.in_flight == 0
    assert got == [expected] * (TICKS // 2)


async def test_cancel_while_queued_frees_its_place() -> None:
    fake = FakeBackend(slots=1, delay=lambda *_: 1.0)
    async with Scheduler(fake) as scheduler, anyio.create_task_group() as tasks:
        tasks.start_soon(scheduler.run_step, questions(3))
        await anyio.sleep(0.5)
        with anyio.move_on_after(0.1) as scope:
            await scheduler.submit(question("late"))
        assert scope.cancelled_caught
        assert len(scheduler.lanes["default"].queue) == 0
    assert fake.calls == 3


async def test_cancel_after_a_failure_stops_what_is_still_in_flight() -> None:
    def refuse(request: Request, _: int) -> AttemptError | None:
        raise ValueError(request.agent_id)

    fake = FakeBackend(
        slots=2, delay=lambda r, _: 1.0 if r.agent_id == "agent-000" else 20.0, fault=refuse
    )
    async with Scheduler(fake) as scheduler:
        with anyio.move_on_after(5.0) as scope:
            await scheduler.run_step(questions(5))
        assert scope.cancelled_caught
        await scheduler.drain()
        assert anyio.current_time() == scope.deadline
    assert fake.calls == 2


async def test_a_caller_that_is_cancelled_as_its_step_fails_is_cancelled() -> None:
    class Cancelling(NoLog):
        def info(self, event: str, **_: Any) -> None:
            if event == "request.settled":  # the step is over, its caller has not heard of it
                scope.cancel()

    backend = FakeBackend(fault=always(RequestRejected("no")))
    async with Scheduler(backend, log=Cancelling()) as scheduler:
        with anyio.CancelScope() as scope:
            await scheduler.submit(question())
        assert scope.cancelled_caught
        assert scheduler.idle


async def test_cancel_of_all_but_one_of_many_steps() -> None:
    fake = FakeBackend(slots=3, delay=lambda *_: 1.0)
    async with Scheduler(fake, SchedulerConfig(queue_limit=5)) as scheduler:
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(cancelled_after, scheduler, questions(7), 9, 1)
            completions = await scheduler.run_step(questions(12))
        assert names(completions) == [f"agent-{i:03d}" for i in range(12)]
        assert scheduler.idle
