"""Whether a backend can be sent requests: asked by many, found out by one of them.

A failed connection, or an attempt that met its deadline, throws doubt on the backend. Until
the doubt is cleared nothing is sent: one request asks the backend, the others wait for what it
finds, so an outage costs only those an attempt that were under way. A backend that did not come
back is asked again by whoever comes later, and then answers soon (`Backend.wait_ready`). It
counts nothing and tries nothing again: `retry.py` does.
"""

from __future__ import annotations

from typing import Protocol

import anyio

from scheduler.backends.base import Backend
from scheduler.errors import SchedulerError


class Witness(Protocol):
    """Who is told when a backend goes and when it is back."""

    def lost(self, backend: str, error: SchedulerError) -> None:
        """The backend is gone."""
        ...

    def back(self, backend: str) -> None:
        """The backend that was gone can be used again."""
        ...


class Readiness:
    """What is known of one backend's readiness.

    Args:
        name: The backend's name, for the log.
        backend: Is asked.
    """

    def __init__(self, name: str, backend: Backend) -> None:
        self._down: SchedulerError | None = None
        self._name = name
        self._backend = backend
        self._doubts = 0
        self._cleared = 0
        self._findings = 0
        self._turn = anyio.Lock()

    @property
    def in_doubt(self) -> bool:
        """Whether the backend must be asked before it is sent anything."""
        return self._cleared < self._doubts

    def doubt(self) -> None:
        """Take note of a failed connection, a missed deadline, or a server that still loads."""
        self._doubts += 1

    async def wait(self, witness: Witness) -> None:
        """Return once the backend can be sent requests; at once if there is no doubt.

        Raises:
            SchedulerError: It did not come back.
        """
        while self.in_doubt:
            known = self._findings
            async with self._turn:
                if self._findings == known:
                    await self._find_out(witness)
            if self._down is not None:
                raise self._down

    async def _find_out(self, witness: Witness) -> None:
        before, doubts = self._down, self._doubts
        try:
            await self._backend.wait_ready()
        except SchedulerError as exc:
            self._down = exc
            if before is None:
                witness.lost(self._name, exc)
        else:
            self._down = None
            self._cleared = doubts  # not the ones that came meanwhile
            if before is not None:
                witness.back(self._name)
        self._findings += 1
