"""How far a run is, how fast it goes and how long it still takes.

Read by whoever shows it (`live.py`), a few times a second and from another thread.
The run itself only says when a step begins; all else is read from the scheduler's
counters, so that nothing is done per request.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scheduler.engine import Scheduler

RECENT_STEPS = 8
"""Steps whose durations make the estimate of what is left."""

RATE_WINDOW_S = 30.0
"""Seconds over which tokens per second are counted."""


@dataclass(frozen=True, slots=True)
class LaneState:
    """One backend at one moment: its busy slots, all its slots, and who waits for them."""

    name: str
    busy: int
    slots: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment.

    Attributes:
        epoch: The epoch under way, from 1; 0 before the first step.
        epochs: How many there are.
        step: The step under way, from 1; 0 before the first.
        steps_per_epoch: How many an epoch has.
        steps_done: Steps that are over, in all epochs.
        settled: Requests of this step that have an answer or have failed.
        expected: Requests of this step as far as they are known, or None.
        lanes: The backends.
        tokens_per_s: Tokens written per second of late, or None before the first answer.
        recalled: Requests answered from the journal, in the whole run, as the next three.
        retries: Attempts that failed and were tried again.
        reasks: Answers that broke their schema and were asked for again.
        failures: Requests that have failed for good.
        elapsed_s: Seconds since the simulation's start.
        left_s: Seconds that it will still take, or None when that can't be said yet.
    """

    epoch: int
    epochs: int
    step: int
    steps_per_epoch: int
    steps_done: int
    settled: int
    expected: int | None
    lanes: tuple[LaneState, ...]
    tokens_per_s: float | None
    recalled: int
    retries: int
    reasks: int
    failures: int
    elapsed_s: float
    left_s: float | None

    @property
    def share(self) -> float:
        """How much of the run is done, from 0 to 1."""
        steps = self.epochs * self.steps_per_epoch
        if not steps:
            return 0.0
        of_step = self.settled / self.expected if self.expected else 0.0
        return min(1.0, (self.steps_done + of_step) / steps)


@dataclass(frozen=True, slots=True)
class _Began:
    """What the counters said when a step began."""

    epoch: int
    step: int
    at_s: float
    settled: int
    recalled: int


_NOT_BEGUN = _Began(-1, -1, 0.0, 0, 0)


class Progress:
    """Looks at a run.

    Args:
        scheduler: Whose counters are read.
        epochs: How many epochs the run has.
        steps_per_epoch: How many steps each of them has.
        rounds_known: Whether a step's questions come together (`batch`), so that their
            number is known before they are answered.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        epochs: int,
        steps_per_epoch: int,
        rounds_known: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._rounds_known = rounds_known
        self._clock = clock
        self._start_s = clock()
        self._began: _Began | None = None
        self._paces: tuple[float, ...] = ()
        self._rate = Rate(RATE_WINDOW_S)
        self._most: tuple[_Began | None, int] = (None, 0)

    def begin_step(self, epoch: int, step: int) -> None:
        """Note that a step begins; both count from 0."""
        stats, now, before = self._scheduler.stats, self._clock(), self._began
        if before is not None:
            asked = stats.requests - before.settled - (stats.recalled - before.recalled)
            if asked > 0:  # one that the journal answered says nothing of those to come
                self._paces = (*self._paces, now - before.at_s)[-RECENT_STEPS:]
        self._began = _Began(epoch, step, now, stats.requests, stats.recalled)

    def look(self) -> Snapshot:
        """Return the run as it is now; one thread at a time may call this."""
        stats, now = self._scheduler.stats, self._clock()
        began = self._began or _NOT_BEGUN
        settled = max(0, stats.requests - began.settled)
        expected = self._expected(began, settled) if self._rounds_known else None
        steps_done = max(0, began.epoch) * self._steps_per_epoch + max(0, began.step)
        self._rate.add(now, stats.completion_tokens)
        return Snapshot(
            epoch=began.epoch + 1,
            epochs=self._epochs,
            step=began.step + 1,
            steps_per_epoch=self._steps_per_epoch,
            steps_done=steps_done,
            settled=settled,
            expected=expected,
            lanes=tuple(
                LaneState(name, lane.in_flight, lane.slots, lane.waiting)
                for name, lane in self._scheduler.lanes.items()
            ),
            tokens_per_s=self._rate.per_s if stats.completion_tokens else None,
            recalled=stats.recalled,
            retries=stats.retries,
            reasks=stats.reasks,
            failures=stats.failures,
            elapsed_s=now - self._start_s,
            left_s=time_left(
                self._paces,
                elapsed_s=now - began.at_s,
                share=settled / expected if expected and stats.completion_tokens else None,
                steps_left=self._epochs * self._steps_per_epoch - steps_done - 1,
            ),
        )

    def _expected(self, began: _Began, settled: int) -> int:
        """Return the most that the step was seen to ask: a round that breaks off forgets it."""
        seen = self._most[1] if self._most[0] is began else 0
        self._most = (began, max(seen, settled + self._scheduler.unsettled))
        return self._most[1]


class Rate:
    """How fast a count has grown of late.

    Args:
        window_s: Seconds that count.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, now: float, count: int) -> None:
        """Note the count at a moment later than those before."""
        self._samples.append((now, count))
        while len(self._samples) > 2 and self._samples[1][0] <= now - self._window_s:
            self._samples.popleft()

    @property
    def per_s(self) -> float:
        """Growth per second over the window; 0 before there are two moments."""
        (then, before), (now, count) = self._samples[0], self._samples[-1]
        return (count - before) / (now - then) if now > then else 0.0


def time_left(
    paces: Sequence[float], *, elapsed_s: float, share: float | None, steps_left: int
) -> float | None:
    """Return how many seconds a run still takes, or None when nothing tells.

    Args:
        paces: Seconds that each of the last steps took.
        elapsed_s: Seconds since the step under way began.
        share: How much of that step is answered, from 0 to 1, or None when not known.
        steps_left: Steps after the one under way.
    """
    if paces:
        usual_s = sum(paces) / len(paces)
    elif share:
        usual_s = elapsed_s / share
    else:
        return None
    return max(0.0, usual_s - elapsed_s) + usual_s * max(0, steps_left)
