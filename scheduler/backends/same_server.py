"""Noticing that another server answers than the one that was met at the start.

A process behind an open connection can't change, so a server has to be asked who it is once for
each new connection, and not once for each answer. What is behind a proxy can change under an
open connection; that shows when the answers name another model or build.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from weakref import WeakSet


class SameServer:
    """Asks a server who it is whenever that is in doubt.

    Args:
        verify: Asks it; raises if it is another one, or can't be asked.
    """

    def __init__(self, verify: Callable[[], Awaitable[None]]) -> None:
        self._verify = verify
        self._connections: WeakSet[object] = WeakSet()
        self._names: set[tuple[str, str]] = set()

    async def check(self, connection: object | None, asked: str, answered: str) -> None:
        """Return if the answer that came may be taken.

        Args:
            connection: What it came over, None if that is not known.
            asked: The model that was asked for, which some servers repeat as theirs.
            answered: What the answer says of who gave it.
        """
        names = (asked, answered)
        if connection in self._connections and names in self._names:
            return
        await self._verify()
        self._names.add(names)
        if connection is not None:
            self._connections.add(connection)
