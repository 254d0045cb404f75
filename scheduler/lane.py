"""One backend's part of the engine: its slots, its queue and its current plan.

Only the engine calls it, and nothing here waits: `assign` is the step that pairs
free slots with requests and returns what is to be started. Several schedulers may be
its tenants: they take turns in the queue, and each starts its own requests.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import anyio

from scheduler.backends.base import Backend, BackendInfo, Placement, how_to_get_slots
from scheduler.config import SchedulerConfig
from scheduler.errors import ConfigError
from scheduler.places import Places
from scheduler.plan import Plan
from scheduler.queue import FairQueue
from scheduler.readiness import Readiness
from scheduler.types import Answer, Completion, Request

if TYPE_CHECKING:
    from scheduler.step import Step


class Tenant(Protocol):
    """A scheduler whose requests wait in a lane; told apart by identity."""

    def start(self, lane: Lane, entry: Entry) -> None:
        """Start `entry`, one of its own, which has just been given a slot."""
        ...


@dataclass(eq=False, slots=True)
class Entry:
    """A request on its way through the engine; it settles exactly once.

    Attributes:
        request: What is asked.
        owner: The step that waits for it.
        tenant: Whose it is.
        asked_at: When its step began (monotonic seconds).
        dispatched: Whether it has been given a slot, once or more often.
        queue_ms: How long it waited until it was sent, in milliseconds.
        slot: The slot it holds, or None.
        last_slot: The slot it held last, or -1.
        answers: What was answered so far, from the journal or by the backend.
        attempts: Attempts dispatched so far.
        waits_ready: Whether it is not sent yet, because its backend may be gone.
        got_slot: Set when a slot is assigned after a pause.
        scope: Cancels it, once it has been given a slot.
        settled: Whether it has left the engine.
        completion: How it was settled; None as long as it is not, or when withdrawn.
    """

    request: Request
    owner: Step
    tenant: Tenant
    asked_at: float
    dispatched: bool = False
    queue_ms: float = 0.0
    slot: int | None = None
    last_slot: int = -1
    answers: list[Answer] = field(default_factory=list)
    attempts: int = 0
    waits_ready: bool = False
    got_slot: anyio.Event | None = None
    scope: anyio.CancelScope = field(init=False)
    settled: bool = False
    completion: Completion | None = None

    def begin(self) -> None:
        """Take note that it has its first slot."""
        self.dispatched = True
        self.scope = anyio.CancelScope()


class Lane:
    """The slots of one backend and the requests that wait for them.

    Args:
        name: The name by which requests choose this backend.
        backend: Who answers.
        info: What the backend said at its start.
        config: Slots, window and length of the queue.

    Raises:
        ConfigError: More slots are configured than the backend has.
    """

    def __init__(
        self, name: str, backend: Backend, info: BackendInfo, config: SchedulerConfig
    ) -> None:
        self.name = name
        self.backend = backend
        self.info = info
        self.readiness = Readiness(name, backend)
        self.slots = _slots(name, config.slots, info)
        self.batches = 0
        self.queue: FairQueue[Tenant, Entry] = FairQueue(config.queue_limit, _tenant_of)
        self._max_batch = config.max_batch
        copies = None if config.prefix_copies == "auto" else config.prefix_copies
        self._plan: Plan[Entry] = Plan(request_of=_request_of, by_text=1 in (self.slots, copies))
        self._returning: OrderedDict[Entry, None] = OrderedDict()
        self._places = Places(
            self.slots,
            backend if isinstance(backend, Placement) else None,
            copies=copies,
        )
        self._held: Counter[Tenant] = Counter()
        self._windows: Counter[Tenant] = Counter()

    def __repr__(self) -> str:
        return (
            f"<Lane {self.name}: {self.in_flight} of {self.slots} slots busy, "
            f"{len(self._returning)} returning, {len(self._plan)} planned, "
            f"{len(self.queue)} queued>"
        )

    @property
    def in_flight(self) -> int:
        """How many slots are taken."""
        return self._places.taken

    def held_by(self, tenant: Tenant) -> int:
        """Return how many slots `tenant` has."""
        return self._held[tenant]

    def batches_of(self, tenant: Tenant) -> int:
        """Return in how many planned windows requests of `tenant` were."""
        return self._windows[tenant]

    def forget(self, tenant: Tenant) -> None:
        """Drop the counts of a tenant that has left."""
        del self._held[tenant], self._windows[tenant]

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return len(self.queue) + len(self._plan) + len(self._returning)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not (self.in_flight or self.waiting)

    def dispatch(self, keep_for: Tenant | None = None) -> Entry | None:
        """Let every request start that a free slot can take; called on each change.

        Args:
            keep_for: Who has a task that is free for one new request of its own.

        Returns:
            That request; all others have been started.
        """
        kept: Entry | None = None
        for entry in self.assign():
            is_new = not entry.dispatched
            if is_new:
                entry.begin()
            if is_new and kept is None and entry.tenant is keep_for:
                kept = entry
            else:
                entry.tenant.start(self, entry)
        return kept

    def assign(self) -> list[Entry]:
        """Give free slots their next requests and return those, slots filled in.

        Requests that come back after a failed attempt go first, then the plan; more is
        planned from the queue when nothing of it can run now.
        """
        assigned: list[Entry] = []
        while (entry := self._next()) is not None:
            assigned.append(entry)
        return assigned

    def release(self, entry: Entry) -> None:
        """Take the slot back from `entry`, or its place among those that return."""
        if entry.slot is not None:
            self._places.release(entry.slot)
            self._held[entry.tenant] -= 1
            entry.slot = None
        else:
            self._returning.pop(entry, None)

    def give_back(self, entry: Entry) -> None:
        """Queue an entry again after a failed attempt, before all planned ones."""
        self._returning[entry] = None

    def withdraw(self, entry: Entry) -> bool:
        """Forget an entry that never had a slot; return whether it was waiting here."""
        return self.queue.withdraw(entry) or self._plan.withdraw(entry)

    def _next(self) -> Entry | None:
        """Put the next entry on a slot and return it; None if none can run now."""
        if not self._places.usable():
            return None
        if self._returning:
            entry, _ = self._returning.popitem(last=False)
            return self._put(entry, self._places.choose_for(entry.request.group))
        choice = self._places.choose(self._plan.waiting)
        while choice is None:
            # What is planned, if anything, waits for slots that are busy; others need not.
            if not self._plan_more():
                return None
            choice = self._places.choose(self._plan.waiting)
        slot, group = choice
        return self._put(self._plan.take(group), slot)

    def _plan_more(self) -> bool:
        window = self.queue.take(self._max_batch)
        if window:
            self._plan.add(window)
            self.batches += 1
            self._windows.update({entry.tenant for entry in window})
        return bool(window)

    def _put(self, entry: Entry, slot: int) -> Entry:
        self._places.take(slot, entry.request.group)
        self._held[entry.tenant] += 1
        entry.slot = entry.last_slot = slot
        return entry


def _slots(name: str, configured: int | str, info: BackendInfo) -> int:
    if isinstance(configured, str) or info.serial:
        return info.slots
    if configured > info.slots:
        raise ConfigError(
            f"scheduler.slots is {configured}, but backend {name!r} ({info.model}) has "
            f"{info.slots}. Lower it, or {how_to_get_slots(info.kind, configured)}"
        )
    return configured


def _request_of(entry: Entry) -> Request:
    return entry.request


def _tenant_of(entry: Entry) -> Tenant:
    return entry.tenant
