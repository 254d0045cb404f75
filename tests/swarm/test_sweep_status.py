"""What a person sees while a sweep goes, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from scheduler.backends.fake import FakeBackend
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import RequestRejected
from scheduler.sharing import SharedLanes
from swarm_integration.progress import Progress
from swarm_integration.run import Run
from swarm_integration.sweep.shared import SharedPlace
from swarm_integration.sweep.status import SweepStatus
from tests.questions import questions

PATIENCE_S = 100.0
SHOW_CURSOR = "\x1b[?25h"


@dataclass
class Place:
    """Where a run's questions go, as far as a status looks at it."""

    counted: Scheduler | None = None
    in_flight: int = 0


def place(scheduler: Scheduler | None = None, in_flight: int = 0) -> SharedPlace:
    return cast("SharedPlace", Place(scheduler, in_flight))


def a_run(scheduler: Scheduler | None, epochs: int = 2, steps: int = 5) -> Run:
    """A run that has been opened, and whose simulation has begun if there is a scheduler."""
    progress = None
    if scheduler is not None:
        progress = Progress(scheduler, epochs=epochs, steps_per_epoch=steps, rounds_known=False)
        progress.begin_step(1, 0)
    return cast("Run", SimpleNamespace(progress=progress))


class Stream(io.StringIO):
    """A stream that may be a terminal."""

    encoding = "utf-8"

    def __init__(self, *, tty: bool, broken: bool = False) -> None:
        super().__init__()
        self._tty, self._broken = tty, broken

    def isatty(self) -> bool:
        return self._tty

    def write(self, text: str) -> int:
        if self._broken:
            raise OSError(5, "Input/output error")
        return super().write(text)


def head(status: SweepStatus) -> str:
    """The first line; how long it takes here does not matter."""
    return re.sub(r"\d+:\d\d", "T", status.lines()[0])


# The lines


def test_before_anything_runs_there_is_no_guess_of_the_time() -> None:
    status = SweepStatus()
    status.begin(6, finished=0)
    assert head(status) == "runs 0/6  failed 0  under way 0  0 %  T  left -"
    assert status.lines()[1:] == ["queue 0  slots 0/0  tokens/s -"]


def test_each_run_says_where_it_is_and_counts_by_how_much_of_it_is_done() -> None:
    status = SweepStatus()
    status.begin(5, finished=1)
    scheduler = Scheduler(FakeBackend())
    status.started("a", place())
    status.started("b", place()).watch(a_run(None))
    status.started("c", place(scheduler, in_flight=2)).watch(a_run(scheduler))
    _, _, *rows = status.lines()
    # Half of one run of the four that are to do.
    assert head(status) == "runs 1/5  failed 0  under way 3  12 %  T  left T"
    assert rows == ["a: starts", "b: starts", "c: epoch 2/2 step 1/5, requests 0, slots 2"]


def test_of_many_runs_the_first_are_shown_and_the_others_counted() -> None:
    status = SweepStatus()
    status.begin(30, finished=0)
    for number in range(15):
        status.started(f"run-{number}", place())
    _, _, *rows = status.lines()
    assert rows == [*(f"run-{number}: starts" for number in range(12)), "and 3 more"]


async def test_slots_queues_and_tokens_of_all_runs_are_added_up() -> None:
    status = SweepStatus()
    status.begin(2, finished=0)
    status.lanes = lanes = SharedLanes()
    async with Scheduler(FakeBackend(3), SchedulerConfig(), lanes=lanes) as scheduler:
        active = status.started("a", place(scheduler))
        await scheduler.run_step(questions(5))
        written = scheduler.stats.completion_tokens
        assert written > 0
        # Nothing is known of how fast they came, only that there are some.
        assert status.lines()[1] == "queue 0  slots 0/3  tokens/s 0.0"
        active("completed")
        # What a run has written counts on when it has ended.
        assert status.lines()[1] == "queue 0  slots 0/3  tokens/s 0.0"
        assert head(status) == "runs 1/2  failed 0  under way 0  50 %  T  left T"


def test_a_run_that_failed_is_done_and_one_that_was_interrupted_is_not() -> None:
    status = SweepStatus()
    status.begin(4, finished=0)
    for name, state in (("a", "completed"), ("b", "failed"), ("c", "interrupted")):
        status.started(name, place())(state)
    assert head(status).startswith("runs 1/4  failed 1  under way 0  50 %")


def test_a_sweep_with_nothing_left_to_do_is_done() -> None:
    status = SweepStatus()
    status.begin(3, finished=3)
    assert head(status) == "runs 3/3  failed 0  under way 0  100 %  T  left T"


# Elsewhere than on a terminal


def test_each_run_that_ends_is_a_line() -> None:
    status, stream = SweepStatus(), Stream(tty=False)
    status.begin(4, finished=1)
    with status.shown(quiet=False, stream=stream):
        status.started("a", place())("completed")
        status.started("b", place())("failed", RequestRejected("out of\n  luck"))
        status.started("c", place())("failed", KeyError())
    assert stream.getvalue().splitlines() == [
        "a completed (2 of 4 runs completed)",
        "b failed: out of luck (2 of 4 runs completed)",
        "c failed: KeyError (2 of 4 runs completed)",
    ]


@pytest.mark.parametrize("tty", [True, False])
def test_quiet_shows_nothing(tty: bool) -> None:
    status, stream = SweepStatus(), Stream(tty=tty)
    with status.shown(quiet=True, stream=stream):
        status.started("a", place())("failed", KeyError("b"))
    assert stream.getvalue() == ""


def test_a_process_without_standard_error_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    status = SweepStatus()
    with status.shown(quiet=False):
        status.started("a", place())("completed")
    assert head(status).startswith("runs 1/0")


# On a terminal


def drawn(stream: Stream, text: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while text not in stream.getvalue():
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.001)


def test_a_terminal_gets_a_view_that_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    status, stream = SweepStatus(), Stream(tty=True)
    status.begin(2, finished=0)
    with status.shown(quiet=False, stream=stream):
        active = status.started("a", place())
        drawn(stream, "runs 0/2  failed 0  under way 1")
        active("completed")
        drawn(stream, "runs 1/2")
        assert SHOW_CURSOR not in stream.getvalue()
        status.started("b", place())("failed", RequestRejected("out of luck"))
    said = stream.getvalue()
    assert said.count(SHOW_CURSOR) == 1
    assert "b failed: out of luck" in said
    assert "a completed" not in said


def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setitem(sys.modules, "rich.live", None)


@pytest.mark.parametrize(
    "prepare",
    [
        without_rich,
        lambda monkeypatch: monkeypatch.setenv("TERM", "dumb"),
        lambda monkeypatch: monkeypatch.setenv("TERM", "unknown"),
    ],
    ids=["no rich", "dumb", "unknown"],
)
def test_a_terminal_that_can_not_be_drawn_on_gets_lines(
    prepare: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(monkeypatch)
    status, stream = SweepStatus(), Stream(tty=True)
    status.begin(1, finished=0)
    with status.shown(quiet=False, stream=stream):
        status.started("a", place())("completed")
    assert stream.getvalue() == "a completed (1 of 1 runs completed)\n"


@pytest.mark.parametrize("tty", [True, False])
def test_a_stream_that_breaks_does_not_break_the_sweep(
    tty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    status = SweepStatus()
    status.begin(1, finished=0)
    before = (sys.stdout, sys.stderr)
    with status.shown(quiet=False, stream=Stream(tty=tty, broken=True)):
        status.started("a", place())("failed", KeyError("b"))
    assert (sys.stdout, sys.stderr) == before
    assert head(status).startswith("runs 0/1  failed 1")
