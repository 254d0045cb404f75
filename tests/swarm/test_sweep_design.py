"""What a sweep is made of: points, seeds, paths, statistics, whose turn and whose file."""

from __future__ import annotations

import math
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler.errors import ConfigError
from swarm_integration.sweep.design import (
    PlannedRun,
    Point,
    SweepConfig,
    SweepParameter,
    parse_seeds,
    points_of,
    runs_of,
)
from swarm_integration.sweep.file import is_sweep, read_sweep, read_yaml
from swarm_integration.sweep.folder import folder_of
from swarm_integration.sweep.parameters import parse_value, path_of, paths_in, with_values
from swarm_integration.sweep.statistics import estimate, t_quantile

SCENARIO: dict[str, Any] = {
    "agents": [
        {"type": "llm", "count": 2, "llm": {"temperature": 0.5}},
        {"type": "honest"},
        {"type": "llm", "llm": {"temperature": 0.7}},
    ],
    "simulation": {"n_epochs": 2},
    "governance": None,
}


# --- points and seeds


def test_the_grid_has_every_combination_the_last_parameter_fastest() -> None:
    points = points_of(
        [
            SweepParameter("governance.transaction_tax", (0.0, 0.05)),
            SweepParameter("agents[0].llm.persona", ("honest", "open")),
        ]
    )
    assert [point.name for point in points] == [
        "transaction_tax=0.0_persona=honest",
        "transaction_tax=0.0_persona=open",
        "transaction_tax=0.05_persona=honest",
        "transaction_tax=0.05_persona=open",
    ]
    assert list(points[1].values.values()) == [0.0, "open"]


def test_without_parameters_there_is_one_point() -> None:
    [point] = points_of([])
    assert [run.name for run in runs_of([point], (7, 8))] == ["base-seed7", "base-seed8"]


def test_points_whose_plain_names_are_equal_get_names_of_their_own() -> None:
    names = [p.name for p in points_of([SweepParameter("a.b", ("x y", "x/y", "x"))])]
    assert len(set(names)) == 3
    assert names[2] == "b=x"
    assert all("/" not in name and " " not in name for name in names)
    [alone] = points_of([SweepParameter("a.b", ("x y",))])
    assert alone.name == names[0]  # so that a sweep may get more values later


def test_a_long_name_is_cut_and_stays_its_own() -> None:
    one, two = points_of([SweepParameter("a", ("x" * 300 + "1", "x" * 300 + "2"))])
    assert one.name != two.name
    assert max(len(one.name), len(two.name)) <= 100


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((), "has no values"),
        ((0, 0.0), "twice"),
        (("a", "b", "a"), "twice"),
        ((0.5, math.nan), "the value nan. Give a finite number"),
        (([1.0, math.inf],), "the value inf"),
        ((date(2026, 1, 1),), "Put a date into quotes"),
        (({"a": {date(2026, 1, 1): 1}},), "Put it into quotes"),
        (({1: "a", "b": "c"},), "has the key 1. Put it into quotes"),
        (("\ud83d",), "half a surrogate pair"),
    ],
)
def test_values_that_give_no_point_or_one_twice_are_refused(
    values: tuple[Any, ...], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        SweepParameter("a", values)


def test_true_and_one_are_two_values() -> None:
    assert SweepParameter("a", (True, 1)).values == (True, 1)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("42-45", (42, 43, 44, 45)), ("1,2,10-12", (1, 2, 10, 11, 12)), (" 5 , 3", (5, 3))],
)
def test_seeds_are_ranges_and_lists(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-4", "1-2-3", "1,1", "1-3,2", "1.5"])
def test_seeds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="seed"):
        parse_seeds(text)


def test_auto_seeds_begin_with_the_scenarios_own_and_with_42_without_one() -> None:
    config = SweepConfig(Path("s.yaml"), replications=3)
    assert config.seeds_from(7) == (7, 8, 9)
    assert config.seeds_from(None) == (42, 43, 44)
    assert SweepConfig(Path("s.yaml"), seeds=(5, 1)).seeds_from(7) == (5, 1)


def test_parameters_may_be_a_mapping_as_in_upstreams_guide() -> None:
    config = SweepConfig(Path("s.yaml"), {"a.b": [1, 2]})
    assert config.varied == (SweepParameter("a.b", (1, 2)),)
    assert config.name == "s"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"replications": 0}, "replications must be a whole number, 1 or more"),
        ({"seeds": ()}, "there is none"),
        ({"seeds": (1, 1)}, "seed 1 is given twice"),
        ({"seeds": (-1,)}, "0 or more, got -1"),
        ({"seeds": (1, 2), "replications": 3}, "do not fit together"),
        ({"epochs": 0}, "epochs must be a whole number"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"parameters": [SweepParameter("a", (1,)), SweepParameter("a", (2,))]}, "given twice"),
        ({"parameters": {"a": 0.1}}, "a: give a list of values, got 0.1"),
        ({"parameters": {"a": "0.1,0.2"}}, "a: give a list of values"),
        ({"seeds": 5}, "seeds: give a list of values, got 5"),
        ({"replications": 1.5}, "replications must be a whole number"),
        ({"mode": "parallel"}, "mode must be batch or serial, got 'parallel'"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(words: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SweepConfig(Path("s.yaml"), **words)


# --- paths


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("governance.transaction_tax", ("governance", "transaction_tax")),
        ("agents.0.count", ("agents", 0, "count")),
        ("agents[0].llm.temperature", ("agents", 0, "llm", "temperature")),
        ("n_epochs", ("simulation", "n_epochs")),
        ("steps_per_epoch", ("simulation", "steps_per_epoch")),
    ],
)
def test_a_path_is_keys_and_places(name: str, keys: tuple[str | int, ...]) -> None:
    assert path_of(name) == keys


@pytest.mark.parametrize("name", ["", ".", "a..b", ".a", "a.", "a[x]", "a[0", "simulation.seed"])
def test_what_is_no_path_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="parameter"):
        path_of(name)


def test_a_type_stands_for_all_its_entries() -> None:
    assert paths_in(SCENARIO, "agents.llm.llm.temperature") == [
        ("agents", 0, "llm", "temperature"),
        ("agents", 2, "llm", "temperature"),
    ]
    with pytest.raises(ConfigError, match="no agents of type 'evil'; it has: llm, honest"):
        paths_in(SCENARIO, "agents.evil.count")


def test_values_are_put_where_they_belong_and_nowhere_else() -> None:
    text = "agents:\n- &a {type: llm, llm: {temperature: 1}}\n- *a\n"
    aliased = yaml.safe_load(text)
    changed = with_values(aliased, {"agents[0].llm.temperature": 0})
    assert [one["llm"]["temperature"] for one in changed["agents"]] == [0, 1]
    assert aliased == yaml.safe_load(text)
    made = with_values(SCENARIO, {"governance.transaction_tax": 0.1, "network.topology": "ring"})
    assert made["governance"] == {"transaction_tax": 0.1}
    assert made["network"] == {"topology": "ring"}


@pytest.mark.parametrize("name", ["agents.7.count", "simulation.n_epochs.deep", "extra.0.x"])
def test_a_path_through_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"parameter {name}"):
        with_values(SCENARIO, {name: 1})


def test_values_read_as_in_yaml_and_numbers_as_numbers() -> None:
    texts = ["0.0", "5", "1e-3", "true", "null", "honest", "'5'", "-.5"]
    values = [0.0, 5, 0.001, True, None, "honest", "5", -0.5]
    assert [parse_value(text) for text in texts] == values
    for bad in ("", "[1", "'"):
        with pytest.raises(ConfigError):
            parse_value(bad)


# --- the YAML form


def test_a_sweeps_file_reads_as_upstreams_guide_has_it(tmp_path: Path) -> None:
    data = yaml.safe_load(
        """
        name: governance_sweep
        base_scenario: baseline.yaml
        sweep:
          parameters:
            - name: governance.transaction_tax
              values: [0.0, 0.1]
            - name: governance.reputation_decay
              values: [0.0, 0.1, 0.2]
          replications: 5
          seeds: auto
        """
    )
    assert is_sweep(data)
    config = SweepConfig(**read_sweep(tmp_path / "sweep.yaml", data))
    assert config.base_scenario == tmp_path / "baseline.yaml"
    assert (config.name, config.replications, config.seeds) == ("governance_sweep", 5, "auto")
    assert len(points_of(config.varied)) == 6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sweeep": {}}, "unknown key 'sweeep'"),
        ({"base_scenario": 3}, "base_scenario"),
        ({"sweep": {"replications": "many"}}, "replications"),
        ({"sweep": {"seeds": "x"}}, "seeds must be whole numbers"),
        (
            {"sweep": {"parameters": [{"name": "a", "values": [1], "depends_on": "b"}]}},
            "depends_on",
        ),
        ({"sweep": {"parameters": [{"name": "a"}]}}, "values"),
    ],
)
def test_a_sweeps_file_with_a_mistake_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_sweep(Path("sweep.yaml"), {"base_scenario": "b.yaml", **change})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "s.yaml can't be read"),
        (b"\xff\xfe", "s.yaml can't be read"),
        (b"a: [1,\n  b", "s.yaml is not YAML: while parsing"),
        (b"- a\n- b\n", "it holds no keys"),
        (b"", "it holds no keys"),
    ],
)
def test_a_file_that_is_neither_a_scenario_nor_a_sweep_is_refused(
    content: bytes | None, says: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "s.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        read_yaml(tmp_path / "s.yaml")
    assert "\n" not in str(caught.value)


# --- where it writes


def test_an_output_is_a_table_or_a_folder(tmp_path: Path) -> None:
    table = folder_of(tmp_path / "r/tax.csv", "name")
    assert (table.csv, table.runs) == (tmp_path / "r/tax.csv", tmp_path / "r/tax.runs")
    assert (table.summary.name, table.picture.name) == ("tax.summary.csv", "tax.png")
    inside = folder_of(tmp_path / "results", "my sweep")
    assert inside.csv == tmp_path / "results/my_sweep.csv"
    dotted = folder_of(tmp_path / "v1.5", "s", is_folder=True)
    assert dotted.csv == tmp_path / "v1.5/s.csv"
    with pytest.raises(ConfigError, match=r"ends in \.csv"):
        folder_of(tmp_path / "tax.txt", "name")
    run = PlannedRun(Point("p", {}), 0, 5)
    assert table.of(run) == tmp_path / "r/tax.runs/p-seed5"


# --- statistics


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    # From the tables of Student's t, 0.975.
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (100, 1.984)],
)
def test_students_t_is_that_of_the_tables(degrees: int, quantile: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(quantile, abs=5e-4)


def test_many_degrees_of_freedom_come_near_the_normal_distribution() -> None:
    assert t_quantile(0.975, 10_001) == pytest.approx(1.96, abs=1e-3)


def test_an_estimate_is_mean_deviation_and_interval() -> None:
    found = estimate([1.0, 2.0, 3.0, 4.0])
    assert found is not None
    assert (found.n, found.mean) == (4, 2.5)
    assert found.std == pytest.approx(math.sqrt(5 / 3))
    assert found.high == pytest.approx(2.5 + 3.18245 * math.sqrt(5 / 3) / 2, abs=1e-4)
    assert found.low == pytest.approx(5.0 - (found.high or 0))
    one = estimate([7.0])
    assert one is not None
    assert (one.mean, one.std, one.low, one.high) == (7.0, None, None, None)
    assert estimate([]) is None
