"""A thread that one object owns, for native calls that must never run side by side.

The thread is the lock: calls wait in its queue and run one after another. A task that is
cancelled tells its call to stop and waits for that, but not for ever; a call that does not
return is `overdue`, and everything behind it waits until it does. Knows nothing of models.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import anyio
from anyio.lowlevel import current_token

from scheduler.wake import wake

T = TypeVar("T")

Stopped = Callable[[], bool]


class _Call(Generic[T]):
    """One native call and the task that waits for it."""

    def __init__(
        self, work: Callable[[Stopped], T], label: str, interrupt: Callable[[], None] | None
    ) -> None:
        self.label = label
        self.done = anyio.Event()
        self.abandoned = False
        self._work = work
        self._interrupt = interrupt
        self._token = current_token()
        self._guard = threading.Lock()
        self._stopped = False
        self._running = False
        self._result: T | None = None
        self._error: BaseException | None = None

    def stop(self) -> bool:
        """Tell it to stop; return whether it is running."""
        with self._guard:
            self._stopped = True
            if self._running and self._interrupt is not None:
                self._interrupt()
            return self._running

    def run(self) -> None:
        """Run on the owned thread, then wake the task."""
        with self._guard:
            if self._stopped:
                return
            self._running = True
        try:
            self._result = self._work(lambda: self._stopped)
        except BaseException as exc:  # noqa: BLE001 - raised again where it is waited for
            self._error = exc
        with self._guard:
            self._running = False
        if not self.abandoned:
            wake(self._token, self.done.set)

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return cast(T, self._result)


class NativeThread:
    """Runs calls one after another on one thread, started with the first of them.

    Args:
        name: The thread's name.
        grace_s: How long a cancelled task waits for its call to stop, in seconds.
    """

    def __init__(self, name: str, *, grace_s: float) -> None:
        self._name = name
        self._grace_s = grace_s
        self._calls: queue.SimpleQueue[_Call[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._current: _Call[Any] | None = None
        self._closed = False
        self._between: Callable[[], bool] = lambda: False

    @property
    def overdue(self) -> str | None:
        """The label of the call that was told to stop and has not returned, if there is one."""
        call = self._current
        return call.label if call is not None and call.abandoned else None

    async def run(
        self,
        work: Callable[[Stopped], T],
        *,
        label: str,
        interrupt: Callable[[], None] | None = None,
    ) -> T:
        """Return what `work` returns, on the owned thread, after the calls before it.

        Args:
            work: The call; it is given a function that says whether it should stop.
            label: Names it in errors.
            interrupt: Makes a running call end soon; called on the event loop's thread.

        Raises:
            RuntimeError: The thread is closed.
        """
        if self._closed:
            raise RuntimeError(f"{self._name} is closed")
        if self._thread is None:
            # A daemon: a native call that never returns must not keep the process alive.
            self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
            self._thread.start()
        call = _Call(work, label, interrupt)
        self._calls.put(call)
        try:
            await call.done.wait()
        except BaseException:
            if call.stop():
                await self._wait_out(call)
            raise
        return call.result()

    def do_between(self, work: Callable[[], bool]) -> None:
        """Have the thread call `work` whenever no call waits, until it returns False.

        It is called again after the next call. Give it on the owned thread.
        """
        self._between = work

    async def aclose(self, last: Callable[[], None]) -> None:
        """Stop what runs, run `last` after it and end the thread; may be called twice.

        Returns after the grace time even if the running call has not returned; `last` then
        runs when it has.
        """
        if self._closed:
            return
        current = self._current
        if current is not None:
            current.stop()
        if self._thread is None:
            self._closed = True
            return
        call = _Call(lambda _: last(), "closing", None)
        self._calls.put(call)
        self._calls.put(None)
        self._closed = True
        await self._wait_out(call)
        if call.done.is_set():
            call.result()

    async def _wait_out(self, call: _Call[Any]) -> None:
        with anyio.move_on_after(self._grace_s, shield=True):
            await call.done.wait()
        call.abandoned = not call.done.is_set()

    def _loop(self) -> None:
        more = False
        while True:
            try:
                call = self._calls.get(block=not more)
            except queue.Empty:
                more = self._between()
                continue
            if call is None:
                return
            self._current = call
            call.run()
            self._current = None
            more = True
