"""The pure decision: which waiting request runs next on a slot.

A plan is made from one window (at most `max_batch` requests, in order of
arrival) and used up before the next one is made, so nobody waits longer than
one window. Inside it, requests with a common prompt prefix stay together, since
a slot that has just read the prefix need not read it again, and the longest work
starts first, since what starts last ends last. No clock, no I/O, no randomness.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Container, Iterable
from typing import Generic, TypeVar

from scheduler.types import Request

T = TypeVar("T")

PREFILL_CHARS_PER_DECODE_TOKEN = 40
"""How many prompt characters are read in the time one token is written.

A measure for ordering only: 1,000 tokens/s of prefill against 100 of decode at
four characters a token.
"""


def cost(request: Request) -> int:
    """Return how much work `request` is at most, in prompt characters."""
    return request.prompt_chars + PREFILL_CHARS_PER_DECODE_TOKEN * request.sampling.max_tokens


class Plan(Generic[T]):
    """One window of requests, ordered, from which slots take.

    Args:
        window: What is planned, in order of arrival.
        request_of: The request behind an item.
    """

    def __init__(self, window: Iterable[T] = (), *, request_of: Callable[[T], Request]) -> None:
        self._request_of = request_of
        grouped: dict[str, list[T]] = {}
        for item in window:
            grouped.setdefault(request_of(item).group, []).append(item)

        def work(items: list[T]) -> int:
            return sum(cost(request_of(item)) for item in items)

        self._groups: dict[str, deque[T]] = {
            name: deque(sorted(items, key=lambda item: -cost(request_of(item))))
            for name, items in sorted(grouped.items(), key=lambda entry: -work(entry[1]))
        }
        self._size = sum(len(items) for items in self._groups.values())

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name[:6]}:{len(items)}" for name, items in self._groups.items())
        return f"<Plan {self._size} in [{sizes}]>"

    def __len__(self) -> int:
        return self._size

    def take(
        self,
        warm: str | None,
        resident: Container[str],
        at_home: Callable[[str], bool] | None = None,
    ) -> T:
        """Remove and return the item that a free slot should run.

        Args:
            warm: The group whose prefix the slot has read last, if any.
            resident: The groups that some slot has read last.
            at_home: Whether a group belongs where the slot is; None if places do not matter.

        Returns:
            An item of the warm group; else of the first group that no slot
            holds, so that slots share the groups out; else of the first group.
            Groups that belong elsewhere come after all that belong here.

        Raises:
            LookupError: The plan is used up.
        """
        if not self._groups:
            raise LookupError("the plan is used up")
        here: Collection[str] = self._groups
        if at_home is not None:
            here = [name for name in self._groups if at_home(name)] or here
        if warm is not None and warm in here:
            name = warm
        else:
            name = next((name for name in here if name not in resident), next(iter(here)))
        items = self._groups[name]
        item = items.popleft()
        if not items:
            del self._groups[name]
        self._size -= 1
        return item

    def withdraw(self, item: T) -> bool:
        """Remove `item`; return whether it was here."""
        name = self._request_of(item).group
        items = self._groups.get(name)
        if items is None or item not in items:
            return False
        items.remove(item)
        if not items:
            del self._groups[name]
        self._size -= 1
        return True
