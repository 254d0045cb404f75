"""Waiting for a server that may still be starting, loading its model or restarting.

What is asked, and what an answer means, is the prober's; here is how often, how long, and
when to give up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from scheduler.errors import (
    AttemptError,
    BackendUnavailable,
    ConnectionFailed,
    MalformedAnswer,
    RequestRejected,
)

_FIRST_PAUSE_S = 0.1
_MOST_MALFORMED = 3

T = TypeVar("T")


async def ask_until_ready(
    ask: Callable[[float], Awaitable[T]],
    *,
    address: str,
    unreachable: tuple[str, str],
    timeout_s: float,
    unreachable_s: float,
    probe_timeout_s: float,
    longest_pause_s: float,
    revive: Callable[[], Awaitable[bool]] | None = None,
) -> T:
    """Ask until there is an answer, and return it.

    Args:
        ask: Asks once, within the seconds that it is given.
        address: The server's, for messages.
        unreachable: What can't be reached, and what to do then, for the message.
        timeout_s: How long the server may fail, in seconds.
        unreachable_s: How long of that it may be unreachable.
        probe_timeout_s: How long one answer may take.
        longest_pause_s: Pauses double up to this.
        revive: Starts a server of our own again if it has died, and says whether it did;
            the times above then count anew. What it raises is raised.

    Raises:
        BackendUnavailable: It did not answer in time.
        MalformedAnswer: It keeps answering in another language than expected.
        RequestRejected: It refuses; asking again can't help.
    """
    started = last_reached = anyio.current_time()
    pause_s = _FIRST_PAUSE_S
    malformed = 0
    trouble: AttemptError | None = None
    while (now := anyio.current_time()) - started < timeout_s:
        if trouble is not None and now - last_reached > unreachable_s:
            break
        if revive is not None and await revive():
            now = started = last_reached = anyio.current_time()
        try:
            return await ask(min(probe_timeout_s, timeout_s - (now - started)))
        except RequestRejected:
            raise
        except AttemptError as exc:
            trouble = exc
        if not isinstance(trouble, ConnectionFailed):
            last_reached = anyio.current_time()
        # A server that is being killed may break off within an answer; another kind of server
        # never speaks JSON.
        malformed += isinstance(trouble, MalformedAnswer)
        if malformed >= _MOST_MALFORMED:
            raise trouble
        await anyio.sleep(pause_s)
        pause_s = min(2 * pause_s, longest_pause_s)
    waited = f"{anyio.current_time() - started:.1f} s"
    if isinstance(trouble, ConnectionFailed):
        what, advice = unreachable
        raise BackendUnavailable(
            f"no {what} could be reached at {address} within {waited}: {advice}"
        ) from trouble
    raise BackendUnavailable(
        f"the server at {address} was not ready after {waited}: {trouble}. "
        "Wait until it has loaded its model, or raise backend.ready_timeout_s"
    ) from trouble
