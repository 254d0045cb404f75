"""The loop that can tell when nothing in it is ready to run."""

from __future__ import annotations

import asyncio
import threading

import pytest

from scheduler.errors import SchedulerError
from swarm_integration.idle import SimulationLoop
from tests.swarm.simulations import on_loop


def loop() -> SimulationLoop:
    running = asyncio.get_running_loop()
    assert isinstance(running, SimulationLoop)
    return running


def test_idle_returns_after_every_ready_task_has_run() -> None:
    turns: list[int] = []

    async def busy(number: int) -> None:
        for _ in range(50):
            await asyncio.sleep(0)
            turns.append(number)
        await asyncio.Event().wait()

    async def main() -> int:
        tasks = [asyncio.create_task(busy(number)) for number in range(3)]
        await loop().idle()
        done = len(turns)
        for task in tasks:
            task.cancel()
        return done

    assert on_loop(main) == 150


def test_idle_does_not_wait_for_sleeping_tasks() -> None:
    async def main() -> bool:
        sleeper = asyncio.create_task(asyncio.sleep(30))
        await loop().idle()
        early = not sleeper.done()
        sleeper.cancel()
        return early

    assert on_loop(main)


def test_idle_can_be_awaited_again_and_again() -> None:
    async def main() -> None:
        for _ in range(200):
            await loop().idle()

    on_loop(main)


def test_loop_sleeps_once_idle_is_told_of() -> None:
    """A selector that never blocks would spin; timers must still come at their time."""

    async def main() -> float:
        await loop().idle()
        started = loop().time()
        await asyncio.sleep(0.01)
        return loop().time() - started

    assert on_loop(main) >= 0.009


def test_second_waiter_is_refused() -> None:
    async def main() -> None:
        first = asyncio.create_task(loop().idle())
        await asyncio.sleep(0)
        with pytest.raises(SchedulerError, match="one task at a time"):
            await loop().idle()
        await first

    on_loop(main)


def test_cancelled_waiter_leaves_the_loop_usable() -> None:
    async def main() -> None:
        waiter = asyncio.create_task(loop().idle())
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        await loop().idle()

    on_loop(main)


def test_callbacks_from_threads_wake_the_loop() -> None:
    async def main() -> str:
        done: asyncio.Future[str] = loop().create_future()
        await loop().idle()
        thread = threading.Thread(target=lambda: loop_.call_soon_threadsafe(done.set_result, "x"))
        loop_ = loop()
        thread.start()
        result = await done
        thread.join()
        return result

    assert on_loop(main) == "x"
