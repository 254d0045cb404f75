"""A lane pairs free slots with entries; nothing in it waits."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from scheduler.backends.base import BackendInfo
from scheduler.backends.fake import FakeBackend
from scheduler.config import SchedulerConfig
from scheduler.errors import ConfigError
from scheduler.lane import Entry, Lane
from scheduler.step import Step
from scheduler.types import Sampling
from tests.questions import question
from tests.tenants import TENANT

INFO = BackendInfo("fake", 3, None, "model.gguf")


def lane_of(slots: int = 2, max_batch: int = 4) -> Lane:
    return Lane("here", FakeBackend(3), INFO, SchedulerConfig(slots=slots, max_batch=max_batch))


def entries(lane: Lane, groups: str) -> list[Entry]:
    """Queue one entry per letter, whose group the letter is."""
    step = Step([])
    made = [Entry(question(i, prefix_group=g), step, TENANT, 0.0) for i, g in enumerate(groups)]
    for entry in made:
        lane.queue.put(entry)
    return made


async def test_assign_fills_the_free_slots_and_no_more() -> None:
    lane = lane_of(slots=2)
    first, second, third = entries(lane, "aaa")
    assert lane.assign() == [first, second]
    assert (first.slot, second.slot, third.slot) == (0, 1, None)
    assert lane.assign() == []
    assert lane.in_flight == 2
    assert repr(lane) == "<Lane here: 2 of 2 slots busy, 0 returning, 1 planned, 0 queued>"


async def test_a_released_slot_is_taken_again() -> None:
    lane = lane_of(slots=1)
    first, second = entries(lane, "aa")
    lane.assign()
    lane.release(first)
    assert (first.slot, first.last_slot) == (None, 0)
    assert lane.assign() == [second]
    lane.release(second)
    assert lane.idle


async def test_a_new_window_is_planned_when_the_last_one_is_used_up() -> None:
    lane = lane_of(slots=3, max_batch=2)
    made = entries(lane, "abab")
    assert lane.assign() == [made[0], made[1], made[2]]
    assert lane.batches == 2
    assert not lane_of().assign()


async def test_a_slot_keeps_its_prefix_group() -> None:
    lane = lane_of(slots=2, max_batch=8)
    made = entries(lane, "aabb")
    assert lane.assign() == [made[0], made[2]]
    lane.release(made[2])
    assert lane.assign() == [made[3]]
    lane.release(made[3])
    assert lane.assign() == [made[1]]


@pytest.mark.parametrize(
    ("slots", "copies", "by_text"),
    [(1, "auto", True), (2, 1, True), (2, "auto", False), (2, 2, False)],
)
async def test_where_one_slot_alone_answers_a_group_it_stands_by_its_text(
    slots: int, copies: int | Literal["auto"], by_text: bool
) -> None:
    config = SchedulerConfig(slots=slots, prefix_copies=copies)
    info = BackendInfo("fake", slots, None, "")
    lane = Lane("here", FakeBackend(slots), info, config)
    long = replace(question(1, prefix_group="a"), sampling=Sampling(max_tokens=999))
    asked = [long, question(0, prefix_group="a")]
    step = Step(asked)
    for request in asked:
        lane.queue.put(Entry(request, step, TENANT, 0.0))
    assert lane.assign()[0].request is asked[1 if by_text else 0]


async def test_a_slot_that_has_read_another_prefix_holds_the_first_no_more() -> None:
    lane = lane_of(slots=1)
    for group in "ab":
        (entry,) = entries(lane, group)
        assert lane.assign() == [entry]
        lane.release(entry)
    first, _ = entries(lane, "ac")
    assert lane.assign() == [first]


async def test_who_comes_back_goes_first() -> None:
    lane = lane_of(slots=1)
    first, second, third = entries(lane, "aaa")
    lane.assign()
    lane.release(first)
    assert lane.assign() == [second]
    lane.give_back(first)
    assert not lane.idle
    lane.release(second)
    assert lane.assign() == [first]
    lane.release(first)
    assert lane.assign() == [third]


async def test_release_takes_back_the_place_of_one_that_waits_to_return() -> None:
    lane = lane_of(slots=1)
    (entry,) = entries(lane, "a")
    lane.assign()
    lane.release(entry)
    lane.give_back(entry)
    lane.release(entry)
    lane.release(entry)  # holds nothing any more
    assert lane.idle
    assert lane.assign() == []


async def test_withdraw_finds_queued_and_planned_entries() -> None:
    lane = lane_of(slots=1, max_batch=2)
    made = entries(lane, "aaaa")
    lane.assign()
    assert not lane.withdraw(made[0])
    assert lane.withdraw(made[1])
    assert lane.withdraw(made[3])
    lane.release(made[0])
    assert lane.assign() == [made[2]]


async def test_auto_takes_the_slots_that_the_backend_has() -> None:
    assert Lane("here", FakeBackend(3), INFO, SchedulerConfig()).slots == 3


async def test_too_many_slots_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"slots is 9, but backend 'here' \(model.gguf\) has 3"):
        lane_of(slots=9)


async def test_an_entry_that_settles_twice_is_a_defect() -> None:
    step = Step([question()])
    entry = Entry(question(), step, TENANT, 0.0)
    step.add(entry)
    assert repr(step) == "<Step 0 of 1 settled>"
    step.settle(entry, None)
    assert repr(step) == "<Step 1 of 1 settled>"
    with pytest.raises(RuntimeError, match="settled twice"):
        step.settle(entry, None)
