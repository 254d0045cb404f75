"""Ctrl-C during a run: the first ends it after what is in flight, the second at once.

The first one is told to the scheduler, which starts nothing more, keeps what is still
answered and then ends the step. The second one is asyncio's own: it cancels the run.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from scheduler.engine import Scheduler
from scheduler.errors import RunEndingError


class RunInterrupted(RunEndingError):
    """The user has asked the run to end."""


@contextmanager
def ended_by_ctrl_c(scheduler: Scheduler) -> Iterator[None]:
    """Let the first Ctrl-C end `scheduler`'s steps; elsewhere than in the main thread, nothing.

    Raises:
        RunInterrupted: It did, in place of what the scheduler's steps return.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    loop = asyncio.get_running_loop()

    def end() -> None:
        count = scheduler.in_flight
        print(  # noqa: T201 - the one moment when it helps
            f"\ninterrupted: waiting for {count} requests in flight; Ctrl-C again ends at once",
            file=sys.stderr,
        )
        scheduler.end(RunInterrupted("the run was interrupted"))

    def first(_number: int, _frame: Any) -> None:
        signal.signal(signal.SIGINT, usual)
        loop.call_soon_threadsafe(end)

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is first:
            signal.signal(signal.SIGINT, usual)
