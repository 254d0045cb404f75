"""What stands behind a timeline's bars: steps, epochs, and where a run was resumed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from swarm_integration.report.bars import MOST_STAGES, Frame, stages
from swarm_integration.report.records import RunRecord
from tests.report.logs import ANN, event, in_time, run_of, served, started

LINE = re.compile(r'<line x1="([\d.]+)".*? class="(\w+)"')


def stepped(path: Path, epochs: int, steps: int, *more: object) -> RunRecord:
    """A run with a step each millisecond from 0 on."""
    begun = [
        event("step.started", epoch * steps + step, epoch=epoch, step=step)
        for epoch in range(epochs)
        for step in range(steps)
    ]
    return run_of(path, [*in_time(started(), *begun), *more])


def lines(run: RunRecord, frame: Frame) -> list[tuple[float, str]]:
    found = [LINE.search(str(one)) for one in stages(run, frame, 50.0)]
    return [(float(one[1]), one[2]) for one in found if one is not None]


def test_each_step_in_the_frame_has_a_line_and_an_epochs_first_a_stronger_one(
    tmp_path: Path,
) -> None:
    run = stepped(tmp_path / "r", 2, 3)
    drawn = lines(run, Frame(1.0, 4.0, 30.0))
    assert drawn == [(0.0, "step"), (10.0, "step"), (20.0, "epoch"), (30.0, "step")]


def test_of_too_many_steps_the_epochs_alone_have_lines(tmp_path: Path) -> None:
    run = stepped(tmp_path / "r", 5, MOST_STAGES // 4)
    drawn = lines(run, Frame(0.0, float(2 * MOST_STAGES), 800.0))
    assert drawn == [(float(at), "epoch") for at in range(0, 401, 100)]


def test_of_too_many_epochs_the_first_are_drawn(tmp_path: Path) -> None:
    run = stepped(tmp_path / "r", 2 * MOST_STAGES, 1)
    assert len(lines(run, Frame(0.0, 1000.0, 800.0))) == MOST_STAGES


@pytest.mark.parametrize(
    ("frame", "drawn"),
    [
        (Frame(0.0, 20.0, 200.0), [(0.0, "epoch"), (100.0, "resumed")]),
        (Frame(0.0, 9.0, 90.0), [(0.0, "epoch")]),
    ],
    ids=["inside the frame", "after it"],
)
def test_where_a_run_was_resumed_stands_a_line(
    frame: Frame, drawn: list[tuple[float, str]], tmp_path: Path
) -> None:
    run = stepped(tmp_path / "r", 1, 1, *served(ANN, 1, 2, 10), started(), *served(ANN, 1, 2, 10))
    assert lines(run, frame) == drawn
    told = "".join(map(str, stages(run, frame, 50.0)))
    assert ("the run was resumed here" in told) == (len(drawn) == 2)
