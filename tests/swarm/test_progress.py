"""How far a run is: the estimate, the counters that are read, and how they read."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import anyio
import pytest
from rich.console import Console

from scheduler.backends.fake import FakeBackend
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import RequestRejected, ServerFault
from scheduler.types import Message, Request
from swarm_integration.progress import RECENT_STEPS, LaneState, Progress, Rate, Snapshot, time_left
from swarm_integration.progress_text import MOST_LANES, clock, plain_line, render

SNAPSHOT = Snapshot(
    epoch=1,
    epochs=2,
    step=2,
    steps_per_epoch=3,
    steps_done=1,
    settled=7,
    expected=12,
    lanes=(LaneState("default", 4, 4, 1),),
    tokens_per_s=38.25,
    recalled=0,
    retries=0,
    reasks=0,
    failures=0,
    elapsed_s=72.4,
    left_s=3723.0,
)


# The estimate


@pytest.mark.parametrize(
    ("paces", "elapsed_s", "share", "steps_left", "expected"),
    [
        ([], 5.0, None, 3, None),
        ([], 5.0, 0.0, 3, None),
        ([], 5.0, 0.5, 3, 5.0 + 30.0),
        ([10.0], 4.0, 0.9, 2, 6.0 + 20.0),
        ([10.0, 20.0], 0.0, None, 1, 15.0 + 15.0),
        ([10.0], 25.0, 0.5, 1, 10.0),
        ([10.0], 4.0, None, 0, 6.0),
        ([10.0], 4.0, None, -1, 6.0),
    ],
)
def test_time_left(
    paces: list[float],
    elapsed_s: float,
    share: float | None,
    steps_left: int,
    expected: float | None,
) -> None:
    assert time_left(paces, elapsed_s=elapsed_s, share=share, steps_left=steps_left) == expected


def test_rate_counts_the_window_alone() -> None:
    rate = Rate(10.0)
    rate.add(0.0, 0)
    assert rate.per_s == 0.0
    rate.add(5.0, 100)
    assert rate.per_s == 20.0
    rate.add(15.0, 110)
    assert rate.per_s == 1.0
    rate.add(25.0, 110)
    assert rate.per_s == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({}, (1 + 7 / 12) / 6),
        ({"expected": None}, 1 / 6),
        ({"steps_done": 6}, 1.0),
        ({"epochs": 0}, 0.0),
    ],
)
def test_share(changes: dict[str, Any], share: float) -> None:
    assert dataclasses.replace(SNAPSHOT, **changes).share == pytest.approx(share)


# What is read


def requests(count: int, **fields: Any) -> list[Request]:
    return [Request(f"a{n}", (Message("user", "?"),), **fields) for n in range(count)]


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_step_is_read_while_it_runs() -> None:
    clock, both_busy = Clock(), anyio.Event()
    waits: list[str] = []

    def delay(request: Request, attempt: int) -> float:
        if request.agent_id == "a0":
            return 0.0
        waits.append(request.agent_id)
        if len(waits) == 2:
            both_busy.set()
        return 3600.0

    backend = FakeBackend(slots=2, delay=delay)
    async with Scheduler({"b": backend}, SchedulerConfig()) as scheduler:
        progress = Progress(scheduler, epochs=2, steps_per_epoch=3, rounds_known=True, clock=clock)
        before = progress.look()
        assert (before.epoch, before.step, before.share, before.left_s) == (0, 0, 0.0, None)
        progress.begin_step(0, 0)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(scheduler.run_step, requests(5, backend="b"))
                await both_busy.wait()
                clock.now += 4
                seen = progress.look()
                scope.cancel()
        assert (seen.epoch, seen.step, seen.settled, seen.expected) == (1, 1, 1, 5)
        assert seen.lanes == (LaneState("b", busy=2, slots=2, waiting=2),)
        assert seen.left_s == pytest.approx(4 / (1 / 5) * 6 - 4)
        assert seen.tokens_per_s == pytest.approx(scheduler.stats.completion_tokens / 4)
        after = progress.look()
        assert (after.settled, after.expected) == (1, 5)


async def test_steps_that_asked_a_model_make_the_estimate() -> None:
    clock = Clock()
    async with Scheduler(FakeBackend(), SchedulerConfig()) as scheduler:
        progress = Progress(scheduler, epochs=1, steps_per_epoch=40, rounds_known=True, clock=clock)
        progress.begin_step(0, 0)
        clock.now += 500
        progress.begin_step(0, 1)
        assert progress.look().left_s is None
        scheduler.stats.requests = scheduler.stats.recalled = 5  # as a resume counts
        clock.now += 500
        progress.begin_step(0, 2)
        assert progress.look().left_s is None
        for step in range(3, 3 + RECENT_STEPS):
            await scheduler.run_step(requests(2))
            clock.now += 10
            progress.begin_step(0, step)
        assert progress.look().left_s == (40 - step) * 10
        clock.now += 4
        assert progress.look().left_s == (40 - step) * 10 - 4


async def test_serial_steps_do_not_say_how_many_are_asked() -> None:
    async with Scheduler(FakeBackend(), SchedulerConfig()) as scheduler:
        progress = Progress(scheduler, epochs=1, steps_per_epoch=2, rounds_known=False)
        progress.begin_step(0, 0)
        await scheduler.run_step(requests(1))
        seen = progress.look()
    assert (seen.settled, seen.expected, seen.share) == (1, None, 0.0)
    assert plain_line(seen).startswith("epoch 1/1 step 1/2  requests 1  queue 0")


async def test_retries_and_failures_are_read() -> None:
    def fault(request: Request, attempt: int) -> RequestRejected | ServerFault | None:
        if request.agent_id == "a0":
            return RequestRejected("no")
        return ServerFault("busy") if attempt == 1 else None

    config = SchedulerConfig(on_failure="noop", retry_base_s=0.001)
    async with Scheduler(FakeBackend(fault=fault), config) as scheduler:
        progress = Progress(scheduler, epochs=1, steps_per_epoch=1, rounds_known=True)
        progress.begin_step(0, 0)
        await scheduler.run_step(requests(3))
        seen = progress.look()
    assert (seen.settled, seen.retries, seen.failures) == (3, 2, 1)


# How it reads


def shown(snapshot: Snapshot, width: int, encoding: str = "utf-8") -> list[str]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=stream, width=width, force_terminal=True, record=True, no_color=True)
    console.print(render(snapshot, console))
    return console.export_text(styles=False).splitlines()


@pytest.mark.parametrize("width", [40, 80, 160])
def test_each_line_fits_and_the_bar_fills_the_width(width: int) -> None:
    lines = shown(SNAPSHOT, width)
    assert len(lines) == 2
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("epoch 1/2 step 2/3 ")
    assert "requests 7/12  queue 1  slots 4/4" in lines[1]
    if width >= 80:
        assert len(lines[0]) == width - 1
        assert lines[0].endswith(" 26 %  1:12  left 1:02:03")
        assert lines[0].count("━") == int((lines[0].count("━") + lines[0].count("─")) * 1.5833 / 6)
        assert lines[1].endswith("tokens/s 38.2  retries 0  failed 0")


def test_a_stream_without_those_characters_gets_plain_ones() -> None:
    crowded = dataclasses.replace(SNAPSHOT, retries=10**40)
    for line in shown(crowded, 80, "ascii"):
        assert line.isascii()
        assert len(line) <= 80
    assert "###" in shown(SNAPSHOT, 80, "ascii")[0]


def test_every_backend_has_a_line_up_to_a_limit() -> None:
    lanes = tuple(LaneState(f"http://host-{n}/" + "x" * 90, n, 9, n) for n in range(9))
    lines = shown(dataclasses.replace(SNAPSHOT, lanes=lanes), 80)
    assert len(lines) == 2 + MOST_LANES + 1
    assert "queue 36  slots 36/81" in lines[1]
    assert lines[3].startswith("  slots 1/9  queue 1  http://host-1/xxx")
    assert lines[3].endswith("…")
    assert lines[-1].strip() == "and 3 more backends"
    assert max(map(len, lines)) <= 80


def test_what_there_is_not_is_not_shown_and_what_there_is_is() -> None:
    plain = dataclasses.replace(SNAPSHOT, tokens_per_s=None, left_s=None)
    assert plain_line(plain) == (
        "epoch 1/2 step 2/3  requests 7/12  queue 1  slots 4/4  tokens/s -  retries 0  failed 0"
        "  left -"
    )
    eventful = dataclasses.replace(SNAPSHOT, recalled=3, reasks=2, retries=5, failures=1)
    assert "retries 5  failed 1  asked again 2  from journal 3" in plain_line(eventful)
