"""Slots and the prefixes they hold: nothing idle without need, nothing read twice without need."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.backends.base import RawAnswer
from scheduler.engine import Scheduler
from scheduler.places import Places
from scheduler.types import Request
from tests.doubles import TracingBackend, config, random_delays
from tests.questions import question

WAITING = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 5))


@given(
    st.integers(1, 6),
    st.sampled_from([None, 1, 2]),
    st.lists(st.tuples(WAITING, st.sampled_from(["take", "release"]), st.integers(0, 5))),
)
def test_choices_against_a_plain_list_of_what_is_held(
    count: int, copies: int | None, moves: list[tuple[dict[str, int], str, int]]
) -> None:
    places = Places(count, copies=copies)
    held: dict[int, str] = {}
    taken: list[int] = []
    last_use: list[int] = []
    for waiting, move, nth in moves:
        if move == "release" and taken:
            places.release(taken.pop(nth % len(taken)))
        free = [slot for slot in range(count) if slot not in taken]
        assert (list(places.usable()), places.taken) == (free, len(taken))
        holders = Counter(held.values())
        choice = places.choose(waiting)
        allowed = [group for group in waiting if copies is None or holders[group] < copies]
        warm = [(group, slot) for group in waiting for slot in free if held.get(slot) == group]
        if not free or not (allowed or warm):
            assert choice is None
            continue
        assert choice is not None
        slot, group = choice
        assert slot in free
        if warm:
            assert (group, slot) == warm[0]
        else:
            new = [one for one in allowed if not holders[one]]
            most = max(waiting[one] for one in allowed)
            assert group == new[0] if new else waiting[group] == most
            empty = [one for one in free if one not in held]
            second = [one for one in free if holders[held.get(one, "")] > 1]
            oldest = min(second or free, key=lambda one: last_use.index(one) if not empty else 0)
            assert slot == (empty[0] if empty else oldest)
        places.take(slot, group)
        held[slot] = group
        taken.append(slot)
        last_use = [*(one for one in last_use if one != slot), slot]


def test_a_group_goes_to_the_free_slot_that_holds_its_prefix_not_to_the_lowest() -> None:
    places = Places(2)
    for slot, group in enumerate("ab"):
        places.take(slot, group)
    for slot in range(2):
        places.release(slot)
    assert places.choose({"b": 1}) == (1, "b")
    assert places.choose_for("b") == 1
    assert places.choose_for("c") == 0
    assert repr(places) == "<Places 0 of 2 taken>"


def test_a_second_copy_is_given_up_before_the_only_one_of_another_group() -> None:
    places = Places(3)
    for slot, group in enumerate("abb"):
        places.take(slot, group)
    for slot in range(3):
        places.release(slot)
    assert places.choose({"c": 1}) == (1, "c")


def test_a_limit_lets_a_slot_stay_free_rather_than_read_a_prefix_again() -> None:
    limited, unlimited = Places(2, copies=1), Places(2)
    for places in (limited, unlimited):
        places.take(0, "a")
    assert limited.choose({"a": 3}) is None
    assert unlimited.choose({"a": 3}) == (1, "a")
    assert limited.choose({"a": 3, "b": 1}) == (1, "b")


class TwoServers:
    """Slots 0 and 1 on two servers; every group belongs on the first one that is there."""

    def __init__(self) -> None:
        self.there = [0, 1]

    def has_slot(self, slot: int) -> bool:
        return slot in self.there

    def is_home(self, slot: int, group: str) -> bool:
        return slot == self.there[0]

    async def watch(self, changed: Any) -> None:
        await anyio.sleep_forever()


def test_a_copy_on_a_server_that_is_gone_keeps_nobody_waiting() -> None:
    servers = TwoServers()
    places = Places(2, servers, copies=1)
    assert places.choose({"a": 2}) == (0, "a")
    places.take(0, "a")
    assert places.choose({"a": 1}) is None  # the limit: one copy
    servers.there = [1]
    assert places.choose({"a": 1}) == (1, "a")


class Reading(TracingBackend):
    """Counts how often a slot has to read a prefix that it does not hold."""

    def __init__(self, slots: int, **options: Any) -> None:
        super().__init__(slots, **options)
        self.reads = 0
        self._held: dict[int, str] = {}

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
        self.reads += self._held.get(slot) != request.group
        self._held[slot] = request.group
        return await super().generate(request, seed=seed, slot=slot)


def acts_and_accepts(step: int) -> tuple[list[Request], list[Request]]:
    """Return the questions of twelve agents of four personas, and of some of them again."""
    acts = [question(n, step=step, prefix_group=f"act {n % 4}") for n in range(12)]
    some = [n for n in range(12) if (n + step) % 3 == 0]
    return acts, [
        question(n, step=step, kind="accept", prefix_group=f"accept {n % 4}") for n in some
    ]


@pytest.mark.virtual_time
@pytest.mark.parametrize("slots", [4, 6, 8, 12])
@pytest.mark.parametrize("seed", range(3))
async def test_with_a_limit_each_prefix_is_read_once_where_slots_suffice(
    slots: int, seed: int
) -> None:
    reads = {}
    for copies in (1, slots):
        backend = Reading(slots, delay=random_delays(seed))
        async with Scheduler(backend, config(prefix_copies=copies)) as scheduler:
            for step in range(5):
                for requests in acts_and_accepts(step):
                    await scheduler.run_step(requests)
        reads[copies] = backend.reads
    assert reads[1] < reads[slots]
    if slots >= 8:
        assert reads[1] == 8


@pytest.mark.virtual_time
@pytest.mark.parametrize("seed", range(3))
async def test_without_a_limit_no_slot_is_free_while_a_request_waits(seed: int) -> None:
    class Watching(Reading):
        async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
            (lane,) = scheduler.lanes.values()
            assert lane.in_flight == lane.slots or not lane.waiting
            return await super().generate(request, seed=seed, slot=slot)

    backend = Watching(5, delay=random_delays(seed))
    async with Scheduler(backend) as scheduler:
        for step in range(3):
            for requests in acts_and_accepts(step):
                await scheduler.run_step(requests)
    assert len(backend.ended) == 36 + 12


@pytest.mark.virtual_time
async def test_what_is_planned_later_runs_where_the_window_has_nothing_for_a_free_slot() -> None:
    backend = Reading(2, delay=lambda _request, _attempt: 1.0)
    asked = [question(n, prefix_group="a" if n < 3 else "b") for n in range(4)]
    async with Scheduler(backend, config(prefix_copies=1, max_batch=2)) as scheduler:
        began = anyio.current_time()
        await scheduler.run_step(asked)
        assert anyio.current_time() - began == 3.0
    assert Counter(slot for _, _, slot in backend.started) == {0: 3, 1: 1}


def test_groups_that_no_slot_holds_any_more_are_forgotten() -> None:
    places = Places(2)
    sizes = []
    for number in range(100):
        places.take(number % 2, f"group-{number:03d}")
        places.release(number % 2)
        sizes.append(len(pickle.dumps(places)))
    assert sizes[-1] < sizes[9] + 100
