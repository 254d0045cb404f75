"""The requests that one caller waits for together, and how they end.

A step is over when every entry has settled, or when it has failed and nothing
of it is in flight any more. It knows nothing of slots or backends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio

from scheduler.errors import RequestFailed, SchedulerError, StepAborted
from scheduler.types import Completion, Request

if TYPE_CHECKING:
    from scheduler.lane import Entry


class Step:
    """Collects the completions of `requests`, in their order.

    Args:
        requests: What is asked together.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.size = len(requests)
        self.entries: list[Entry] = []
        self.failed = False
        self._unsettled = 0
        self._fatal: SchedulerError | None = None
        self._over = anyio.Event()
        if not requests:
            self._over.set()

    def __repr__(self) -> str:
        return f"<Step {len(self.entries) - self._unsettled} of {self.size} settled>"

    @property
    def unsettled(self) -> int:
        """How many of its requests have not settled, those included that are not queued yet."""
        return self.size - len(self.entries) + self._unsettled

    def add(self, entry: Entry) -> None:
        """Take in an entry that has just been queued."""
        self.entries.append(entry)
        self._unsettled += 1

    def settle(self, entry: Entry, completion: Completion | None) -> None:
        """Record how `entry` ended; None when it was withdrawn.

        Raises:
            RuntimeError: It has settled before, which would be a defect of the engine.
        """
        if entry.settled:
            raise RuntimeError(f"request of {entry.request.label} settled twice")
        entry.settled = True
        entry.completion = completion
        self._unsettled -= 1
        if self._unsettled == 0 and (self.failed or len(self.entries) == self.size):
            self._over.set()

    def fail(self, error: SchedulerError | None = None) -> None:
        """Mark the step as failed: by one of its requests, or by `error` for all."""
        self.failed = True
        self._fatal = self._fatal or error
        if self._unsettled == 0:
            self._over.set()

    async def wait(self) -> None:
        """Return when the step is over."""
        await self._over.wait()

    def completions(self) -> list[Completion]:
        """Return the completions in the order of the requests.

        Raises:
            StepAborted: A request failed and that ends the step.
            SchedulerError: What ended all steps.
        """
        if self._fatal is not None:
            raise self._fatal
        settled = [entry.completion for entry in self.entries if entry.completion is not None]
        if not self.failed:
            return settled
        failures = [completion.error for completion in settled if completion.error is not None]
        raise _aborted(failures, answered=len(settled) - len(failures), size=self.size)


def _aborted(failures: Sequence[RequestFailed], *, answered: int, size: int) -> StepAborted:
    others = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return StepAborted(
        f"{failures[0]}{others}. {answered} of {size} requests of the step were answered. "
        "To go on when a request fails for good, set scheduler.on_failure to noop",
        failures,
        answered,
    )
