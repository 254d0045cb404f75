"""Twice as many requests are twice the work, and no more: operations are counted, not seconds.

Counted are the lines that Python runs. What happens inside of one line (a search through a
list) shows in how often items are compared.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from scheduler.backends.fake import FakeBackend
from scheduler.engine import Scheduler
from scheduler.errors import ServerFault, StepAborted
from scheduler.journal import Journal
from scheduler.plan import Plan
from scheduler.queue import WaitingQueue
from tests import virtual_time
from tests.doubles import config
from tests.questions import question, questions

FEW = 100
LINEAR = 2.15
"""Most that twice as many requests may cost, as a multiple; what is quadratic costs four times."""

ALL = config(max_batch=100_000, queue_limit=100_000, retry_budget=100_000)


def lines_of(main: Callable[[], Awaitable[Any]], backend: str) -> int:
    """Return how many lines Python runs for `main`."""
    count = 0

    def note(_: Any, event: str, __: Any) -> Any:
        nonlocal count
        count += event == "line"
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        virtual_time.run(backend, main)
    finally:
        sys.settrace(before)
    return count


def check_linear(work: Callable[[int], Awaitable[Any]], backend: str) -> None:
    lines_of(partial(work, 3), backend)  # what is made once and kept
    few, many = (lines_of(partial(work, count), backend) for count in (FEW, 2 * FEW))
    assert many / few < LINEAR, f"{few} lines for {FEW} requests, {many} for {2 * FEW}"


async def answered(count: int, settings: Any = ALL) -> None:
    async with Scheduler(FakeBackend(slots=8), settings) as scheduler:
        assert len(await scheduler.run_step(questions(count, systems=count))) == count


async def answered_through_a_short_queue(count: int) -> None:
    await answered(count, config(queue_limit=5, max_batch=4))


async def submitted_one_by_one(count: int) -> None:
    """Everybody waits for room in a queue that holds few."""
    backend = FakeBackend(slots=2, delay=lambda *_: 1.0)
    async with (
        Scheduler(backend, config(queue_limit=3, max_batch=2)) as scheduler,
        anyio.create_task_group() as tasks,
    ):
        for request in questions(count):
            tasks.start_soon(scheduler.submit, request)


async def cancelled_while_it_waits(count: int) -> None:
    backend = FakeBackend(slots=2, delay=lambda *_: 1e6)
    async with Scheduler(backend, ALL) as scheduler:
        with anyio.move_on_after(1):
            await scheduler.run_step(questions(count))
        await scheduler.drain()


async def failed_while_it_waits(count: int) -> None:
    backend = FakeBackend(slots=2, fault=lambda *_: ServerFault("500"))
    async with Scheduler(backend, ALL) as scheduler:
        with pytest.raises(StepAborted):
            await scheduler.run_step([question(i, max_retries=0) for i in range(count)])


async def cancelled_while_it_returns(count: int) -> None:
    """All have failed once and wait for a slot that others hold."""
    requests = questions(count)
    backend = FakeBackend(
        slots=2,
        delay=lambda request, _: 1e6 if request.kind == "long" else 0.0,
        fault=lambda request, n: ServerFault("500") if request.kind == "act" else None,
    )
    async with Scheduler(backend, ALL) as scheduler, anyio.create_task_group() as tasks:
        tasks.start_soon(scheduler.run_step, requests)
        await anyio.sleep(0.01)
        tasks.start_soon(scheduler.run_step, questions(2, kind="long", timeout_s=1e9))
        await anyio.sleep(60)
        lane = scheduler.lanes["default"]
        assert (lane.in_flight, lane.waiting) == (2, count)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("backend", virtual_time.BACKENDS)
@pytest.mark.parametrize(
    "work",
    [
        answered,
        answered_through_a_short_queue,
        submitted_one_by_one,
        cancelled_while_it_waits,
        failed_while_it_waits,
        cancelled_while_it_returns,
    ],
)
def test_twice_the_requests_are_twice_the_work(
    work: Callable[[int], Awaitable[Any]], backend: str
) -> None:
    check_linear(work, backend)


def test_recalling_twice_as_many_from_a_journal_is_twice_the_work(tmp_path: Path) -> None:
    async def run(count: int) -> int:
        backend = FakeBackend()
        journal = Journal(tmp_path / f"{count}.sqlite3")
        await journal.open()
        async with Scheduler(backend, journal=journal) as scheduler:
            await scheduler.run_step(questions(count))
        await journal.aclose()
        return backend.calls

    for count in (3, FEW, 2 * FEW):
        assert anyio.run(run, count) == count

    async def recalled(count: int) -> None:
        assert await run(count) == 0

    check_linear(recalled, "asyncio")


class Item:
    """Counts how often it is compared with another one."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Item.compared += 1
        return self is other

    def __hash__(self) -> int:
        return id(self)


def test_withdrawing_from_a_plan_compares_few() -> None:
    request = question(prefix_group="a")
    items = [Item() for _ in range(2000)]
    plan: Plan[Item] = Plan(items, request_of=lambda _: request)
    Item.compared = 0
    for item in reversed(items):
        assert plan.withdraw(item)
    assert not plan
    assert Item.compared < len(items)


def test_withdrawing_from_a_queue_compares_few() -> None:
    items = [Item() for _ in range(2000)]
    queue: WaitingQueue[Item] = WaitingQueue(len(items))
    for item in items:
        queue.put(item)
    Item.compared = 0
    for item in reversed(items):
        assert queue.withdraw(item)
    assert Item.compared < len(items)


@pytest.mark.virtual_time
async def test_room_wakes_as_many_as_it_holds() -> None:
    class Counting(WaitingQueue[int]):
        looks = 0

        @property
        def full(self) -> bool:
            self.looks += 1
            return super().full

    queue = Counting(2)
    queue.put(-1)
    queue.put(-2)
    came: list[int] = []

    async def bring(item: int) -> None:
        await queue.wait_room()
        queue.put(item)
        came.append(item)

    async with anyio.create_task_group() as tasks:
        for item in range(300):
            tasks.start_soon(bring, item)
            await anyio.sleep(1)
        queue.looks = 0
        for _ in range(150):
            queue.take(2)
            await anyio.sleep(1)
    assert came == list(range(300))
    assert queue.looks < 10 * 300
