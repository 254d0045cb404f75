"""What a run draws from instead of the machine: ids, a clock and random numbers.

All of it follows from the run's seed and from how often it was asked, never from
when. The context variable says which run the current code belongs to; threads
and tasks that a run did not start see none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import sha256
from itertools import count
from random import Random
from uuid import UUID

from scheduler.canonical import canonical_json
from scheduler.seeds import derive_seed

_START = datetime(2000, 1, 1, tzinfo=UTC)
_TICK = timedelta(microseconds=1)


class LogicalClock:
    """A clock that moves with the simulation: by step, and by 1 µs per reading.

    Readings that are equal would turn orders round which SWARM sorts by time.

    Args:
        seconds_per_step: How much simulated time a step takes.
    """

    def __init__(self, seconds_per_step: float) -> None:
        self._step = timedelta(seconds=seconds_per_step)
        self._now = _START
        self._holds = 0
        self.steps_per_epoch = 1

    def move_to(self, epoch: int, step: int) -> None:
        """Move on to the start of a step; never back."""
        start = _START + (epoch * self.steps_per_epoch + step) * self._step
        self._now = max(self._now, start)

    def read(self, zone: tzinfo | None = None) -> datetime:
        """Return the time in `zone`; without one as naive UTC."""
        if not self._holds:
            self._now += _TICK
        return self._now.astimezone(zone) if zone else self._now.replace(tzinfo=None)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let every reading within the block return the same time."""
        self.read()
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    def covers(self, time: datetime) -> bool:
        """Whether a naive `time` lies between this clock's start and its last reading."""
        return _START.replace(tzinfo=None) < time <= self._now.replace(tzinfo=None)


class Sources:
    """The ids, the clock and the random numbers of one run.

    The n-th id is a version 4 UUID of the first 16 bytes of
    sha256(canonical JSON of ["simulation-id/1", seed, n]), n counting from 0.

    Args:
        seed: The run's seed.
        seconds_per_step: See `LogicalClock`.
    """

    def __init__(self, seed: int, seconds_per_step: float) -> None:
        self._seed = seed
        self._ids = count()
        self._generators = count()
        self.clock = LogicalClock(seconds_per_step)
        self.random = Random(derive_seed("simulation-random/1", seed))

    def next_id(self) -> UUID:
        """Return the run's next id."""
        name = canonical_json(["simulation-id/1", self._seed, next(self._ids)])
        return UUID(bytes=sha256(name.encode()).digest()[:16], version=4)

    def next_seed(self) -> int:
        """Return a seed for the next generator that was asked for without one."""
        return derive_seed("simulation-generator/1", self._seed, next(self._generators))


active_sources: ContextVar[Sources | None] = ContextVar("active_sources", default=None)
