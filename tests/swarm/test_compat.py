"""The private names of SWARM that the project leans on."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import swarm.__main__ as upstream
import swarm.scenarios.loader as loader
from swarm.core.orchestrator import Orchestrator, OrchestratorConfig

from swarm_integration.compat import (
    Simulation,
    blocks_its_thread,
    council_of,
    llm_agents_of,
    replaced,
    swarm_version,
    upstream_command,
)
from swarm_integration.errors import CompatError
from tests.swarm.simulations import awm, council, llm, write_scenario


def agents(tmp_path: Path) -> dict[str, Any]:
    specs = [llm(), council(2), awm(), awm(llm_planning=False), {"type": "honest"}]
    path = write_scenario(tmp_path / "s.yaml", specs, awm={"enabled": True})
    found = loader.build_orchestrator(loader.load_scenario(path)).get_all_agents()
    return {agent.agent_id: agent for agent in found}


def test_installed_swarm_has_every_name() -> None:
    Simulation(Orchestrator(config=OrchestratorConfig()))


def test_missing_name_is_reported_with_the_version_and_the_cure() -> None:
    with pytest.raises(CompatError, match="_execute_action") as caught:
        Simulation(SimpleNamespace(_agents={}))
    assert swarm_version() in str(caught.value)
    assert "pip install swarm-safety==" in str(caught.value)


def test_llm_agents_are_found_inside_others(tmp_path: Path) -> None:
    found = {
        agent_id: [inner.agent_id for inner in llm_agents_of(agent)]
        for agent_id, agent in agents(tmp_path).items()
    }
    assert found == {
        "llm_1": ["llm_1"],
        "council_1": ["council_1_member_m0", "council_1_member_m1"],
        "awm_agent_1": ["awm_agent_1_llm_delegate"],
        "awm_agent_2": [],
        "honest_1": [],
    }


def test_only_planning_agents_block_and_only_councils_have_a_council(tmp_path: Path) -> None:
    found = agents(tmp_path)
    assert [name for name, agent in found.items() if blocks_its_thread(agent)] == ["awm_agent_1"]
    assert [name for name, agent in found.items() if council_of(agent)] == ["council_1"]


class Owner:
    """Has one attribute of its own and one of its class."""

    inherited = "class"

    def __init__(self) -> None:
        self.own = "own"


def replace_both(owner: Owner, *, fails: bool) -> None:
    with replaced(owner, "own", "other"), replaced(owner, "inherited", "other"):
        assert (owner.own, owner.inherited) == ("other", "other")
        if fails:
            raise ZeroDivisionError


def test_replaced_attributes_are_put_back_as_they_were() -> None:
    owner = Owner()
    replace_both(owner, fails=False)
    with pytest.raises(ZeroDivisionError):
        replace_both(owner, fails=True)
    assert owner.__dict__ == {"own": "own"}
    assert owner.inherited == "class"


@pytest.mark.parametrize("fails", [False, True])
def test_upstreams_command_is_put_back_after_use(
    fails: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_scenario(tmp_path / "s.yaml", [{"type": "honest"}])
    before = (upstream.cmd_run, loader.build_orchestrator, list(sys.argv))
    built: list[str] = []

    def build(scenario: Any, build_orchestrator: Any) -> Any:
        built.append(scenario.scenario_id)
        if fails:
            raise KeyboardInterrupt
        return build_orchestrator(scenario)

    def run() -> None:
        with upstream_command(run=lambda args, cmd_run: cmd_run(args), build=build) as command:
            assert command(["run", str(path), "-q"]) == 0

    if fails:
        with pytest.raises(KeyboardInterrupt):
            run()
    else:
        run()
    assert built == ["s"]
    assert (upstream.cmd_run, loader.build_orchestrator, list(sys.argv)) == before
