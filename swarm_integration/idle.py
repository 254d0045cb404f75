"""An asyncio loop that can tell when nothing in it is ready to run.

A round of questions is complete when every agent waits; no timer decides that.
An asyncio loop asks its selector for a time-out of zero as long as callbacks are
ready, and for a longer one only when it has nothing left to do: so a selector of
our own, which asyncio's constructor takes, sees the moment without any private name.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable

from scheduler.errors import SchedulerError


class IdleSelector(selectors.DefaultSelector):
    """Calls back once when its loop has run out of ready callbacks."""

    on_idle: Callable[[], None] | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for I/O as any selector; report first when the loop would sleep."""
        if self.on_idle is not None and (timeout is None or timeout > 0):
            notify, self.on_idle = self.on_idle, None
            notify()
            timeout = 0
        return super().select(timeout)


class SimulationLoop(asyncio.SelectorEventLoop):
    """The event loop of a simulation; `idle()` waits until all its tasks wait."""

    def __init__(self) -> None:
        self._idle_selector = IdleSelector()
        super().__init__(self._idle_selector)

    async def idle(self) -> None:
        """Return when every other task of this loop is waiting for something."""
        if self._idle_selector.on_idle is not None:
            raise SchedulerError("only one task at a time may wait for a loop to be idle")
        reached = self.create_future()

        def notify() -> None:
            if not reached.done():
                reached.set_result(None)

        self._idle_selector.on_idle = notify
        try:
            await reached
        finally:
            self._idle_selector.on_idle = None
