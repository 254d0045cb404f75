"""The only place that decides whether a failed attempt is tried again.

`classify` turns an error into a decision; `retrying` is the one tenacity loop of
the process. Client libraries' own retries are off. The jitter
comes from the request's seed: Python's shared random generator, which a
simulation may be using, is never touched.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import anyio
from tenacity import AsyncRetrying, Future, RetryCallState, retry_if_exception

from scheduler.errors import (
    AttemptError,
    AttemptTimeout,
    ConnectionFailed,
    RequestRejected,
    RetryBudgetExhausted,
    ServerBusy,
    ServerLoading,
)
from scheduler.seeds import derive_seed
from scheduler.types import Request

R = TypeVar("R")

MAX_FREE_PASSES = 10
"""How often a loading server may turn a request away before attempts count again."""


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """What to do about a failed attempt.

    Attributes:
        retry: Whether trying again can help.
        counts: Whether the attempt is taken off the request's allowance.
        wait_ready: Whether to ask the backend for its health before the next attempt.
        retry_after_s: How long the server wants to be left alone, if it said so.
    """

    retry: bool
    counts: bool = True
    wait_ready: bool = False
    retry_after_s: float | None = None


def classify(error: BaseException) -> RetryDecision:
    """Return the decision for `error`; what is not an `AttemptError` is permanent."""
    if not isinstance(error, AttemptError) or isinstance(error, RequestRejected):
        return RetryDecision(retry=False)
    if isinstance(error, ServerLoading):
        return RetryDecision(retry=True, counts=False, wait_ready=True)
    if isinstance(error, ConnectionFailed | AttemptTimeout):  # broken, or it may hang
        return RetryDecision(retry=True, wait_ready=True)
    if isinstance(error, ServerBusy):
        return RetryDecision(retry=True, retry_after_s=error.retry_after_s)
    return RetryDecision(retry=True)


@dataclass(slots=True)
class RetryBudget:
    """How many retries a whole run may still spend.

    Which request meets the empty budget depends on timing, so its end always
    aborts the run and never becomes one agent's failure.
    """

    limit: int
    spent: int = 0

    def spend(self) -> None:
        """Take one retry.

        Raises:
            RetryBudgetExhausted: None is left.
        """
        if self.spent >= self.limit:
            raise RetryBudgetExhausted(
                f"all {self.limit} retries of this run are spent (scheduler.retry_budget). "
                "The backend fails too often to go on: see inference.jsonl for the errors"
            )
        self.spent += 1


def backoff_s(request: Request, attempt: int, *, base_s: float, cap_s: float) -> float:
    """Return the pause before the attempt after number `attempt` (1, 2, ...).

    Exponential with jitter between half and the whole of `base_s * 2**(attempt-1)`,
    at most `cap_s`; a function of the request, so that it is the same in every run.
    """
    whole = min(cap_s, base_s * 2.0 ** min(attempt - 1, 32))
    draw = derive_seed("retry-jitter/1", request.label, request.base_seed, attempt) / 2**31
    return whole * (0.5 + 0.5 * draw)


async def retrying(
    attempt: Callable[[], Awaitable[R]],
    request: Request,
    *,
    base_s: float,
    cap_s: float,
    before_pause: Callable[[AttemptError, RetryDecision, float], None],
) -> R:
    """Return what `attempt` returns, called again while its errors allow that.

    The first call runs outside tenacity's loop, which then begins with its error:
    most questions need no second one, and setting up the loop costs as much time as
    all else that the engine does for a request.

    Args:
        attempt: One attempt.
        request: What is asked; gives the allowance, the jitter and the cap of Retry-After.
        base_s: First pause in seconds.
        cap_s: Longest pause in seconds.
        before_pause: Called with the error, the decision and the pause in seconds,
            before each pause; what it raises ends the loop.

    Raises:
        Exception: The last attempt's error, or what is no `AttemptError` at once.
    """
    try:
        return await attempt()
    except AttemptError as error:
        first = [error]

    async def first_or_next() -> R:
        if first:
            raise first.pop()
        return await attempt()

    free = 0

    def stop(state: RetryCallState) -> bool:
        nonlocal free
        if not classify(_error_of(state)).counts and free < MAX_FREE_PASSES:
            free += 1
        return state.attempt_number - free > request.max_retries

    def wait(state: RetryCallState) -> float:
        pause = backoff_s(request, state.attempt_number, base_s=base_s, cap_s=cap_s)
        asked = classify(_error_of(state)).retry_after_s
        return pause if asked is None else max(pause, min(asked, request.timeout_s))

    def announce(state: RetryCallState) -> None:
        error = _error_of(state)
        before_pause(error, classify(error), state.upcoming_sleep)

    loop = AsyncRetrying(
        retry=retry_if_exception(lambda error: classify(error).retry),
        stop=stop,
        wait=wait,
        before_sleep=announce,
        sleep=anyio.sleep,
        reraise=True,
    )
    return await loop(first_or_next)


def _error_of(state: RetryCallState) -> AttemptError:
    """Return the error about which tenacity asks; `classify` let no other kind through."""
    return cast(AttemptError, cast(Future, state.outcome).exception())
