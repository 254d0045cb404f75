"""How a thread of our own tells an event loop something without waiting for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anyio.lowlevel import EventLoopToken


def wake(token: EventLoopToken, call: Callable[[], Any]) -> None:
    """Have the loop of `token` run `call` soon; a loop that has ended is left alone.

    `anyio.from_thread.run_sync` waits for the result, and a loop that ends in that moment never
    gives one: the thread would wait for ever.
    """
    loop: Any = token.native_token
    # asyncio's loop, or trio's token; both raise a RuntimeError when the loop has ended.
    soon = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
    try:
        soon(call)
    except RuntimeError:
        return
