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
    AttemptTimeout,
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
    revive: Callable[[bool], Awaitable[bool]] | None = None,
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
        revive: Starts a server of our own again if it has died, or if it is told that it hangs:
            nothing was heard of it for two probes, or for half of `timeout_s` if that is less.
            Says whether it did; the times above then count anew. What it raises is raised.

    Raises:
        BackendUnavailable: It did not answer in time.
        MalformedAnswer: It keeps answering in another language than expected.
        RequestRejected: It refuses; asking again can't help.
    """
    started = last_reached = last_heard = anyio.current_time()
    silence_s = min(2 * probe_timeout_s, timeout_s / 2)
    if revive is not None:
        probe_timeout_s = min(probe_timeout_s, silence_s)
    pause_s = _FIRST_PAUSE_S
    malformed = 0
    trouble: AttemptError | None = None
    while (now := anyio.current_time()) - started < timeout_s:
        if trouble is not None and now - last_reached > unreachable_s:
            break
        if revive is not None and await revive(now - last_heard >= silence_s):
            now = started = last_reached = last_heard = anyio.current_time()
        try:
            return await ask(min(probe_timeout_s, timeout_s - (now - started)))
        except RequestRejected:
            raise
        except AttemptError as exc:
            trouble = exc
        if not isinstance(trouble, ConnectionFailed):
            last_reached = anyio.current_time()
            if not isinstance(trouble, AttemptTimeout):
                last_heard = last_reached
        # A server that is being killed may break off within an answer; another kind of server
        # never speaks JSON.
        malformed += isinstance(trouble, MalformedAnswer)
        if malformed >= _MOST_MALFORMED:
            raise trouble
        await anyio.sleep(pause_s)
        pause_s = min(2 * pause_s, longest_pause_s)
    waited_s = anyio.current_time() - started
    raise _given_up(
        trouble, address, unreachable, waited_s, heard=last_heard > started
    ) from trouble


def _given_up(
    trouble: AttemptError | None,
    address: str,
    unreachable: tuple[str, str],
    waited_s: float,
    *,
    heard: bool,
) -> BackendUnavailable:
    """Return the error that says how a server failed, and what to do."""
    if isinstance(trouble, ConnectionFailed):
        what, advice = unreachable
        return BackendUnavailable(
            f"no {what} could be reached at {address} within {waited_s:.1f} s: {advice}"
        )
    if isinstance(trouble, AttemptTimeout) and not heard:
        return BackendUnavailable(
            f"the server at {address} hangs: it has answered nothing for {waited_s:.1f} s. "
            "Restart it, or see whether it can be reached from here"
        )
    return BackendUnavailable(
        f"the server at {address} was not ready after {waited_s:.1f} s: {trouble}. "
        "Wait until it has loaded its model, or raise backend.ready_timeout_s"
    )
