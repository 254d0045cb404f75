"""Waiting requests: a bounded first-in-first-out queue with back-pressure.

It holds entries and forgets them when they are taken or withdrawn, each in
constant time. It decides nothing; which entry runs next is `plan.py`'s answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import anyio

T = TypeVar("T", bound=Hashable)


class WaitingQueue(Generic[T]):
    """At most `limit` items in order of arrival.

    Args:
        limit: Most items held at once; who brings more waits for room.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: OrderedDict[T, None] = OrderedDict()
        self._room = anyio.Event()

    def __repr__(self) -> str:
        return f"<WaitingQueue {len(self._items)} of {self._limit}>"

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        """Whether `put` would have to wait."""
        return len(self._items) >= self._limit

    async def wait_room(self) -> None:
        """Return once there is room for one more item."""
        while self.full:
            await self._room.wait()

    def put(self, item: T) -> None:
        """Append `item`; the caller has waited for room."""
        self._items[item] = None

    def take(self, count: int) -> list[T]:
        """Remove and return the first `count` items, fewer if there are fewer."""
        count = min(count, len(self._items))
        taken = [self._items.popitem(last=False)[0] for _ in range(count)]
        self._notify()
        return taken

    def withdraw(self, item: T) -> bool:
        """Remove `item` wherever it stands; return whether it was here."""
        if item not in self._items:
            return False
        del self._items[item]
        self._notify()
        return True

    def _notify(self) -> None:
        self._room.set()
        self._room = anyio.Event()
