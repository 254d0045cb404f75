"""The driver's two modes against SWARM's own loops, for agents that call no model.

``serial`` equals ``Orchestrator.run()``. ``batch`` equals ``run_async()`` plus the chores that only
``run()`` does: graph memory, artifact clean-up, self-modification, the full start event.
Each test builds fresh simulations from one scenario and one seed; only the loop differs.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from swarm.agents.base import Action, InteractionProposal, Observation
from swarm.agents.hyperagent_self_mod import HyperagentSelfModAgent, SelfModSnapshot
from swarm.core.middleware import MiddlewareContext
from swarm.core.orchestrator import EpochMetrics, Orchestrator
from swarm.env.feed import Post
from swarm.env.state import InteractionProposal as Proposal
from swarm.env.tasks import Task
from swarm.knowledge.graph_memory import GraphMemoryStore
from swarm.models.artifact import Artifact
from swarm.models.events import Event, EventType
from swarm.scenarios import build_orchestrator, load_scenario

from swarm_integration.driver import run_blocking
from tests.equality.masking import comparable, comparable_events, comparable_memory

Mode = Literal["batch", "serial"]
Run = Callable[[Orchestrator, Mode], list[EpochMetrics]]

SCENARIOS = Path(__file__).parent / "scenarios"
ALL = sorted(path.stem for path in SCENARIOS.glob("*.yaml"))
SELF_MODIFYING = "self_modifiers"
WITHOUT_CHORES = [name for name in ALL if name != SELF_MODIFYING]

both_modes = pytest.mark.parametrize("mode", ["batch", "serial"])
every_scenario = pytest.mark.parametrize("name", WITHOUT_CHORES)


@pytest.fixture(autouse=True)
def feed_order_free_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """SWARM reads the clock once per post it ranks, so a busy machine swaps neighbours."""
    now = datetime.now()  # noqa: DTZ005 - SWARM's own times are naive
    age = property(lambda post: (now - post.created_at).total_seconds())
    monkeypatch.setattr(Post, "age_seconds", age)


def fresh(name: str, *, memory: Path | None = None, replay_k: int | None = None) -> Orchestrator:
    path = SCENARIOS / f"{name}.yaml"
    scenario = load_scenario(path)
    scenario.orchestrator_config.graph_memory_path = str(memory) if memory else None
    scenario.orchestrator_config.replay_k = replay_k
    orchestrator = build_orchestrator(scenario)
    for number in range(yaml.safe_load(path.read_text()).get("tasks", 0)):
        orchestrator.task_pool.add_task(Task(task_id=f"task-{number}", prompt="Write a summary."))
    return orchestrator


def upstream(orchestrator: Orchestrator, mode: Mode) -> list[EpochMetrics]:
    metrics: list[EpochMetrics]
    metrics = orchestrator.run() if mode == "serial" else asyncio.run(orchestrator.run_async())
    return metrics


class EpochChores:
    """What only ``run()`` does as an epoch starts, in its place: after all other start hooks."""

    def on_epoch_start(self, ctx: MiddlewareContext) -> None:
        first_step = ctx.state.current_epoch * ctx.config.steps_per_epoch
        ctx.state.artifact_registry.gc(first_step, max_age_steps=200)
        for agent in ctx.agents.values():
            if isinstance(agent, HyperagentSelfModAgent):
                agent.self_modify(ctx.state.current_epoch)

    def on_epoch_end(self, ctx: MiddlewareContext) -> None:
        pass

    def on_step_start(self, ctx: MiddlewareContext) -> None:
        pass


def with_chores(orchestrator: Orchestrator, mode: Mode) -> list[EpochMetrics]:
    """Upstream's loop, and around ``run_async`` what ``run`` does besides."""
    if mode == "serial":
        return upstream(orchestrator, mode)
    orchestrator._pipeline.add(EpochChores())
    memory = orchestrator.config.graph_memory_path
    if memory is None:
        return upstream(orchestrator, mode)
    store = GraphMemoryStore(memory)
    snapshots = store.load_all()
    for agent in orchestrator.get_all_agents():
        if agent.agent_id in snapshots:
            agent.load_prior_memory(snapshots[agent.agent_id])
    metrics = upstream(orchestrator, mode)
    run_id = orchestrator.config.scenario_id
    store.save_all(orchestrator.get_all_agents(), run_id, orchestrator.config.n_epochs - 1)
    return metrics


def driver(orchestrator: Orchestrator, mode: Mode) -> list[EpochMetrics]:
    return run_blocking(orchestrator, mode)


@dataclass(frozen=True)
class Record:
    """What a run leaves behind, as plain data; events without the start, which says the mode."""

    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]
    agents: dict[str, tuple[float, float, float]]


def start_and_record(orchestrator: Orchestrator, run: Run, mode: Mode) -> tuple[Event, Record]:
    events: list[Event] = []
    orchestrator.subscribe_events(events.append)
    metrics = comparable(run(orchestrator, mode))
    agents = {
        agent_id: (state.reputation, state.resources, state.total_payoff)
        for agent_id, state in orchestrator.state.agents.items()
    }
    return events[0], Record(metrics, comparable_events(events[1:]), agents)


@cache
def record(name: str, run: Run, mode: Mode) -> Record:
    return start_and_record(fresh(name), run, mode)[1]


@both_modes
@every_scenario
def test_metrics_equal_upstreams(name: str, mode: Mode) -> None:
    assert record(name, driver, mode).metrics == record(name, upstream, mode).metrics


@both_modes
@every_scenario
def test_events_equal_upstreams_in_order(name: str, mode: Mode) -> None:
    assert record(name, driver, mode).events == record(name, upstream, mode).events


@both_modes
@every_scenario
def test_agents_end_as_upstreams_do(name: str, mode: Mode) -> None:
    ours, theirs = record(name, driver, mode).agents, record(name, upstream, mode).agents
    assert list(ours.items()) == list(theirs.items())


@both_modes
@every_scenario
def test_upstream_repeats_itself(name: str, mode: Mode) -> None:
    """Otherwise the equalities above would come and go."""
    assert start_and_record(fresh(name), upstream, mode)[1] == record(name, upstream, mode)


@every_scenario
def test_batch_and_serial_are_different_simulations(name: str) -> None:
    """Otherwise the equalities above could not tell one mode from the other."""
    assert record(name, upstream, "batch").metrics != record(name, upstream, "serial").metrics
    assert record(name, driver, "batch").metrics != record(name, driver, "serial").metrics


def histories(orchestrator: Orchestrator) -> dict[str, list[SelfModSnapshot]]:
    return {
        agent.agent_id: agent.modification_history
        for agent in orchestrator.get_all_agents()
        if isinstance(agent, HyperagentSelfModAgent)
    }


@both_modes
def test_agents_modify_themselves_once_per_epoch_as_in_run(mode: Mode) -> None:
    ours, theirs = fresh(SELF_MODIFYING), fresh(SELF_MODIFYING)
    driver(ours, mode)
    theirs.run()
    assert histories(ours) == histories(theirs)
    for history in histories(ours).values():
        assert [snapshot.epoch for snapshot in history] == [0, 1, 2, 3]


@both_modes
def test_self_modification_acts_on_the_epoch_it_precedes(mode: Mode) -> None:
    ours = driver(fresh(SELF_MODIFYING), mode)
    assert comparable(ours) == comparable(with_chores(fresh(SELF_MODIFYING), mode))


class Timeline:
    """All that a user of a run can see happen, in one order."""

    def __init__(self, orchestrator: Orchestrator) -> None:
        self.entries: list[tuple[Any, ...]] = []
        self._state = orchestrator.state
        orchestrator.subscribe_events(self._event)
        orchestrator.on_epoch_end(self._epoch)
        orchestrator.on_interaction_complete(self._interaction)
        orchestrator.register_agent(Diarist(self))
        gift = Proposal(
            initiator_id=orchestrator.get_all_agents()[0].agent_id,
            counterparty_id="diarist",
            interaction_type="trade",
            content="A gift.",
            metadata={"offered_transfer": 2.5},
        )
        orchestrator.state.add_proposal(gift)

    def _event(self, event: Event) -> None:
        self.entries.append((event.event_type.value, event.epoch, event.step, event.agent_id))

    def _epoch(self, metrics: EpochMetrics) -> None:
        self.entries.append(("epoch ended", metrics.epoch, self._state.current_epoch))

    def _interaction(self, interaction: Any, initiator: float, counterparty: float) -> None:
        parties = (interaction.initiator, interaction.counterparty)
        self.entries.append(("interaction", *parties, initiator, counterparty))


class Diarist(HyperagentSelfModAgent):  # type: ignore[misc]  # SWARM's types are not followed
    """Writes into a timeline what it is asked, and what it sees when asked; does nothing else."""

    def __init__(self, timeline: Timeline) -> None:
        super().__init__("diarist", rng=random.Random(7))
        self._timeline = timeline

    def self_modify(self, epoch: int) -> SelfModSnapshot:
        self._timeline.entries.append(("self-modification", epoch))
        return super().self_modify(epoch)

    def act(self, observation: Observation) -> Action:
        standing = [other["reputation"] for other in observation.visible_agents]
        self._timeline.entries.append(("turn", observation.current_step, *standing))
        return self.create_noop_action()

    def accept_interaction(self, proposal: InteractionProposal, observation: Observation) -> bool:
        offer = (proposal.initiator_id, proposal.interaction_type, proposal.offered_transfer)
        waiting = len(observation.pending_proposals)
        self._timeline.entries.append(("offer", proposal.content, *offer, waiting))
        return bool(proposal.offered_transfer > 0)


@both_modes
@pytest.mark.parametrize("name", ["contracts_and_bounties", "wiki_and_forum", SELF_MODIFYING])
def test_callbacks_events_and_self_modification_come_in_upstreams_order(
    name: str, mode: Mode
) -> None:
    ours, theirs = fresh(name), fresh(name)
    timeline, expected = Timeline(ours), Timeline(theirs)
    driver(ours, mode)
    with_chores(theirs, mode)
    assert timeline.entries == expected.entries
    seen = [entry[0] for entry in timeline.entries]
    assert seen.count("epoch ended") == ours.config.n_epochs
    assert seen.count("interaction") == seen.count("interaction_completed") > 0
    assert seen.count("self-modification") == ours.config.n_epochs
    assert "turn" in seen
    assert "offer" in seen


@both_modes
def test_pause_from_a_callback_stops_the_steps_as_upstream(mode: Mode) -> None:
    def paused(run: Run) -> tuple[list[dict[str, Any]], list[int]]:
        orchestrator = fresh("feed_and_tasks")
        state = orchestrator.state
        steps: list[int] = []

        def pause(*_: Any) -> None:
            if (state.current_epoch, state.current_step) >= (1, 2):
                orchestrator.pause()

        def steps_taken(event: Event) -> None:
            if event.event_type is EventType.EPOCH_COMPLETED:
                steps.append(state.current_step)

        orchestrator.on_interaction_complete(pause)
        orchestrator.subscribe_events(steps_taken)
        return comparable(run(orchestrator, mode)), steps

    metrics, steps = paused(driver)
    assert (metrics, steps) == paused(upstream)
    assert 0 < steps[1] < steps[0]
    assert steps[2] == 0


class PostsNowAndThen:
    """Stands for the queue through which an agent outside the process acts."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def reset_step(self) -> None:
        self.asked.append("new step")

    async def wait_for_action(self, agent_id: str) -> dict[str, Any] | None:
        self.asked.append(agent_id)
        return {"action_type": "post", "content": "From outside."} if len(self.asked) % 2 else None


def test_batch_asks_external_agents_as_upstream() -> None:
    def with_an_external_agent(run: Run) -> tuple[list[dict[str, Any]], list[str], set[str]]:
        orchestrator, queue = fresh("feed_and_tasks"), PostsNowAndThen()
        orchestrator.get_all_agents()[1].is_external = True
        orchestrator.set_external_action_queue(queue)
        metrics = comparable(run(orchestrator, "batch"))
        return metrics, queue.asked, set(orchestrator.get_external_observations())

    ours = with_an_external_agent(driver)
    assert ours == with_an_external_agent(upstream)
    assert ours[2] == {"honest_2"}
    assert ours[0] != record("feed_and_tasks", driver, "batch").metrics


@both_modes
def test_start_event_says_all_that_run_says(mode: Mode) -> None:
    ours, _ = start_and_record(fresh("feed_and_tasks", replay_k=3), driver, mode)
    theirs, _ = start_and_record(fresh("feed_and_tasks", replay_k=3), upstream, "serial")
    assert ours.event_type is EventType.SIMULATION_STARTED
    assert ours.payload.items() >= theirs.payload.items()
    assert (ours.payload["scenario_id"], ours.payload["replay_k"]) == ("feed_and_tasks", 3)


@both_modes
def test_stale_artifacts_are_cleared_at_each_epochs_start_as_in_run(mode: Mode) -> None:
    """Stale is what is older than 200 steps; an epoch of this scenario has 5."""

    def left_after_each_epoch(run: Run, mode: Mode) -> list[list[str]]:
        orchestrator, left = fresh("feed_and_tasks"), []
        registry = orchestrator.state.artifact_registry
        for step in (-300, -200, -196, -191, 0):
            registry.publish(Artifact(artifact_id=f"of step {step}", step=step))
        orchestrator.on_epoch_end(
            lambda _: left.append([artifact.artifact_id for artifact in registry.all_artifacts()])
        )
        run(orchestrator, mode)
        return left

    left = left_after_each_epoch(driver, mode)
    assert left == left_after_each_epoch(upstream, "serial")
    assert [len(artifacts) for artifacts in left] == [4, 2, 1]


@both_modes
@pytest.mark.parametrize("name", ["feed_and_tasks", "replicators"])
def test_run_leaves_a_memory_of_each_agent_as_upstream(
    name: str, mode: Mode, tmp_path: Path
) -> None:
    ours = fresh(name, memory=tmp_path / "ours.json")
    theirs = fresh(name, memory=tmp_path / "theirs.json")
    driver(ours, mode)
    with_chores(theirs, mode)
    memory = GraphMemoryStore(str(tmp_path / "ours.json")).load_all()
    expected = GraphMemoryStore(str(tmp_path / "theirs.json")).load_all()
    assert comparable_memory(memory) == comparable_memory(expected)
    assert set(memory) == {agent.agent_id for agent in ours.get_all_agents()}


@both_modes
def test_second_run_begins_with_the_memory_of_the_first(mode: Mode, tmp_path: Path) -> None:
    def two_runs(run: Run, store: str) -> list[list[dict[str, Any]]]:
        memory = tmp_path / store
        return [comparable(run(fresh("feed_and_tasks", memory=memory), mode)) for _ in range(2)]

    first, second = two_runs(driver, "ours.json")
    assert [first, second] == two_runs(with_chores, "theirs.json")
    assert first != second
