"""What is told of a request's way through the engine: log events and counters.

It stands apart so that the engine reads as what it does, and so that a run
without a log pays for its counters only. Events never hold a message's text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio

from scheduler.errors import AttemptError, RunEndingError, SchedulerError
from scheduler.observe import EventLog, RunStats
from scheduler.types import Answer, Completion, Outcome, Request

if TYPE_CHECKING:
    from scheduler.lane import Entry, Lane


class Events:
    """Counts what happens and writes it to a log, if there is one.

    Args:
        log: Where events go, or None.
        stats: Where they are counted.
        end_run: Is called when the log breaks, with the error that ends the run.
    """

    def __init__(
        self, log: EventLog | None, stats: RunStats, end_run: Callable[[SchedulerError], None]
    ) -> None:
        self._end_run = end_run
        self._log = log
        self._stats = stats

    def queued(self, lane: Lane, request: Request) -> None:
        """A request was put into its queue."""
        if self._log is not None:
            self._write("info", "request.queued", **_names(request), queued=len(lane.queue))

    def recalled(self, request: Request) -> None:
        """A request was answered from the journal."""
        self._stats.recalled += 1
        if self._log is not None:
            self._write("info", "request.recalled", **_names(request))

    def dispatched(self, lane: Lane, entry: Entry) -> None:
        """An attempt starts on a slot."""
        if self._log is not None:
            self._write(
                "info",
                "request.dispatched",
                **_names(entry.request),
                attempt=entry.attempts,
                slot=entry.last_slot,
                in_flight=lane.in_flight,
            )

    def retried(self, entry: Entry, error: AttemptError, pause_s: float) -> None:
        """An attempt failed and another one follows after a pause."""
        self._stats.retries += 1
        if self._log is not None:
            self._write(
                "warning",
                "request.retried",
                **_names(entry.request),
                attempt=entry.attempts,
                error=type(error).__name__,
                reason=str(error),
                pause_ms=milliseconds(pause_s),
            )

    def answered(self, entry: Entry, answer: Answer) -> None:
        """A question, or a re-ask, got its answer."""
        self._stats.answered(answer)
        if self._log is not None:
            self._write(
                "info", "request.answered", **_names(entry.request), **_facts(entry, answer)
            )

    def settled(self, entry: Entry, completion: Completion | None) -> None:
        """A request left the engine; without a completion when it was withdrawn."""
        if completion is not None:
            self._stats.settled(completion)
        if self._log is None:
            return
        if completion is None:
            self._write("info", "request.withdrawn", **_names(entry.request))
            return
        outcome = Outcome.FAILED if completion.error else completion.answers[-1].outcome
        self._write(
            "info",
            "request.settled",
            **_names(entry.request),
            outcome=outcome.value,
            attempts=completion.attempts,
            reasks=max(0, len(completion.answers) - 1),
            total_ms=milliseconds(anyio.current_time() - entry.asked_at),
            error=None if completion.error is None else str(completion.error),
        )

    def lost(self, backend: str, error: SchedulerError) -> None:
        """A backend is gone; what asks for it fails soon, until it is back."""
        if self._log is not None:
            self._write("warning", "backend.lost", backend=backend, reason=str(error))

    def back(self, backend: str) -> None:
        """A backend that was gone can be used again."""
        if self._log is not None:
            self._write("info", "backend.back", backend=backend)

    def step_settled(self, size: int) -> None:
        """A step's completions go to its caller."""
        if self._log is not None:
            self._write("info", "step.settled", requests=size)

    def aborted(self, error: SchedulerError) -> None:
        """Every step ends with `error`."""
        if self._log is not None:
            self._write("error", "run.aborted", reason=str(error))

    def _write(self, level: str, event: str, **fields: Any) -> None:
        """Write an event; a log that breaks ends the run and is not asked again."""
        try:
            getattr(self._log, level)(event, **fields)
        except Exception as exc:  # noqa: BLE001 - a log may be anything; no event is lost in silence
            self._log = None
            error = RunEndingError(f"the log can't be written (is its disk full?): {exc}")
            error.__cause__ = exc
            self._end_run(error)


def milliseconds(seconds: float) -> float:
    """Return `seconds` in milliseconds, to the microsecond."""
    return round(seconds * 1000.0, 3)


def _names(request: Request) -> dict[str, str | int]:
    return {
        "agent_id": request.agent_id,
        "epoch": request.epoch,
        "step": request.step,
        "kind": request.kind,
        "ordinal": request.ordinal,
        "backend": request.backend,
    }


def _facts(entry: Entry, answer: Answer) -> dict[str, Any]:
    return {
        "slot": entry.last_slot,
        "attempt": entry.attempts,
        "reask": answer.reask,
        "seed": answer.seed,
        "outcome": answer.outcome.value,
        "violation": answer.violation or None,
        "finish_reason": answer.finish_reason.value,
        "prompt_tokens": answer.usage.prompt_tokens,
        "completion_tokens": answer.usage.completion_tokens,
        "cached_tokens": answer.usage.cached_tokens,
        "queue_ms": answer.timings.queue_ms,
        "service_ms": answer.timings.service_ms,
        "prefill_ms": answer.timings.prefill_ms,
        "decode_ms": answer.timings.decode_ms,
    }
