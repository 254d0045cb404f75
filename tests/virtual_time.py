"""Event loops whose clock jumps to the next deadline when nothing is ready to run.

`asyncio` gets a loop with a clock of its own, `trio` its `MockClock`. Both start
at an exact number of seconds, so tests may compare times with `==`.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import trio
from trio.testing import MockClock

T = TypeVar("T")

BACKENDS = ("asyncio", "trio")


class _JumpingSelector(selectors.DefaultSelector):
    """Moves the clock on instead of waiting; waits for threads, but not for ever."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            events = super().select(5.0)
            if not events:
                raise RuntimeError("deadlock: no task is ready and no deadline is set")
            return events
        events = super().select(0)
        if not events:
            self.now += max(0.0, timeout)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop on virtual time."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def options(backend: str) -> dict[str, Any]:
    """Return anyio's options for virtual time, with a new clock."""
    if backend == "trio":
        return {"clock": MockClock(autojump_threshold=0)}
    return {"loop_factory": VirtualLoop}


def run(backend: str, main: Callable[[], Awaitable[T]]) -> T:
    """Run `main` on virtual time, for tests that start many runs of their own."""
    return anyio.run(main, backend=backend, backend_options=options(backend))


def seed_schedule(seed: int) -> None:
    """Make trio, which shuffles ready tasks on purpose, do so in the same way again."""
    trio._core._run._r.seed(seed)
