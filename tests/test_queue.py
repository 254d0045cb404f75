"""The queue against a plain list, and its back-pressure."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from scheduler.queue import WaitingQueue

LIMIT = 6


class QueueAgainstList(RuleBasedStateMachine):
    """Does the same to a queue and to a list."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: WaitingQueue[int] = WaitingQueue(LIMIT)
        self.model: list[int] = []
        self.next = 0

    @rule()
    def put(self) -> None:
        if not self.queue.full:
            self.queue.put(self.next)
            self.model.append(self.next)
            self.next += 1

    @rule(count=st.integers(0, LIMIT + 2))
    def take(self, count: int) -> None:
        assert self.queue.take(count) == self.model[:count]
        del self.model[:count]

    @rule(item=st.integers(0, 30))
    def withdraw(self, item: int) -> None:
        assert self.queue.withdraw(item) == (item in self.model)
        if item in self.model:
            self.model.remove(item)

    @invariant()
    def same_size(self) -> None:
        assert len(self.queue) == len(self.model)
        assert self.queue.full == (len(self.model) >= LIMIT)
        assert repr(self.queue) == f"<WaitingQueue {len(self.model)} of {LIMIT}>"


TestQueueAgainstList = QueueAgainstList.TestCase
TestQueueAgainstList.settings = settings(max_examples=40, stateful_step_count=40)


@given(st.lists(st.integers(), unique=True), st.integers(0, 10))
def test_take_gives_the_first_ones_in_order(items: list[int], count: int) -> None:
    queue: WaitingQueue[int] = WaitingQueue(len(items) + 1)
    for item in items:
        queue.put(item)
    assert queue.take(count) + queue.take(len(items)) == items


@pytest.mark.virtual_time
@pytest.mark.parametrize("how", ["take", "withdraw"])
async def test_room_is_announced_to_all_who_wait(how: str) -> None:
    queue: WaitingQueue[int] = WaitingQueue(1)
    queue.put(0)
    got: list[int] = []

    async def bring(item: int) -> None:
        await queue.wait_room()
        assert not queue.full
        queue.put(item)
        got.append(item)

    async with anyio.create_task_group() as tasks:
        for item in (1, 2, 3):
            tasks.start_soon(bring, item)
        for filled in range(4):
            await anyio.sleep(1)
            assert len(got) == filled
            if how == "take":
                queue.take(1)
            else:
                assert queue.withdraw(got[-1] if got else 0)
    assert sorted(got) == [1, 2, 3]


@pytest.mark.virtual_time
async def test_who_gives_up_or_brings_nothing_passes_the_room_on() -> None:
    queue: WaitingQueue[int] = WaitingQueue(1)
    queue.put(0)
    got: list[int] = []

    async def bring(item: int, patience_s: float = 99.0) -> None:
        with anyio.move_on_after(patience_s):
            await queue.wait_room()
            got.append(item)
            if item != 2:
                queue.put(item)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bring, 1, 1.0)
        await anyio.sleep(0.5)
        tasks.start_soon(bring, 2)
        await anyio.sleep(0.25)
        tasks.start_soon(bring, 3)
        await anyio.sleep(0.25)
        queue.take(1)  # as the first one gives up
        await anyio.sleep(1)
    assert got[-2:] == [2, 3]
    assert len(queue) == 1


@pytest.mark.virtual_time
async def test_room_that_is_there_takes_no_waiting() -> None:
    with anyio.fail_after(0):
        await WaitingQueue[int](1).wait_room()
