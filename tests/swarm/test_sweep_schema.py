"""A sweep's parameters exist in SWARM, take such values, and change something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scheduler.errors import ConfigError
from swarm_integration.sweep.design import SweepConfig, SweepParameter
from swarm_integration.sweep.file import read_yaml
from swarm_integration.sweep.plan import plan_sweep
from swarm_integration.sweep.schema import check_parameters
from tests.swarm.simulations import llm, write_scenario


def check(scenario: Path, name: str, *values: Any) -> None:
    check_parameters(scenario, read_yaml(scenario), [SweepParameter(name, values)])


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    agents = [llm(2, temperature=0.5), {"type": "honest", "count": 1}]
    return write_scenario(tmp_path / "s.yaml", agents, governance={"audit_enabled": True})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("governance.transaction_tax", (0.0, 0.05)),
        ("governance.transaction_tax_rate", (0.0, 0.05)),
        ("governance.reputation_decay", (0.5, 1.0)),
        ("payoff.theta", (0.1, 0.9)),
        ("agents.0.count", (1, 2)),
        ("agents[0].llm.temperature", (0.0, 1.0)),
        ("agents.llm.llm.temperature", (0.0, 1.0)),
        ("agents[0].llm.seed", (1, 2)),  # upstream drops it, this project honours it
        ("agents.honest.config.anything", (1, 2)),  # a class may read it in the middle of a run
        ("simulation.n_epochs", (1, 2)),
        ("n_epochs", (1, 2)),
        ("network.topology", ("ring", "star")),
        ("rate_limits.posts_per_epoch", (1, 2)),
        ("perturbations.agent_dropout.probability_per_step", (0.1, 0.2)),
    ],
)
def test_what_upstream_reads_may_vary(scenario: Path, name: str, values: tuple[Any, ...]) -> None:
    check(scenario, name, *values)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("governance.transaction_tx", "Write governance.transaction_tax"),
        ("governence.transaction_tax", "knows no governence. Write governance"),
        ("agents[0].llm.temprature", r"Write agents\.0\.llm\.temperature"),
        ("agents[1].llm.temperature", r"knows no agents\.1\.llm"),  # a scripted agent
        ("governance.moderator_enabled", "knows no"),  # its class has it, its loader ignores it
        ("payoff.sigmoid_k", "Use one of: h, rho_a, rho_b"),
    ],
)
def test_what_upstream_ignores_is_refused_with_what_comes_near(
    scenario: Path, name: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        check(scenario, name, 1.0, 2.0)


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("governance.transaction_tax", (0.0, "high"), "must be a number, as 0.0 is; got 'high'"),
        ("governance.audit_enabled", (True, 1), "must be true or false, as True is; got 1"),
        ("agents.0.count", ("two",), "must be a number, as 2 is; got 'two'$"),
        ("payoff.theta", ("1e-3",), "got '1e-3'. Write 1.0e-3, since YAML"),
        ("agents", (1, 2), r"must be a list, as .{60}\.\.\. is; got 1"),
        ("agents.0.llm.model", (3,), "must be a text, as 'm' is; got 3"),
        ("simulation.n_epochs", (1, 2.5), "value 2.5: .*valid integer"),
        ("payoff.theta", (0.5, 7.0), "value 7.0: .*theta must be"),
        ("network.topology", ("ring", "rign"), "value 'rign': .*Unknown network topology"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(
    scenario: Path, name: str, values: tuple[Any, ...], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        check(scenario, name, *values)


def test_a_parameter_that_stands_below_another_changes_nothing(tmp_path: Path) -> None:
    longer = {"transaction_tax_rate": 0.1}
    scenario = write_scenario(tmp_path / "s.yaml", [{"type": "honest"}], governance=longer)
    with pytest.raises(ConfigError, match="changes nothing"):
        check(scenario, "governance.transaction_tax", 0.0, 0.2)
    check(scenario, "governance.transaction_tax_rate", 0.0, 0.2)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("n_epochs", "simulation.n_epochs"),
        ("agents.0.llm.temperature", "agents[0].llm.temperature"),
        ("agents.0.llm.temperature", "agents.llm.llm.temperature"),
        ("governance", "governance.transaction_tax"),
    ],
)
def test_two_parameters_for_one_place_are_refused(scenario: Path, one: str, other: str) -> None:
    both = {one: [1, 2], other: [1, 2]}
    for names in ((one, other), (other, one)):
        config = SweepConfig(scenario, {name: both[name] for name in names})
        with pytest.raises(ConfigError, match="stand for the same place"):
            plan_sweep(config, scenario.parent, jobs=1)


def test_two_points_that_are_one_simulation_are_refused(scenario: Path) -> None:
    """Of the two names of a key SWARM takes one, where both are given."""
    tax = {"governance.transaction_tax": [0.0, 0.1], "governance.transaction_tax_rate": [0.0, 0.2]}
    with pytest.raises(ConfigError, match="are the same simulation"):
        plan_sweep(SweepConfig(scenario, tax), scenario.parent, jobs=1)


def test_a_value_out_of_range_is_told_in_a_line(scenario: Path) -> None:
    with pytest.raises(ConfigError, match=r"transaction_tax_rate must be in \[0, 1\]") as caught:
        check(scenario, "governance.transaction_tax", 0.0, 2.0)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("words", "sections", "says"),
    [
        ({"parameters": {"agents.0.llm.persona": ["honest", "opne"]}}, {}, "opne.* can't be run"),
        ({"parameters": {"n_epochs": [1, 2]}, "epochs": 3}, {}, "Remove --epochs"),
        ({}, {"outputs": {"graph_memory_path": "m.json"}}, "graph_memory_path"),
    ],
)
def test_a_sweep_that_can_not_be_run_is_refused_before_it_starts(
    tmp_path: Path, words: dict[str, Any], sections: dict[str, Any], says: str
) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [llm(2)], **sections)
    with pytest.raises(ConfigError, match=says):
        plan_sweep(SweepConfig(scenario, **words), tmp_path, jobs=1)


def test_checking_leaves_the_loader_as_it_was(scenario: Path) -> None:
    from swarm.scenarios import loader

    before = loader.yaml
    check(scenario, "payoff.theta", 0.1, 0.2)
    assert loader.yaml is before
    assert loader.load_scenario(scenario).orchestrator_config.payoff_config.theta == 0.5
