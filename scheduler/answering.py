"""From an entry on a slot to its completion: attempts, re-asks, the local check.

It stands apart from the engine because it knows neither queue nor steps. Slots it
only asks for: the engine gives them (`Slots`) and settles what comes out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import anyio

from scheduler.backends.base import RawAnswer
from scheduler.config import SchedulerConfig
from scheduler.errors import (
    AttemptError,
    AttemptTimeout,
    ConfigError,
    RequestFailed,
    RunEndingError,
)
from scheduler.events import Events, milliseconds
from scheduler.journal import Journal
from scheduler.lane import Entry, Lane
from scheduler.retry import RetryBudget, RetryDecision, classify, retrying
from scheduler.seeds import request_seed
from scheduler.structured import SchemaChecker
from scheduler.types import Answer, Completion, Outcome, Request, Timings


class Slots(Protocol):
    """What the engine does for an entry between its attempts."""

    async def hold(self, lane: Lane, entry: Entry) -> None:
        """Return once `entry` has a slot."""
        ...

    def let_go(self, lane: Lane, entry: Entry) -> None:
        """Take back the slot of `entry`, which does not need it for a while."""
        ...


class Answering:
    """Puts questions to a backend until they are answered or have failed.

    Args:
        config: Re-asks, retries, pauses, and whether schemas are used at all.
        events: Is told of attempts and answers.
        slots: Gives and takes slots.
        journal: Keeps each answer before it is used, or None.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        events: Events,
        slots: Slots,
        journal: Journal | None = None,
    ) -> None:
        self._journal = journal
        self._config = config
        self._budget = RetryBudget(config.retry_budget)
        self._checker = SchemaChecker()
        self._events = events
        self._slots = slots

    def accepted(self, requests: Sequence[Request], backends: Collection[str]) -> Sequence[Request]:
        """Return `requests` as they are to be asked.

        Raises:
            ConfigError: One names an unknown backend or a bad schema.
        """
        for request in requests:
            if request.backend not in backends:
                known = ", ".join(sorted(backends))
                raise ConfigError(f"{request.label}: no backend {request.backend!r}; has: {known}")
            if request.schema is not None:
                self._checker.prepare(request.schema)
        if self._config.structured_output:
            return requests
        return [replace(request, schema=None) for request in requests]

    def recall(self, lane: Lane, entry: Entry) -> Completion | None:
        """Return how `entry` ended before, if the journal has all of it.

        What it has of an unfinished one stays in `entry.answers`: the rest is asked.
        """
        if self._journal is None:
            return None
        completion = self._recalled(self._journal, lane, entry)
        if completion is not None:
            self._events.recalled(entry.request)
        return completion

    def _recalled(self, journal: Journal, lane: Lane, entry: Entry) -> Completion | None:
        for reask in range(self._config.max_reasks + 1):
            found = journal.recall(entry.request, reask, lane.info.fingerprint)
            if found is None:
                return None
            if isinstance(found, str):
                return _completion(entry, RequestFailed(found, 0))
            entry.answers.append(found)
            if found.outcome is Outcome.OK:
                break
        return _completion(entry)

    async def complete(self, lane: Lane, entry: Entry) -> Completion:
        """Return how `entry` ends: with answers, the last one counting, or an error.

        Raises:
            RunEndingError: What ends more than this request.
        """
        error: RequestFailed | None = None
        try:
            for reask in range(len(entry.answers), self._config.max_reasks + 1):
                entry.answers.append(await self._ask(lane, entry, reask))
                if entry.answers[-1].outcome is Outcome.OK:
                    break
        except RunEndingError:
            raise
        except Exception as exc:  # noqa: BLE001 - each request settles, whatever a backend raises
            error = _failure(entry, exc)
            await self._keep_failure(lane, entry, error)
        return _completion(entry, error)

    async def _keep_failure(self, lane: Lane, entry: Entry, error: RequestFailed) -> None:
        """Store a failure that the run goes on from; one that ends it may be mended."""
        if self._journal is not None and self._config.on_failure == "noop":
            await self._journal.store_failure(
                entry.request, len(entry.answers), error, lane.info.fingerprint
            )

    async def _ask(self, lane: Lane, entry: Entry, reask: int) -> Answer:
        """Put the question, again after failed attempts, and check the answer."""
        seed = request_seed(entry.request, reask)
        dispatched_at = 0.0

        async def attempt() -> RawAnswer:
            nonlocal dispatched_at
            if lane.readiness.in_doubt:
                await self._ready(lane, entry)
            await self._slots.hold(lane, entry)
            dispatched_at = anyio.current_time()
            if not entry.attempts:
                entry.queue_ms = milliseconds(dispatched_at - entry.asked_at)
            entry.attempts += 1
            self._events.dispatched(lane, entry)
            try:
                return await _generate(lane, entry, seed, dispatched_at)
            except AttemptError as exc:
                # Also after the last attempt: the next request must not find out by failing.
                if classify(exc).wait_ready:
                    lane.readiness.doubt()
                raise

        raw = await retrying(
            attempt,
            entry.request,
            base_s=self._config.retry_base_s,
            cap_s=self._config.retry_cap_s,
            before_pause=partial(self._pause, lane, entry),
        )
        answer = self._checked(entry, raw, seed, reask, anyio.current_time() - dispatched_at)
        if self._journal is not None:
            await self._journal.store(entry.request, answer, lane.info.fingerprint)
        self._events.answered(entry, answer)
        return answer

    def _pause(
        self, lane: Lane, entry: Entry, error: AttemptError, decision: RetryDecision, pause_s: float
    ) -> None:
        """Take note of a failed attempt which another one may follow.

        Raises:
            RetryBudgetExhausted: The run has spent all its retries.
        """
        if not entry.owner.failed:
            if decision.counts:
                self._budget.spend()
            self._events.retried(entry, error, pause_s)
        if entry.owner.failed:
            entry.scope.cancel()  # what was in flight may finish, but is not tried again
            return
        self._slots.let_go(lane, entry)

    async def _ready(self, lane: Lane, entry: Entry) -> None:
        """Return once the backend can be sent requests; nobody waits for that in vain."""
        if entry.owner.failed:
            entry.scope.cancel()
        entry.waits_ready = True
        try:
            await lane.readiness.wait(self._events)
        finally:
            entry.waits_ready = False

    def _checked(
        self, entry: Entry, raw: RawAnswer, seed: int, reask: int, service_s: float
    ) -> Answer:
        violation = self._checker.violation(entry.request.schema, raw.text)
        return Answer(
            text=raw.text,
            outcome=Outcome.INVALID if violation else Outcome.OK,
            finish_reason=raw.finish_reason,
            seed=seed,
            reask=reask,
            usage=raw.usage,
            timings=Timings(entry.queue_ms, milliseconds(service_s), raw.prefill_ms, raw.decode_ms),
            reasoning=raw.reasoning,
            violation=violation,
            token_ids=raw.token_ids,
            logprobs=raw.logprobs,
        )


async def _generate(lane: Lane, entry: Entry, seed: int, now: float) -> RawAnswer:
    """Send one attempt; its deadline counts from now, not from the queue."""
    timeout_s = entry.request.timeout_s
    with anyio.CancelScope(deadline=now + timeout_s):
        return await lane.backend.generate(entry.request, seed=seed, slot=entry.last_slot)
    raise AttemptTimeout(
        f"no answer within {timeout_s:g} s of dispatch "
        "(raise the agent's timeout, or lower its max_tokens or the slots)"
    )


def _completion(entry: Entry, error: RequestFailed | None = None) -> Completion:
    return Completion(entry.request, tuple(entry.answers), error, entry.attempts, entry.last_slot)


def _failure(entry: Entry, exc: Exception) -> RequestFailed:
    plural = "" if entry.attempts == 1 else "s"
    error = RequestFailed(
        f"{entry.request.label} failed after {entry.attempts} attempt{plural}: "
        f"{str(exc) or type(exc).__name__}",
        entry.attempts,
    )
    error.__cause__ = exc
    return error
