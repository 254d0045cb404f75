"""Calls on threads: stopped by whoever waits for them, and waited for all the same."""

from __future__ import annotations

import asyncio
import threading

import pytest

from swarm_integration.sweep.threads import all_of, in_thread

PATIENCE_S = 100.0


async def test_a_cancelled_caller_stops_the_call_and_waits_for_it() -> None:
    began, stopped, ended = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        began.set()
        stopped.wait(PATIENCE_S)
        ended.set()

    waiting = asyncio.create_task(in_thread(call, name="held", stop=stopped.set))
    await asyncio.to_thread(began.wait, PATIENCE_S)
    assert not stopped.is_set()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()


async def test_cancelled_again_a_caller_waits_no_longer() -> None:
    began, asked, let_go = threading.Event(), asyncio.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def call() -> None:
        threads.append(threading.current_thread())
        began.set()
        let_go.wait(PATIENCE_S)

    waiting = asyncio.create_task(in_thread(call, name="deaf", stop=asked.set))
    await asyncio.to_thread(began.wait, PATIENCE_S)
    waiting.cancel()
    await asked.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert threads[0].is_alive()
    let_go.set()
    await asyncio.to_thread(threads[0].join, PATIENCE_S)
    await asyncio.sleep(0)  # what the thread has left for the loop
    assert not threads[0].is_alive()


# Several of them


class Worker:
    """A task that is cancelled, and then ends when it is let go."""

    def __init__(self) -> None:
        self.cancelled, self.let_go = asyncio.Event(), asyncio.Event()
        self.cancellations = 0
        self.task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            self.cancellations += 1
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                self.cancellations += 1
            raise


async def _fails() -> None:
    raise ZeroDivisionError


async def test_one_that_is_cancelled_and_ends_first_hurries_no_other() -> None:
    quick, slow = Worker(), Worker()
    waiting = asyncio.create_task(all_of([quick.task, slow.task]))
    await asyncio.sleep(0)
    waiting.cancel()
    await quick.cancelled.wait()
    quick.let_go.set()
    await asyncio.wait([quick.task])
    for _ in range(10):  # in which the others could be told
        await asyncio.sleep(0)
    assert not waiting.done()
    slow.let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (quick.cancellations, slow.cancellations) == (1, 1)


async def test_when_one_fails_the_others_are_cancelled_and_waited_for() -> None:
    other = Worker()
    await asyncio.sleep(0)
    waiting = asyncio.create_task(all_of([asyncio.create_task(_fails()), other.task]))
    await other.cancelled.wait()
    assert not waiting.done()
    other.let_go.set()
    with pytest.raises(ZeroDivisionError):
        await waiting
    assert other.cancellations == 1


async def test_all_that_end_well_are_cancelled_by_nobody() -> None:
    done: list[int] = []

    async def work(number: int) -> None:
        await asyncio.sleep(0)
        done.append(number)

    tasks = [asyncio.create_task(work(number)) for number in range(3)]
    await all_of(tasks)
    assert sorted(done) == [0, 1, 2]
    assert not any(task.cancelling() for task in tasks)
