"""What stands in SWARM's modules for `uuid`, `datetime`, `time`, `random` and `set`.

Each asks which run the calling code belongs to: inside a run it answers from the
run's sources, outside it is the real thing. So it does not matter to other threads
that SWARM's modules hold these names for as long as any run is active.
"""

from __future__ import annotations

import datetime as real_datetime
import random as real_random
import time as real_time
import uuid as real_uuid
from collections.abc import Callable
from types import BuiltinMethodType, MethodType, ModuleType
from typing import Any

from swarm_integration.orders import SortedSet
from swarm_integration.sources import active_sources


class _SameInstances(type):
    """Makes `isinstance` say of a stand-in what it says of the real class, its base."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.__mro__[1])

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.__mro__[1])


class StandInDatetime(real_datetime.datetime, metaclass=_SameInstances):
    """`datetime` whose present is the run's; what it makes are real datetimes."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make a real one."""
        return real_datetime.datetime(*args, **kwargs)  # noqa: DTZ001  # the caller decides

    @classmethod
    def now(cls, tz: real_datetime.tzinfo | None = None) -> Any:
        """Return the run's time, or the machine's outside a run."""
        sources = active_sources.get()
        return sources.clock.read(tz) if sources else real_datetime.datetime.now(tz)

    @classmethod
    def today(cls) -> Any:
        """Do what `now()` does."""
        return cls.now()

    @classmethod
    def utcnow(cls) -> Any:
        """Return the same as a naive time in UTC."""
        return cls.now(real_datetime.UTC).replace(tzinfo=None)


class StandInRandom(real_random.Random, metaclass=_SameInstances):
    """`Random` that a run seeds when nobody else does; what it makes are real ones."""

    def __new__(cls, seed: Any = None) -> Any:
        """Make a real one, in a run never an unseeded one."""
        sources = active_sources.get()
        if seed is None and sources is not None:
            seed = sources.next_seed()
        return real_random.Random(seed)


class StandInSet(set[Any], metaclass=_SameInstances):
    """`set` that a run's code gets sorted."""

    def __new__(cls, *elements: Any) -> Any:
        """Make a `SortedSet` in a run and a real one outside."""
        return set(*elements) if active_sources.get() is None else SortedSet(*elements)


class _StandInModule(ModuleType):
    """A module with some names of our own; all others are the real module's."""

    def __init__(self, real: ModuleType, **names: Any) -> None:
        super().__init__(real.__name__)
        vars(self).update(names, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _uuid4() -> real_uuid.UUID:
    sources = active_sources.get()
    return sources.next_id() if sources else real_uuid.uuid4()


def _uuid1(node: int | None = None, clock_seq: int | None = None) -> real_uuid.UUID:
    sources = active_sources.get()
    return sources.next_id() if sources else real_uuid.uuid1(node, clock_seq)


def _time() -> float:
    sources = active_sources.get()
    return sources.clock.read(real_datetime.UTC).timestamp() if sources else real_time.time()


def _time_ns() -> int:
    return round(_time() * 1e6) * 1000 if active_sources.get() else real_time.time_ns()


def _drawing(name: str) -> Callable[..., Any]:
    def draw(*args: Any, **kwargs: Any) -> Any:
        sources = active_sources.get()
        return getattr(sources.random if sources else real_random, name)(*args, **kwargs)

    return draw


_DRAWS = {
    name: _drawing(name)
    for name in real_random.__all__
    if hasattr(real_random.Random, name) and callable(getattr(real_random, name))
}

_STAND_INS: tuple[tuple[Any, Any], ...] = (
    (real_datetime.datetime, StandInDatetime),
    (real_datetime, _StandInModule(real_datetime, datetime=StandInDatetime)),
    (real_uuid.uuid4, _uuid4),
    (real_uuid.uuid1, _uuid1),
    (real_uuid, _StandInModule(real_uuid, uuid4=_uuid4, uuid1=_uuid1)),
    (real_time.time, _time),
    (real_time.time_ns, _time_ns),
    (real_time, _StandInModule(real_time, time=_time, time_ns=_time_ns)),
    (real_random.Random, StandInRandom),
    (real_random, _StandInModule(real_random, Random=StandInRandom, **_DRAWS)),
    (set, StandInSet),
)
_BY_IDENTITY = {id(real): stand_in for real, stand_in in _STAND_INS}
_METHODS = {  # made anew by each access, so they are equal and not identical
    real_datetime.datetime.now: StandInDatetime.now,
    real_datetime.datetime.utcnow: StandInDatetime.utcnow,
    real_datetime.datetime.today: StandInDatetime.today,
    **{getattr(real_random, name): draw for name, draw in _DRAWS.items()},
}


def stand_in_for(value: Any) -> Any:
    """Return what stands for `value` in SWARM's modules, or None if nothing does."""
    if isinstance(value, (BuiltinMethodType, MethodType)) and value in _METHODS:
        return _METHODS[value]
    return _BY_IDENTITY.get(id(value))
