"""A SWARM run, step by step, with everything that upstream's `run()` does.

`batch` follows upstream's `run_async()`: every eligible agent observes the state
at the start of the step, all prompts go out together, actions are carried out in
eligible order. `serial` follows `run()`: one agent after the other, each seeing
the effects of those before it. Around the steps both do what `run()` does, which
is more than `run_async()` does: graph memory, artifact clean-up, self-modification,
Letta's shutdown, the whole start event. An agent that raises ends the run.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import anyio.to_thread
from anyio import CapacityLimiter

from scheduler.types import Completion
from swarm_integration import compat
from swarm_integration.actions import Actions
from swarm_integration.agents import LlmAgents
from swarm_integration.choices import Turn
from swarm_integration.compat import Simulation
from swarm_integration.idle import SimulationLoop
from swarm_integration.rounds import Job, Rounds

Mode = Literal["batch", "serial"]

MAX_ARTIFACT_AGE_STEPS = 200
"""Age at which upstream's `run()` lets artifacts go (`core/orchestrator.py:802`)."""

PhaseListener = Callable[[str, Sequence[Completion]], None]
"""Called after each phase with its kind and its completions in canonical order."""


class Driver:
    """Runs one simulation.

    Args:
        simulation: What is run; it has not run before.
        mode: `batch` or `serial`.
        rounds: Where agents' questions are answered.
        llm_agents: The agents that have a model, or None when none has.
        on_phase: Told of each phase's completions.
        on_step: Called with epoch and step before each step.
    """

    def __init__(
        self,
        simulation: Simulation,
        mode: Mode,
        rounds: Rounds,
        llm_agents: LlmAgents | None = None,
        *,
        on_phase: PhaseListener | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        self._simulation = simulation
        self._mode = mode
        self._rounds = rounds
        self._llm_agents = llm_agents
        self._on_phase = on_phase
        self._on_step = on_step
        self._threads: CapacityLimiter | None = None
        full_ids = llm_agents is not None and llm_agents.full_ids
        self.actions = Actions(simulation, full_ids=full_ids)

    async def run(self) -> list[Any]:
        """Run all epochs and return their metrics, as upstream's `run()` does."""
        from swarm.models.events import Event, EventType

        sim = self._simulation
        self._threads = CapacityLimiter(max(1, len(sim.agents)))
        self._load_memories()
        sim.initialize_network()
        sim.emit(Event(event_type=EventType.SIMULATION_STARTED, payload=self._start_payload()))
        connected = self._llm_agents.connected(sim.agents) if self._llm_agents else nullcontext()
        try:
            with connected:
                for _ in range(sim.config.n_epochs):
                    metrics = await self._epoch()
                    sim.epoch_metrics.append(metrics)
                    for callback in sim.epoch_callbacks:
                        callback(metrics)
        finally:
            if sim.letta_lifecycle is not None:
                sim.letta_lifecycle.shutdown()
        final = sim.epoch_metrics[-1].to_dict() if sim.epoch_metrics else {}
        payload = {"total_epochs": sim.config.n_epochs, "final_metrics": final}
        sim.emit(Event(event_type=EventType.SIMULATION_ENDED, payload=payload))
        self._save_memories()
        return sim.epoch_metrics

    def _start_payload(self) -> dict[str, Any]:
        config = self._simulation.config
        return {
            "n_epochs": config.n_epochs,
            "steps_per_epoch": config.steps_per_epoch,
            "n_agents": len(self._simulation.agents),
            "seed": config.seed,
            "scenario_id": config.scenario_id,
            "replay_k": config.replay_k,
        }

    def _load_memories(self) -> None:
        if self._simulation.graph_memory is None:
            return
        snapshots = self._simulation.graph_memory.load_all()
        for agent_id, agent in self._simulation.agents.items():
            if agent_id in snapshots:
                agent.load_prior_memory(snapshots[agent_id])

    def _save_memories(self) -> None:
        sim = self._simulation
        if sim.graph_memory is not None:
            run_id = sim.config.scenario_id or "unknown"
            sim.graph_memory.save_all(list(sim.agents.values()), run_id, sim.config.n_epochs - 1)

    async def _epoch(self) -> Any:
        from swarm.agents.hyperagent_self_mod import HyperagentSelfModAgent
        from swarm.models.events import Event, EventType

        sim = self._simulation
        epoch = sim.state.current_epoch
        context = sim.context()
        sim.pipeline.on_epoch_start(context)
        first_step = epoch * sim.config.steps_per_epoch
        sim.state.artifact_registry.gc(first_step, max_age_steps=MAX_ARTIFACT_AGE_STEPS)
        for agent in sim.agents.values():
            if isinstance(agent, HyperagentSelfModAgent):
                agent.self_modify(epoch)
        for _ in range(sim.config.steps_per_epoch):
            if sim.state.is_paused:
                break
            await self._step(context)
            sim.state.advance_step()
        sim.pipeline.on_epoch_end(context)
        metrics = sim.end_epoch()
        event = Event(event_type=EventType.EPOCH_COMPLETED, payload=metrics.to_dict(), epoch=epoch)
        sim.emit(event)
        sim.state.advance_epoch()
        return metrics

    async def _step(self, context: Any) -> None:
        sim = self._simulation
        if self._on_step is not None:
            self._on_step(sim.state.current_epoch, sim.state.current_step)
        sim.pipeline.on_step_start(context)
        if sim.external_queue is not None:
            sim.external_queue.reset_step()
        self._rounds.start_step()
        acts = [self._act(agent_id) for agent_id in sim.eligible()]
        if self._mode == "batch":
            for action, turn in await self._phase("act", acts):
                self._execute(action, turn)
        else:
            for act in acts:
                [(action, turn)] = await self._phase("act", [act])
                self._execute(action, turn)
        await self._resolve_proposals()

    def _execute(self, action: Any, turn: Turn | None) -> None:
        done = self._simulation.execute(action)
        if turn is not None:
            self.actions.executed(turn, action, done=done)

    async def _resolve_proposals(self) -> None:
        proposals = list(self._simulation.state.pending_proposals.values())
        decisions = [self._decide(proposal) for proposal in proposals]
        if self._mode == "batch":
            accepted = await self._phase("accept", decisions)
            for proposal, accept in zip(proposals, accepted, strict=True):
                self._close(proposal, accept)
        else:
            for proposal, decision in zip(proposals, decisions, strict=True):
                [accept] = await self._phase("accept", [decision])
                self._close(proposal, accept)

    def _close(self, proposal: Any, accept: bool | None) -> None:
        if accept is not None:
            self._simulation.complete_interaction(proposal, accepted=accept)

    async def _phase(self, kind: str, jobs: Sequence[Job]) -> list[Any]:
        if self._llm_agents is not None:
            self._llm_agents.kind = kind
        phase = await self._rounds.play(jobs)
        if self._on_phase is not None and phase.completions:
            self._on_phase(kind, phase.completions)
        return phase.results

    def _act(self, agent_id: str) -> Job:
        agent = self._simulation.agents[agent_id]

        async def act() -> tuple[Any, Turn | None]:
            observation = self._simulation.observe(agent_id)
            turn = self._turn(agent_id, observation)
            return await choose(observation), turn

        async def choose(observation: Any) -> Any:
            if agent.is_external and self._simulation.external_queue is not None:
                return await self._act_externally(agent_id, observation)
            if blocking:
                act_there = self._simulation.choose_blocking
                return await anyio.to_thread.run_sync(
                    act_there, agent, observation, limiter=self._threads
                )
            return await self._simulation.choose(agent, observation)

        blocking = compat.blocks_its_thread(agent)
        return Job(act, blocking)

    def _turn(self, agent_id: str, observation: Any) -> Turn | None:
        """Start the turn of an agent with a model, in the context that runs this."""
        if self._llm_agents is None or not self._llm_agents.decides(agent_id):
            return None
        return self.actions.begin(agent_id, observation)

    async def _act_externally(self, agent_id: str, observation: Any) -> Any:
        from swarm.agents.base import Action, ActionType

        sim = self._simulation
        sim.publish_observation(agent_id, dataclasses.asdict(observation))
        raw = await sim.external_queue.wait_for_action(agent_id)
        if raw is None:
            return Action(agent_id=agent_id, action_type=ActionType.NOOP)
        return sim.external_action(agent_id, raw)

    def _decide(self, proposal: Any) -> Job:
        from swarm.agents.base import InteractionProposal
        from swarm.models.interaction import InteractionType

        sim = self._simulation

        async def decide() -> bool | None:
            agent = sim.agents.get(proposal.counterparty_id)
            if agent is None or not sim.state.can_agent_act(proposal.counterparty_id):
                return None
            observation = sim.observe(proposal.counterparty_id)
            turn = self._turn(proposal.counterparty_id, observation)
            offer = InteractionProposal(
                proposal_id=proposal.proposal_id,
                initiator_id=proposal.initiator_id,
                counterparty_id=proposal.counterparty_id,
                interaction_type=InteractionType(proposal.interaction_type),
                content=proposal.content,
                offered_transfer=proposal.metadata.get("offered_transfer", 0),
            )
            if sim.is_async(agent):
                accepted = bool(await agent.accept_interaction_async(offer, observation))
            else:
                accepted = bool(agent.accept_interaction(offer, observation))
            if turn is not None:
                self.actions.decided(turn, accepted=accepted)
            return accepted

        return Job(decide)


def run_blocking(
    orchestrator: Any,
    mode: Mode,
    inference: Callable[[Simulation], Driver] | None = None,
) -> list[Any]:
    """Run an orchestrator to its end on an event loop of its own.

    Args:
        orchestrator: A `swarm.core.orchestrator.Orchestrator` that has not run.
        mode: `batch` or `serial`.
        inference: Makes the driver; None for a simulation without LLM agents.

    Returns:
        The metrics of each epoch.
    """
    simulation = Simulation(orchestrator)
    driver = inference(simulation) if inference else Driver(simulation, mode, Rounds(None))
    with asyncio.Runner(loop_factory=SimulationLoop) as runner:
        return runner.run(driver.run())
