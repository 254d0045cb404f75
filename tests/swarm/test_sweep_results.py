"""A sweep's results for people: the table, the picture, and what the command prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from swarm_integration.sweep.design import SweepParameter, points_of, runs_of
from swarm_integration.sweep.folder import folder_of
from swarm_integration.sweep.plot import png_of
from swarm_integration.sweep.results import SweepResult, SweepResults, table
from tests.swarm.simulations import swarm, write_scenario

TAX = SweepParameter("governance.transaction_tax", (0.0, 0.1))
PERSONA = SweepParameter("agents[0].llm.persona", ("honest", "open"))
METRICS = ("welfare", "quality_gap")


def results_of(
    *parameters: SweepParameter, seeds: int = 2, name: str = "s", **found: Any
) -> SweepResults:
    """Results whose welfare counts up from 1, with other values for all runs."""
    usual = {"state": "completed", "quality_gap": None, **found}
    runs = tuple(
        SweepResult(run, {"welfare": 1.0 + number, **usual})
        for number, run in enumerate(runs_of(points_of(parameters), range(seeds)))
    )
    return SweepResults(name, folder_of(Path("r.csv"), name), runs)


# The table


def test_each_point_is_a_line_with_its_means_and_how_sure_they_are() -> None:
    # Two samples that are 1 apart: 12.706 of their standard errors, which are 0.5.
    assert list(table(results_of(TAX, PERSONA), METRICS)) == [
        "point                                n  welfare    quality_gap",
        "transaction_tax=0.0, persona=honest  2  1.5 ± 6.4  -",
        "transaction_tax=0.0, persona=open    2  3.5 ± 6.4  -",
        "transaction_tax=0.1, persona=honest  2  5.5 ± 6.4  -",
        "transaction_tax=0.1, persona=open    2  7.5 ± 6.4  -",
    ]


def test_one_run_has_no_interval_and_a_sweep_over_seeds_alone_bears_its_name() -> None:
    assert list(table(results_of(seeds=1, name="mine"), METRICS)) == [
        "point  n  welfare  quality_gap",
        "mine   1  1        -",
    ]


def test_runs_that_are_not_completed_do_not_count() -> None:
    [_, line] = table(results_of(state="failed"), METRICS)
    assert line.split() == ["s", "0", "-", "-"]


# The picture


def test_a_picture_is_drawn_of_the_same_results_in_the_same_way() -> None:
    pytest.importorskip("matplotlib")
    first = png_of(results_of(TAX, PERSONA))
    assert first is not None
    assert first.startswith(b"\x89PNG")
    assert png_of(results_of(TAX, PERSONA)) == first


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"parameters": [TAX]}, {"parameters": [TAX], "quality_gap": 0.5}),
        ({"parameters": [TAX]}, {"parameters": [SweepParameter(TAX.name, (0.0, 0.2))]}),
        ({"parameters": [PERSONA]}, {"parameters": [SweepParameter(PERSONA.name, ("a", "b"))]}),
        ({"parameters": [PERSONA]}, {"parameters": [PERSONA], "seeds": 1}),
        ({"parameters": [TAX]}, {"parameters": [TAX, PERSONA]}),
        ({"parameters": []}, {"parameters": [], "seeds": 1}),
        ({"parameters": []}, {"parameters": [], "quality_gap": 0.5}),
        ({"parameters": []}, {"parameters": [], "name": "mine"}),
    ],
    ids=["metric", "places", "names", "interval", "lines", "band", "mean", "title"],
)
def test_what_differs_in_the_results_differs_in_the_picture(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    pytest.importorskip("matplotlib")
    drawn = [png_of(results_of(*case.pop("parameters"), **case)) for case in (one, other)]
    assert None not in drawn
    assert drawn[0] != drawn[1]


def test_there_is_no_picture_where_nothing_was_completed() -> None:
    assert png_of(results_of(TAX, state="aborted")) is None


def test_there_is_no_picture_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert png_of(results_of(TAX)) is None


# What the command prints


@pytest.fixture
def scripted() -> Path:
    """A scenario of agents that need no model."""
    return write_scenario(Path("s.yaml"), [{"type": "honest", "count": 3}], epochs=1, steps=2)


def test_the_end_of_a_sweep_is_a_table_and_where_its_files_are(
    scripted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ["--param", "payoff.theta", "--values", "0.2,0.8", "--replications", 2]
    assert swarm("sweep", scripted, *words, "--output", "r/tax.csv") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert "mean ± 95 % confidence interval" in lines[0]
    assert [line.split()[:2] for line in lines[2:5]] == [
        ["point", "n"],
        ["theta=0.2", "2"],
        ["theta=0.8", "2"],
    ]
    assert lines[-4:] == [
        f"Runs:     {Path('r/tax.csv')}",
        f"Points:   {Path('r/tax.summary.csv')}",
        'Picture:  none; pip install "swarm-inference-scheduler[report]" for one',
        f"Each run: {Path('r/tax.runs')}",
    ]
    assert sorted(line for line in err.splitlines() if "completed (" in line)[0].endswith(
        "of 4 runs completed)"
    )


def test_replications_take_the_place_of_the_seeds_in_a_sweeps_file(
    scripted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = {"base_scenario": str(scripted), "sweep": {"seeds": [3, 4], "replications": 2}}
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")
    words = ["sweep", "sweep.yaml", "--no-plot", "--json", "--output"]
    assert swarm(*words, "a.csv") == 0
    assert swarm(*words, "b.csv", "--replications", 3) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert [run["seed"] for run in first["runs"]] == [3, 4]
    assert [run["seed"] for run in second["runs"]] == [7, 8, 9]  # from the scenario's own


def test_a_sweeps_file_and_a_parameter_of_the_command_do_not_go_together(
    scripted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("sweep.yaml").write_text(yaml.safe_dump({"base_scenario": str(scripted)}), "utf-8")
    for more in (["--param", "payoff.theta:0.1"], ["--values", "0.1"]):
        assert swarm("sweep", "sweep.yaml", *more, "--output", "a.csv") == 2
        assert capsys.readouterr().err.splitlines() == [
            "error: sweep.yaml names its parameters itself",
            "  type: remove --param and --values",
        ]
    assert not Path("a.runs").exists()


def test_a_run_whose_directory_is_damaged_fails_alone_and_is_named(
    scripted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", scripted, "--seeds", "1-3", "--no-plot", "--output", "a.csv"]
    assert swarm(*words, "-q") == 0
    (Path("a.runs") / "base-seed2" / "manifest.json").write_text("{", encoding="utf-8")
    capsys.readouterr()
    assert swarm(*words, "--resume") == 1
    out, err = capsys.readouterr()
    assert "base-seed2 failed: " in err
    unfinished = err[err.index("1 of 3 runs are not completed:") :].splitlines()
    assert unfinished[1].split()[:2] == ["base-seed2", "failed"]
    assert "manifest.json can't be read" in unfinished[1]
    assert unfinished[2].endswith(
        "swarm sweep s.yaml --seeds 1-3 --no-plot --output a.csv --resume"
    )
    lines = out.splitlines()
    assert lines[3].split()[:2] == ["s", "2"]
    assert not any(line.startswith("Picture") for line in lines)  # nobody has asked for one
    runs = json.loads(Path("a.runs/sweep.json").read_text(encoding="utf-8"))["runs"]
    [told] = [run for run in runs if run["seed"] == 2]
    assert told["state"] == "failed"
    assert "can't be read" in told["reason"]


def test_a_picture_of_fewer_runs_does_not_stay(scripted: Path) -> None:
    words = ["sweep", scripted, "--output", "a.csv", "-q"]
    assert swarm(*words, "--seeds", "1-2") == 0
    assert Path("a.png").exists()
    assert swarm(*words, "--seeds", "1-2", "--no-plot", "--resume") == 0
    assert Path("a.png").exists()
    assert swarm(*words, "--seeds", "1-3", "--no-plot", "--resume") == 0
    assert not Path("a.png").exists()


def test_two_parameters_whose_names_end_alike_are_told_apart() -> None:
    heat = [SweepParameter(f"agents.{n}.llm.temperature", (0.5,)) for n in (0, 1)]
    *_, line = table(results_of(*heat), METRICS)
    assert line.startswith("agents.0.llm.temperature=0.5, agents.1.llm.temperature=0.5")
