"""Waiting requests: bounded first-in-first-out queues with back-pressure.

`WaitingQueue` holds entries and forgets them when they are taken or withdrawn, each in
constant time. `FairQueue` has one for each tenant and lets them take turns; whose turn
it is says `in_turns`, a pure function. Which entry runs next is `plan.py`'s answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

import anyio

T = TypeVar("T", bound=Hashable)
K = TypeVar("K")  # told apart as the keys of a dictionary are


class WaitingQueue(Generic[T]):
    """At most `limit` items in order of arrival.

    Args:
        limit: Most items held at once; who brings more waits for room.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: OrderedDict[T, None] = OrderedDict()
        self._calls: OrderedDict[object, anyio.Event] = OrderedDict()

    def __repr__(self) -> str:
        return f"<WaitingQueue {len(self._items)} of {self._limit}>"

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        """Whether `put` would have to wait."""
        return len(self._items) >= self._limit

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for room."""
        return bool(self._calls)

    async def wait_room(self) -> None:
        """Return once there is room for one more item; who waits longest is called first."""
        me = object()
        try:
            while self.full:
                self._calls[me] = anyio.Event()  # again, and in the same place
                await self._calls[me].wait()
        finally:
            self._calls.pop(me, None)
            self._call_first()  # there may be more room

    def put(self, item: T) -> None:
        """Append `item`; the caller has waited for room."""
        self._items[item] = None

    def take(self, count: int) -> list[T]:
        """Remove and return the first `count` items, fewer if there are fewer."""
        count = min(count, len(self._items))
        taken = [self._items.popitem(last=False)[0] for _ in range(count)]
        self._call_first()
        return taken

    def withdraw(self, item: T) -> bool:
        """Remove `item` wherever it stands; return whether it was here."""
        if item not in self._items:
            return False
        del self._items[item]
        self._call_first()
        return True

    def _call_first(self) -> None:
        """Wake one of those who wait for room; it wakes the next. All at once would be too many."""
        if self._calls and not self.full:
            next(iter(self._calls.values())).set()


def in_turns(waiting: Mapping[K, int], room: int) -> list[K]:
    """Return who gets each of the next places: one each, round after round, in order.

    Args:
        waiting: How many places each one wants, in the order of their turns.
        room: How many places there are.
    """
    turns: list[K] = []
    left = {key: count for key, count in waiting.items() if count > 0}
    while left and len(turns) < room:
        for key in list(left)[: room - len(turns)]:
            turns.append(key)
            left[key] -= 1
            if not left[key]:
                del left[key]
    return turns


class FairQueue(Generic[K, T]):
    """One `WaitingQueue` for each tenant; what is taken comes from all of them in turns.

    Who was taken from last is the last in turn the next time, so a tenant with many
    items delays another one's next item by one item of its own, and its limit is its own.

    Args:
        limit: Most items that a tenant has here at once.
        tenant_of: Whose an item is.
    """

    def __init__(self, limit: int, tenant_of: Callable[[T], K]) -> None:
        self._limit = limit
        self._tenant_of = tenant_of
        self._queues: OrderedDict[K, WaitingQueue[T]] = OrderedDict()  # in the order of turns
        self._size = 0

    def __repr__(self) -> str:
        return f"<FairQueue {self._size} waiting, {len(self._queues)} tenants>"

    def __len__(self) -> int:
        return self._size

    def full_for(self, tenant: K) -> bool:
        """Whether `put` of an item of `tenant` would have to wait."""
        return tenant in self._queues and self._queues[tenant].full

    async def wait_room(self, tenant: K) -> None:
        """Return once there is room for one more item of `tenant`."""
        while self.full_for(tenant):
            try:
                await self._queues[tenant].wait_room()
            finally:
                self._drop_unused(tenant)

    def put(self, item: T) -> None:
        """Append `item` to its tenant's queue; the caller has waited for room."""
        tenant = self._tenant_of(item)
        if tenant not in self._queues:
            self._queues[tenant] = WaitingQueue(self._limit)
        self._queues[tenant].put(item)
        self._size += 1

    def take(self, count: int) -> list[T]:
        """Remove and return the next `count` items, fewer if there are fewer."""
        taken: list[T] = []
        if len(self._queues) == 1:  # nobody to take turns with, as in most runs
            turns = list(self._queues)
            taken = self._queues[turns[0]].take(count)
        else:
            turns = in_turns({key: len(queue) for key, queue in self._queues.items()}, count)
            for tenant in turns:
                taken += self._queues[tenant].take(1)
                self._queues.move_to_end(tenant)
        for tenant in dict.fromkeys(turns):
            self._drop_unused(tenant)
        self._size -= len(taken)
        return taken

    def withdraw(self, item: T) -> bool:
        """Remove `item` wherever it stands; return whether it was here."""
        tenant = self._tenant_of(item)
        if tenant not in self._queues or not self._queues[tenant].withdraw(item):
            return False
        self._size -= 1
        self._drop_unused(tenant)
        return True

    def _drop_unused(self, tenant: K) -> None:
        queue = self._queues.get(tenant)
        if queue is not None and not len(queue) and not queue.awaited:
            del self._queues[tenant]
