"""What stands for `datetime`, `uuid`, `time`, `random` and `set`: a run's own inside of it only."""

from __future__ import annotations

import datetime
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from swarm_integration.orders import SortedSet
from swarm_integration.sources import Sources, active_sources
from swarm_integration.stand_ins import stand_in_for

START = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
TICK = datetime.timedelta(microseconds=1)
UUID1 = stand_in_for(uuid.uuid1)
UUID4 = stand_in_for(uuid.uuid4)


@contextmanager
def a_run(seed: int = 7) -> Iterator[None]:
    token = active_sources.set(Sources(seed, seconds_per_step=60.0))
    try:
        yield
    finally:
        active_sources.reset(token)


# The clock


def test_all_readings_in_a_run_are_of_one_clock() -> None:
    times, dates = stand_in_for(time), stand_in_for(datetime).datetime
    with a_run():
        assert dates.now(datetime.UTC) == START + TICK
        assert dates.now() == (START + 2 * TICK).replace(tzinfo=None)
        assert dates.today() == (START + 3 * TICK).replace(tzinfo=None)
        assert dates.utcnow() == (START + 4 * TICK).replace(tzinfo=None)
        assert times.time() == (START + 5 * TICK).timestamp()
        assert times.time_ns() == int(START.timestamp()) * 10**9 + 6000


def test_outside_of_a_run_the_clock_is_the_machines() -> None:
    times, dates = stand_in_for(time), stand_in_for(datetime).datetime
    before, before_ns = time.time(), time.time_ns()
    assert before_ns <= times.time_ns() <= time.time_ns()
    readings = [times.time(), dates.now().timestamp(), dates.now(datetime.UTC).timestamp()]
    readings += [dates.today().timestamp()]
    readings += [dates.utcnow().replace(tzinfo=datetime.UTC).timestamp()]
    after = time.time()
    assert all(before - 1e-3 <= reading <= after + 1e-3 for reading in readings)
    assert times.monotonic is time.monotonic


def test_a_stand_in_is_taken_for_the_real_class() -> None:
    stand_in: Any = stand_in_for(datetime.datetime)

    class Special(datetime.datetime):
        pass

    made = stand_in(2020, 5, 4)
    assert type(made) is datetime.datetime
    assert isinstance(made, stand_in)
    assert not isinstance(datetime.date(2020, 5, 4), stand_in)
    assert issubclass(Special, stand_in)
    assert issubclass(datetime.datetime, stand_in)
    assert not issubclass(datetime.date, stand_in)
    assert stand_in.fromisoformat("2020-05-04") == made


# Ids


def test_ids_in_a_run_follow_from_its_seed() -> None:
    with a_run():
        found = [UUID4(), UUID1(), stand_in_for(uuid).uuid4()]
    with a_run():
        assert [UUID1(), UUID4(), UUID1()] == found
    with a_run(seed=8):
        assert UUID4() not in found
    assert len(set(found)) == 3


def test_outside_of_a_run_ids_are_the_machines() -> None:
    assert UUID4().version == 4
    assert UUID4() != UUID4()
    own = UUID1(node=5, clock_seq=6)
    assert (own.version, own.node, own.clock_seq) == (1, 5, 6)


# Random numbers and sets


def test_in_a_run_no_generator_is_unseeded_and_a_seed_is_left_alone() -> None:
    make = stand_in_for(random.Random)
    with a_run():
        first, second = make().random(), make().random()
        assert make(3).random() == random.Random(3).random()
    with a_run():
        assert [make().random(), make().random()] == [first, second]
    assert first != second
    assert make().random() != first


def test_functions_of_the_module_draw_from_the_run_inside_of_it() -> None:
    module = stand_in_for(random)
    with a_run():
        drawn = [module.random(), module.choice(range(1000)), stand_in_for(random.random)()]
    state = random.getstate()
    with a_run():
        assert [module.random(), module.choice(range(1000)), module.random()] == drawn
    assert random.getstate() == state
    random.seed(5)
    expected = random.Random(5).random()
    assert module.random() == expected
    random.setstate(state)


def test_a_set_is_sorted_in_a_run_and_a_plain_one_outside() -> None:
    make = stand_in_for(set)
    with a_run():
        made = make(["c", "a", "b"])
        assert list(made) == ["a", "b", "c"]
        assert type(made) is SortedSet
    assert type(make(["a"])) is set
    assert isinstance({1}, make)


@pytest.mark.parametrize("value", [datetime.datetime.now, datetime.datetime.today, random.choice])
def test_a_method_that_was_taken_out_has_a_stand_in_too(value: Any) -> None:
    stand_in = stand_in_for(value)
    assert stand_in is not None
    assert stand_in is not value


@pytest.mark.parametrize("value", [datetime.date, time.monotonic, random.SystemRandom, list, 7])
def test_what_is_not_replaced_has_no_stand_in(value: Any) -> None:
    assert stand_in_for(value) is None
