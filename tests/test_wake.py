"""A thread that wakes an event loop never waits for it."""

from __future__ import annotations

import threading

import anyio
import pytest
from anyio.lowlevel import EventLoopToken, current_token

from scheduler.wake import wake

BACKENDS = ("asyncio", "trio")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_loop_runs_the_call(backend: str) -> None:
    async def main() -> None:
        done = anyio.Event()
        token = current_token()
        threading.Thread(target=lambda: wake(token, done.set)).start()
        with anyio.fail_after(10):
            await done.wait()

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_thread_does_not_wait_for_a_loop_that_is_busy(backend: str) -> None:
    async def main() -> None:
        token = current_token()
        thread = threading.Thread(target=lambda: wake(token, anyio.Event().set), daemon=True)
        thread.start()
        thread.join(10)  # the loop runs nothing meanwhile
        assert not thread.is_alive()

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loop_that_has_ended_is_left_alone(backend: str) -> None:
    async def main() -> EventLoopToken:
        return current_token()

    called: list[bool] = []
    wake(anyio.run(main, backend=backend), lambda: called.append(True))
    assert called == []
