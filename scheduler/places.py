"""Which slot runs which prefix group next, by the prefix that each slot holds.

A slot has a KV cache of its own and keeps the prompt that it read last, so a request of the
same group costs less there than anywhere else. It stands beside the plan, which orders the
requests and knows no slots. Pure but for the notes on what was put where: no clock, no I/O,
no randomness.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from scheduler.backends.base import Placement

_EMPTY, _SECOND_COPY, _ONLY_COPY = range(3)
"""What is lost with the prefix of a slot, the least first."""


class Places:
    """The slots of one backend, free or taken, and the prefix that each holds.

    Args:
        count: How many slots there are.
        placement: Says which are there now and for whom, where slots differ.
        copies: Most slots that hold the same prefix: a slot stays free rather than hold one
            more. None: no limit, so that a slot is free only when nothing waits.
    """

    def __init__(
        self, count: int, placement: Placement | None = None, *, copies: int | None = None
    ) -> None:
        self._count = count
        self._placement = placement
        self._most_copies = count if copies is None else copies
        self._free = list(range(count))  # in order
        self._held: dict[int, str] = {}
        self._copies: Counter[str] = Counter()
        self._used_at = [0] * count
        self._uses = 0

    def __repr__(self) -> str:
        return f"<Places {self.taken} of {self._count} taken>"

    @property
    def taken(self) -> int:
        """How many slots are taken."""
        return self._count - len(self._free)

    def usable(self) -> Sequence[int]:
        """Return the slots that are free and there, in order."""
        if self._placement is None:
            return self._free
        return [slot for slot in self._free if self._placement.has_slot(slot)]

    def take(self, slot: int, group: str) -> None:
        """Take a free slot for a request of `group`, whose prefix it then holds."""
        self._free.remove(slot)
        self._uses += 1
        self._used_at[slot] = self._uses
        before = self._held.get(slot)
        if before == group:
            return
        if before is not None:
            self._copies[before] -= 1
            if not self._copies[before]:
                del self._copies[before]  # groups may come without end
        self._held[slot] = group
        self._copies[group] += 1

    def release(self, slot: int) -> None:
        """Give a slot back; it goes on holding what it has read."""
        insort(self._free, slot)

    def choose(self, waiting: Mapping[str, int]) -> tuple[int, str] | None:
        """Return the slot to take next and the group to take it for, None if there is none.

        A group goes where its prefix is held. Next come groups that no slot holds, then
        second copies, for the group of which most requests wait.

        Args:
            waiting: How many requests of each group wait, in the order of the plan.
        """
        free = self.usable()
        if not free or not waiting:
            return None
        if self._placement is None:
            return self._warm(free, waiting) or self._cold(free, waiting)
        at_home = self._at_home(free, waiting, self._placement)
        return at_home or self._warm(free, waiting) or self._cold(free, waiting)

    def choose_for(self, group: str) -> int:
        """Return the slot for a request of `group` that waits no longer; one must be usable."""
        free = self.usable()
        pair = self._warm(free, {group: 1})
        return min(free, key=self._loss) if pair is None else pair[0]

    def _at_home(
        self, free: Sequence[int], waiting: Mapping[str, int], placement: Placement
    ) -> tuple[int, str] | None:
        """Choose among the slots where the groups belong."""
        homes = {
            slot: {group: waiting[group] for group in waiting if placement.is_home(slot, group)}
            for slot in free
        }
        for slot in free:
            if pair := self._warm([slot], homes[slot]):
                return pair
        for slot in sorted(free, key=self._loss):
            if homes[slot] and (pair := self._cold([slot], homes[slot])):
                return pair
        return None

    def _warm(self, free: Iterable[int], waiting: Mapping[str, int]) -> tuple[int, str] | None:
        """Choose the first group, in the order of the plan, whose prefix a free slot holds."""
        first: dict[str, int] = {}
        for slot in free:
            group = self._held.get(slot)
            if group is not None:
                first.setdefault(group, slot)
        return next(((first[group], group) for group in waiting if group in first), None)

    def _cold(self, free: Iterable[int], waiting: Mapping[str, int]) -> tuple[int, str] | None:
        """Choose the slot with least to lose, and a group that no slot holds if there is one."""
        choice = next((group for group in waiting if not self._copies[group]), None)
        if choice is None:  # all are held by some slot, so they are few
            allowed = [group for group in waiting if self._copies_there(group) < self._most_copies]
            if not allowed:
                return None
            choice = max(allowed, key=lambda group: waiting[group])
        return min(free, key=self._loss), choice

    def _copies_there(self, group: str) -> int:
        """Return how many slots hold `group`; one whose server is gone keeps nobody waiting."""
        there = self._placement
        if there is None:
            return self._copies[group]
        return sum(held == group and there.has_slot(slot) for slot, held in self._held.items())

    def _loss(self, slot: int) -> tuple[int, int]:
        group = self._held.get(slot)
        if group is None:
            return _EMPTY, slot
        return (_ONLY_COPY if self._copies[group] == 1 else _SECOND_COPY), self._used_at[slot]
