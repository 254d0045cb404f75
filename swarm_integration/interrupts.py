"""Ctrl-C during a run: the first ends it after what is in flight, the second at once.

The first one is told to the scheduler, which starts nothing more, keeps what is still
answered and then ends the step. The second one is asyncio's own: it cancels the run.
SIGTERM, which batch systems and `kill` send, means the same (see also `ending.terminable`).
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from scheduler.errors import RunEndingError


class RunInterrupted(RunEndingError):
    """The user has asked the run to end."""


class Endable(Protocol):
    """What Ctrl-C ends: a `Scheduler`, or the runs of a sweep."""

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""
        ...

    def end(self, error: RunEndingError) -> None:
        """Start nothing more and end with `error`; what is in flight is finished and kept."""
        ...


@contextmanager
def ended_by_ctrl_c(scheduler: Endable) -> Iterator[None]:
    """Let the first Ctrl-C end `scheduler`'s steps; elsewhere than in the main thread, nothing.

    Raises:
        RunInterrupted: It did, in place of what the scheduler's steps return.
    """
    usual = {signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
    if callable(handler := signal.getsignal(signal.SIGINT)):  # jobs in the background ignore it
        usual[signal.SIGINT] = handler
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def end(said: str) -> None:
        count = scheduler.in_flight
        print(  # noqa: T201 - the one moment when it helps
            f"\n{said}: waiting for {count} request{'' if count == 1 else 's'} in flight; "
            "Ctrl-C again ends at once",
            file=sys.stderr,
        )
        scheduler.end(RunInterrupted("the run was interrupted"))

    def first(number: int, _frame: Any) -> None:
        restore()
        loop.call_soon_threadsafe(end, "terminated" if number == signal.SIGTERM else "interrupted")

    def restore() -> None:
        for number, handler in usual.items():
            if signal.getsignal(number) is first:
                signal.signal(number, handler)

    for number in usual:
        signal.signal(number, first)
    try:
        yield
    finally:
        restore()
