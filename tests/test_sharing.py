"""Several schedulers on one set of slots: whose turn it is, and what stays their own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.backends.fake import FakeBackend
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import RequestRejected, StepAborted
from scheduler.journal import Journal
from scheduler.queue import FairQueue, in_turns
from scheduler.sharing import SharedLanes
from scheduler.types import Request
from tests.doubles import TracingBackend, always, config
from tests.questions import names, question

# --- the decision


def test_in_turns_gives_one_place_each_round_after_round() -> None:
    assert in_turns({"a": 3, "b": 1, "c": 2}, 5) == ["a", "b", "c", "a", "c"]
    assert in_turns({"a": 3, "b": 1, "c": 2}, 2) == ["a", "b"]
    assert in_turns({"a": 0, "b": 1}, 9) == ["b"]
    assert in_turns({}, 4) == []


@given(st.dictionaries(st.integers(0, 20), st.integers(0, 30), max_size=12), st.integers(0, 60))
def test_in_turns_gives_nobody_two_places_more_than_one_who_still_waits(
    waiting: dict[int, int], room: int
) -> None:
    got = Counter(in_turns(waiting, room))
    assert sum(got.values()) == min(room, sum(waiting.values()))
    for key, count in waiting.items():
        assert got[key] <= count
        if got[key] < count:
            assert max(got.values(), default=0) <= got[key] + 1


def queue_of(limit: int = 100) -> FairQueue[str, str]:
    """A queue whose items begin with the name of their tenant."""
    return FairQueue(limit, lambda item: item[0])


def test_who_was_taken_from_last_is_last_in_turn_the_next_time() -> None:
    queue = queue_of()
    for item in ("a1", "a2", "a3", "b1", "b2", "b3", "c1", "c2", "c3"):
        queue.put(item)
    assert [queue.take(2) for _ in range(4)] == [
        ["a1", "b1"],
        ["c1", "a2"],
        ["b2", "c2"],
        ["a3", "b3"],
    ]
    assert queue.take(9) == ["c3"]
    assert repr(queue) == "<FairQueue 0 waiting, 0 tenants>"


@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(1, 7))
def test_a_tenants_items_keep_their_order_and_none_is_lost(owners: str, window: int) -> None:
    queue = queue_of()
    items = [f"{owner}{number:03}" for number, owner in enumerate(owners)]
    for item in items:
        queue.put(item)
    taken: list[str] = []
    while len(queue):
        taken += queue.take(window)
    assert sorted(taken) == sorted(items)
    for owner in "abc":
        own = [item for item in taken if item[0] == owner]
        assert own == sorted(own)


async def test_each_tenant_has_the_limit_to_itself() -> None:
    queue = queue_of(limit=2)
    queue.put("a1")
    queue.put("a2")
    assert queue.full_for("a")
    assert not queue.full_for("b")
    queue.put("b1")
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(queue.wait_room, "a")
            await anyio.lowlevel.checkpoint()
            assert queue.take(1) == ["a1"]
    assert queue.withdraw("a2")
    assert not queue.withdraw("a2")
    assert not queue.withdraw("x")
    assert len(queue) == 1


# --- schedulers that share


def asked(run: str, count: int) -> list[Request]:
    return [question(f"{run}-{number}") for number in range(count)]


@pytest.mark.virtual_time
async def test_two_schedulers_never_hold_more_slots_than_there_are() -> None:
    backend, lanes = TracingBackend(3, delay=lambda *_: 1.0), SharedLanes()
    results: dict[str, list[str]] = {}

    async def run(name: str) -> None:
        async with Scheduler(backend, lanes=lanes) as scheduler:
            results[name] = names(await scheduler.run_step(asked(name, 6)))
            assert scheduler.stats.requests == 6
            assert scheduler.stats.max_in_flight <= 3

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, "a")
        tasks.start_soon(run, "b")
    assert backend.max_in_flight == 3
    assert results == {name: [f"{name}-{n}" for n in range(6)] for name in "ab"}
    assert anyio.current_time() == backend.ended[-1][0]
    assert max(at for at, _, _ in backend.started) - backend.started[0][0] == 3.0
    [lane] = lanes.lanes
    assert lane.idle


@pytest.mark.virtual_time
async def test_a_run_with_much_to_ask_does_not_starve_one_with_little() -> None:
    """A window of four: the small run's one request goes out in the next one, not after 40."""
    backend, lanes = TracingBackend(1, delay=lambda *_: 1.0), SharedLanes()
    small: list[float] = []

    async def many() -> None:
        async with Scheduler(backend, config(max_batch=4), lanes=lanes) as scheduler:
            await scheduler.run_step(asked("many", 40))

    async def few() -> None:
        async with Scheduler(backend, config(max_batch=4), lanes=lanes) as scheduler:
            for number in range(4):
                began = anyio.current_time()
                await scheduler.submit(question(f"few-{number}"))
                small.append(anyio.current_time() - began)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(many)
        await anyio.sleep(0.5)
        tasks.start_soon(few)
    assert max(small) <= 8  # its own second, and at most one window of four before its own


@pytest.mark.virtual_time
async def test_runs_that_ask_one_by_one_fill_all_slots_together() -> None:
    backend, lanes = TracingBackend(4, delay=lambda *_: 1.0), SharedLanes()

    async def one_by_one(name: str) -> None:
        async with Scheduler(backend, lanes=lanes) as scheduler:
            for number in range(5):
                await scheduler.submit(question(f"{name}-{number}"))
            assert scheduler.stats.max_in_flight == 1

    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for name in "abcd":
            tasks.start_soon(one_by_one, name)
    assert backend.max_in_flight == 4
    assert anyio.current_time() - began == 5.0  # 20 requests of a second each


@pytest.mark.virtual_time
async def test_a_scheduler_that_fails_leaves_the_others_and_the_slots_alone() -> None:
    refused = always(RequestRejected("no"), "bad-0", "bad-1")
    backend, lanes = TracingBackend(2, delay=lambda *_: 1.0, fault=refused), SharedLanes()

    async def bad() -> None:
        async with Scheduler(backend, lanes=lanes) as scheduler:
            with pytest.raises(StepAborted, match="bad-0"):
                await scheduler.run_step(asked("bad", 9))
            assert scheduler.idle

    async def good() -> None:
        async with Scheduler(backend, lanes=lanes) as scheduler:
            assert len(await scheduler.run_step(asked("good", 9))) == 9

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bad)
        tasks.start_soon(good)
    assert lanes.lanes[0].idle


@pytest.mark.virtual_time
async def test_a_cancelled_scheduler_gives_its_slots_to_the_others() -> None:
    backend, lanes = TracingBackend(2, delay=lambda *_: 10.0), SharedLanes()
    scope = anyio.CancelScope()

    async def cancelled() -> None:
        with scope:
            async with Scheduler(backend, lanes=lanes) as scheduler:
                await scheduler.run_step(asked("gone", 8))

    async def other() -> None:
        async with Scheduler(backend, lanes=lanes) as scheduler:
            await scheduler.run_step(asked("here", 2))

    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancelled)
        await anyio.sleep(1.0)
        tasks.start_soon(other)
        await anyio.sleep(1.0)
        scope.cancel()
    assert anyio.current_time() - began == 12.0
    assert lanes.lanes[0].idle


async def test_equal_requests_of_two_schedulers_stay_in_their_own_journals(tmp_path: Path) -> None:
    """The two ask the very same, so only whose journal it is tells their answers apart."""
    backend, lanes = FakeBackend(2), SharedLanes()
    journals = [Journal(tmp_path / f"{name}.sqlite3") for name in "ab"]
    for journal in journals:
        await journal.open()
    first = question(base_seed=1)
    async with Scheduler(backend, journal=journals[0], lanes=lanes) as one:
        before = (await one.submit(first)).text
    async with Scheduler(backend, journal=journals[1], lanes=lanes) as two:
        assert (await two.submit(first)).text == before
        assert two.stats.recalled == 0
    async with Scheduler(backend, journal=journals[1], lanes=lanes) as again:
        await again.submit(first)
        assert again.stats.recalled == 1
    assert [journal.stored for journal in journals] == [1, 1]
    assert backend.calls == 2
    for journal in journals:
        await journal.aclose()


async def test_lanes_are_made_once_for_each_backend() -> None:
    first, second, lanes = FakeBackend(2), FakeBackend(3), SharedLanes()
    settings = SchedulerConfig()
    one = await lanes.lane("x", first, settings)
    assert await lanes.lane("y", first, settings) is one
    assert await lanes.lane("x", second, settings) is not one
    assert repr(lanes).startswith("<SharedLanes [<Lane x: 0 of 2 slots busy")
