"""Looks at the engine after each of its events, and keeps what it finds wrong.

Defects are kept and raised at the end, since an error inside a log ends a run as a broken log
would, and one inside a backend fails its request: both would hide what is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from scheduler.backends.base import RawAnswer
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.journal import Journal
from scheduler.retry import MAX_FREE_PASSES
from scheduler.seeds import request_seed
from scheduler.types import Completion, Request

Key = tuple[str, int]
"""The agent and the step of a request."""


class Watch:
    """The log of a simulated world's schedulers, and its record of their backends.

    Args:
        config: What the schedulers were told.
        slots: The slots of each backend.
    """

    def __init__(self, config: SchedulerConfig, slots: Mapping[str, int]) -> None:
        self._config = config
        self._slots = slots
        self._acknowledged: set[tuple[Key, int]] = set()
        self.defects: list[str] = []
        self.trail: list[Any] = []
        self.counts: Counter[str] = Counter()
        self.begin_life()

    def begin_life(self) -> None:
        """A new scheduler begins, with the journal that the last one left."""
        self.scheduler: Scheduler | None = None
        self.journal: Journal | None = None
        self._before = set(self._acknowledged)
        self._queued: dict[Key, int] = {}
        self._waiting: dict[Key, tuple[str, int]] = {}
        self._ended: Counter[Key] = Counter()
        self._attempts: Counter[Key] = Counter()
        self._last_seed: dict[Key, int] = {}
        self._asked: Counter[tuple[Key, int]] = Counter()
        self._free: Counter[tuple[Key, int]] = Counter()

    def end_life(self) -> None:
        """Every request that came in has ended."""
        never = sorted(set(self._queued) - set(self._ended))
        self.check(not never, f"{never} never ended")
        self.check(set(self._ended) <= set(self._queued), "a request ended that never came")

    def check(self, holds: bool, otherwise: str) -> None:
        """Keep `otherwise` as a defect unless it `holds`."""
        if not holds:
            self.defects.append(otherwise)

    def raise_defects(self) -> None:
        """Raise what was found, if anything was."""
        if self.defects:
            raise AssertionError("; ".join(dict.fromkeys(self.defects)))

    # --- what the backends see

    def asks(self, request: Request, seed: int) -> None:
        """An attempt has reached a backend."""
        key = (request.agent_id, request.step)
        self.trail.append((key, seed))
        self.check(not self._ended[key], f"{key} is asked after its end")
        self.check((key, seed) not in self._acknowledged, f"{key} is asked again: it was answered")
        self._last_seed[key] = seed
        self._asked[key, seed] += 1
        allowed = request.max_retries + 1 + min(self._free[key, seed], MAX_FREE_PASSES)
        self.check(self._asked[key, seed] <= allowed, f"{key} has too many attempts")

    def check_answers(
        self, completion: Completion, answer: Callable[[Request, int], RawAnswer]
    ) -> None:
        """Check a completion against what the world's model says, whatever went wrong before."""
        request = completion.request
        for reask, got in enumerate(completion.answers):
            seed = request_seed(request, reask)
            expected = answer(request, seed).text
            self.check((got.seed, got.text) == (seed, expected), f"{request.label}: {got.text!r}")
        if completion.error is None:
            self.check(bool(completion.answers), f"{request.label} has no answer and no error")
        else:
            self.check(self._config.on_failure == "noop", f"{request.label} failed without an end")
        self.counts["failed" if completion.error else "answered"] += 1

    # --- what the engine tells

    def info(self, event: str, **fields: Any) -> None:
        """Take note of an event, and look."""
        key = (fields.get("agent_id", ""), fields.get("step", 0))
        self.trail.append((event, key))
        self.counts[event] += 1
        match event:
            case "request.queued":
                self.check(key not in self._queued, f"{key} was queued twice")
                self._queued[key] = len(self._queued)
                self._waiting[key] = (fields["backend"], 0)
            case "request.recalled":
                self.check(self.journal is not None, "recalled without a journal")
                self._queued[key] = len(self._queued)
            case "request.dispatched":
                self._dispatched(key, fields["attempt"], fields["backend"])
            case "request.retried" if fields["error"] == "ServerLoading":
                self._free[key, self._last_seed[key]] += 1
            case "request.answered":
                self._answered(key, fields["seed"])
            case "request.settled" | "request.withdrawn":
                self._ended[key] += 1
                self._waiting.pop(key, None)
                self.check(self._ended[key] == 1, f"{key} ended twice")
        self._look()

    warning = info
    error = info

    def _dispatched(self, key: Key, attempt: int, backend: str) -> None:
        self._attempts[key] += 1
        self.check(self._attempts[key] == attempt, f"{key}: attempts are not counted one by one")
        if self._waiting.pop(key, None) is None:
            return
        # Which of those that have a slot is sent first is the event loop's business.
        for placed in self._placed():
            self._waiting.pop(placed, None)
        for earlier, (name, overtaken) in self._waiting.items():
            if name == backend and self._queued[earlier] < self._queued[key]:
                self._waiting[earlier] = (name, overtaken + 1)
                bound = self._config.max_batch + self._slots[backend]
                self.check(overtaken + 1 < bound, f"{earlier} waits longer than a window")

    def _placed(self) -> list[Key]:
        steps = [] if self.scheduler is None else self.scheduler._steps
        entries = (entry for step in steps for entry in step.entries)
        return [(e.request.agent_id, e.request.step) for e in entries if e.slot is not None]

    def _answered(self, key: Key, seed: int) -> None:
        if self.journal is not None and self.journal.broken is None:
            self._acknowledged.add((key, seed))

    def _look(self) -> None:
        if self.scheduler is None:
            return
        for lane in self.scheduler.lanes.values():
            self.check(0 <= lane.in_flight <= lane.slots, f"{lane!r}: in flight")
            self.check(len(lane.queue) <= self._config.queue_limit, f"{lane!r}: queue too long")
