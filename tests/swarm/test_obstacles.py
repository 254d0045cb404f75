"""Why SWARM refuses an action: upstream says no, and the rules say what for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from swarm.agents.base import Action, ActionType
from swarm.env.network import AgentNetwork
from swarm.governance.hardware_trust import HaltReason
from swarm.scenarios.loader import build_orchestrator, load_scenario

from swarm_integration.compat import Simulation
from swarm_integration.compat_actions import PASSING, Obstacle, Rules
from tests.swarm.simulations import write_scenario

ANN, BEN, CAY = "honest_1", "honest_2", "honest_3"


class World:
    """Three agents on a line, with a post and tasks to claim."""

    def __init__(self, path: Path, **sections: Any) -> None:
        agents = [{"type": "honest", "count": 3}]
        scenario = load_scenario(write_scenario(path / "s.yaml", agents, **sections))
        self.orchestrator = build_orchestrator(scenario)
        self.simulation = Simulation(self.orchestrator)
        self.simulation.initialize_network()
        self.rules = Rules(self.simulation)
        self.post = self.orchestrator.feed.create_post(BEN, "hello").post_id
        pool = self.orchestrator.task_pool
        self.open, self.hard, self.taken = (
            pool.create_task("do it", min_reputation=least).task_id for least in (0.0, 50.0, 0.0)
        )
        assert pool.claim_task(self.taken, BEN, 0.0)

    def refusal(self, kind: ActionType, target: Any = "", other: str = "") -> Obstacle | None:
        """Put an action to SWARM; None where it takes place."""
        action = Action(
            action_type=kind,
            agent_id=ANN,
            target_id=target,
            counterparty_id=other,
            content="text",
            vote_direction=1,
        )
        done = self.simulation.execute(action)
        return None if done else self.rules.obstacle(action)


def on_a_line(network: AgentNetwork) -> None:
    for one, two in ((ANN, BEN), (BEN, CAY)):
        network.add_edge(one, two)
    network.remove_edge(ANN, CAY)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path, network={"topology": "complete"})
    on_a_line(made.orchestrator.network)
    return made


@pytest.mark.parametrize(
    ("kind", "target", "obstacle"),
    [
        (ActionType.VOTE, lambda world: world.post, None),
        (ActionType.VOTE, lambda world: "nowhere", Obstacle.NO_POST),
        (ActionType.REPLY, lambda world: [world.post], Obstacle.NO_POST),
        (ActionType.CLAIM_TASK, lambda world: world.open, None),
        (ActionType.CLAIM_TASK, lambda world: "nowhere", Obstacle.NO_TASK),
        (ActionType.CLAIM_TASK, lambda world: world.taken, Obstacle.TASK_TAKEN),
        (ActionType.CLAIM_TASK, lambda world: world.hard, Obstacle.REPUTATION),
        (ActionType.SUBMIT_OUTPUT, lambda world: "nowhere", Obstacle.NO_TASK),
        (ActionType.SUBMIT_OUTPUT, lambda world: world.taken, Obstacle.NOT_OWN_TASK),
        (ActionType.PLACE_BID, lambda world: "x", Obstacle.NO_HANDLER),
        (ActionType.ACCEPT_INTERACTION, lambda world: "nowhere", Obstacle.OTHER),
    ],
)
def test_what_stands_in_the_way_is_named(
    world: World,
    kind: ActionType,
    target: Callable[[World], Any],
    obstacle: Obstacle | None,
) -> None:
    assert world.refusal(kind, target(world)) == obstacle


@pytest.mark.parametrize(
    ("other", "obstacle"),
    [(BEN, None), (CAY, Obstacle.NO_LINK), ("nobody", Obstacle.NO_AGENT)],
)
def test_a_proposal_needs_an_agent_and_a_link_to_it(
    world: World, other: str, obstacle: Obstacle | None
) -> None:
    assert world.refusal(ActionType.PROPOSE_INTERACTION, other=other) == obstacle


def test_without_a_network_everybody_is_linked_and_a_no_has_another_reason(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    assert world.orchestrator.network is None
    assert world.refusal(ActionType.PROPOSE_INTERACTION, other=CAY) is None
    action = Action(action_type=ActionType.PROPOSE_INTERACTION, agent_id=ANN, counterparty_id=CAY)
    assert world.rules.obstacle(action) == Obstacle.OTHER


@pytest.mark.parametrize(
    ("limit", "kind"),
    [
        ("posts_per_epoch", ActionType.POST),
        ("posts_per_epoch", ActionType.REPLY),
        ("votes_per_epoch", ActionType.VOTE),
        ("interactions_per_step", ActionType.PROPOSE_INTERACTION),
    ],
)
def test_a_limit_that_is_used_up_comes_before_all_else(
    limit: str, kind: ActionType, tmp_path: Path
) -> None:
    world = World(tmp_path, rate_limits={limit: 0})
    assert world.refusal(kind, world.post, other=BEN) == Obstacle.RATE_LIMIT
    assert world.refusal(kind, "nowhere", other="nobody") == Obstacle.RATE_LIMIT
    assert world.refusal(ActionType.CLAIM_TASK, world.open) is None


def test_an_agent_that_was_halted_is_blocked_by_governance_alone(tmp_path: Path) -> None:
    world = World(tmp_path, governance={"hardware_trust_enabled": True})
    engine = world.orchestrator.governance_engine
    assert world.rules.permits(ANN, "POST")
    lever = engine.get_hardware_trust_lever()
    lever.receive_halt(
        "halt-1", HaltReason.TAMPER_DETECTED, world.simulation.state, source_agent_id=ANN
    )
    assert [world.rules.permits(one, "POST") for one in (ANN, BEN)] == [False, True]
    assert world.rules.permits(ANN, "NOOP")
    assert world.refusal(ActionType.POST) == Obstacle.GOVERNANCE


def test_without_governance_everything_is_permitted(world: World) -> None:
    world.orchestrator.governance_engine = None
    assert world.rules.permits(ANN, "PROPOSE_INTERACTION")


def test_only_what_another_agents_move_can_cause_is_passing(world: World) -> None:
    assert world.refusal(ActionType.CLAIM_TASK, world.taken) in PASSING
    assert world.refusal(ActionType.PROPOSE_INTERACTION, other=CAY) in PASSING
    assert not PASSING & {Obstacle.RATE_LIMIT, Obstacle.GOVERNANCE, Obstacle.NO_HANDLER}
