"""Orders that SWARM leaves to chance: of a set's elements, and of posts of nearly one age.

A set of ids is iterated in an order that changes with PYTHONHASHSEED; a ranking
that reads the clock once per post compares ages of different moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from enum import Enum
from functools import wraps
from typing import Any

from swarm_integration.sources import active_sources


class SortedSet(set[Any]):
    """A set whose order follows from its elements and not from PYTHONHASHSEED."""

    def __iter__(self) -> Iterator[Any]:
        return iter(sorted(super().__iter__(), key=_rank))

    def pop(self) -> Any:
        """Remove and return the first element."""
        for first in self:
            self.remove(first)
            return first
        raise KeyError("pop from an empty set")

    def copy(self) -> SortedSet:
        """Return a copy that is sorted too."""
        return SortedSet(self)

    def union(self, *others: Iterable[Any]) -> SortedSet:
        """Return what is in any."""
        return SortedSet(super().union(*others))

    def intersection(self, *others: Iterable[Any]) -> SortedSet:
        """Return what is in all."""
        return SortedSet(super().intersection(*others))

    def difference(self, *others: Iterable[Any]) -> SortedSet:
        """Return what is in none of the others."""
        return SortedSet(super().difference(*others))

    def symmetric_difference(self, other: Iterable[Any]) -> SortedSet:
        """Return what is in one of both."""
        return SortedSet(super().symmetric_difference(other))

    def __or__(self, other: Any) -> Any:
        return _sorted(super().__or__(other))

    def __and__(self, other: Any) -> Any:
        return _sorted(super().__and__(other))

    def __sub__(self, other: Any) -> Any:
        return _sorted(super().__sub__(other))

    def __xor__(self, other: Any) -> Any:
        return _sorted(super().__xor__(other))

    def __ror__(self, other: Any) -> Any:
        return SortedSet(other) | self if isinstance(other, AbstractSet) else NotImplemented

    def __rand__(self, other: Any) -> Any:
        return SortedSet(other) & self if isinstance(other, AbstractSet) else NotImplemented

    def __rsub__(self, other: Any) -> Any:
        return SortedSet(other) - self if isinstance(other, AbstractSet) else NotImplemented

    def __rxor__(self, other: Any) -> Any:
        return SortedSet(other) ^ self if isinstance(other, AbstractSet) else NotImplemented


def _sorted(result: Any) -> Any:
    return SortedSet(result) if isinstance(result, set) else result


def _rank(element: Any) -> tuple[Any, ...]:
    kind = type(element).__name__
    if isinstance(element, Enum):
        return kind, element.name
    if isinstance(element, tuple):
        return kind, tuple(_rank(part) for part in element)
    if isinstance(element, AbstractSet):
        return kind, tuple(sorted(_rank(part) for part in element))
    if isinstance(element, (bool, int, float)):
        return "", element
    return kind, str(element)


def at_one_instant(rank: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method that ranks by age take all ages at the same time."""

    @wraps(rank)
    def ranked(*args: Any, **kwargs: Any) -> Any:
        sources = active_sources.get()
        if sources is None:
            return rank(*args, **kwargs)
        with sources.clock.held():
            return rank(*args, **kwargs)

    return ranked


def sorted_inside(find: Callable[..., list[set[Any]]]) -> Callable[..., list[set[Any]]]:
    """Let a method that returns a list of sets return sorted ones."""

    @wraps(find)
    def found(*args: Any, **kwargs: Any) -> list[set[Any]]:
        sets = find(*args, **kwargs)
        return sets if active_sources.get() is None else [SortedSet(one) for one in sets]

    return found


def of_sorted_agents(analyze: Callable[..., Any]) -> Callable[..., Any]:
    """Let an analysis that is not told the agents take them in sorted order.

    Upstream collects them from the interactions, into a set.
    """

    @wraps(analyze)
    def analyzed(self: Any, interactions: Any = None, agent_ids: Any = None) -> Any:
        if active_sources.get() is not None and interactions and agent_ids is None:
            parties = {i.initiator for i in interactions} | {i.counterparty for i in interactions}
            agent_ids = sorted(parties)
        return analyze(self, interactions, agent_ids)

    return analyzed
