"""Blocking calls on threads of their own, awaited on a loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress


async def in_thread(call: Callable[[], None], *, name: str, stop: Callable[[], None]) -> None:
    """Return when `call` has returned; a cancelled caller has it stopped and still waits.

    The thread is a daemon: a process that is told to end at once does not wait for it.

    Args:
        call: What is run; it raises nothing.
        name: Of the thread.
        stop: Makes the call return soon.
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    def live() -> None:
        try:
            call()
        finally:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(finish)

    threading.Thread(target=live, name=name, daemon=True).start()
    try:
        await asyncio.shield(done)
    except asyncio.CancelledError:
        stop()
        await done
        raise


async def all_of(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Wait for all `tasks`; cancelled, or when one fails, cancel and wait for the others.

    Each is cancelled once: a second time it would no longer wait for what it has stopped.
    """
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            if not task.cancelling():
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
