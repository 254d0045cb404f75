"""Every private name of SWARM that this project leans on, behind plain methods.

SWARM's version number does not tell which names it has (the head of its
repository carries the number of a release that differs), so names are looked
for at the start of a run and what is missing is reported with the version.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from swarm_integration.errors import CompatError

_ORCHESTRATOR_NAMES = (
    "_agents",
    "_complete_interaction",
    "_compute_epoch_metrics",
    "_contract_mw",
    "_emit_event",
    "_epoch_metrics",
    "_execute_action",
    "_external_action_queue",
    "_external_observations",
    "_graph_memory",
    "_initialize_network",
    "_is_llm_agent",
    "_letta_lifecycle",
    "_make_context",
    "_obs_builder",
    "_on_epoch_end",
    "_parse_external_action",
    "_perturbation_engine",
    "_pipeline",
    "_scheduler",
    "_select_action",
    "_select_action_async",
)
_LLM_AGENT_NAMES = (
    "_action_dict_to_action",
    "_audit_llm_exchange",
    "_call_llm_async",
    "_call_llm_sync",
    "_parse_action_response",
)
_COMMAND_NAMES = ("main", "cmd_run")


def swarm_version() -> str:
    """Return the installed `swarm-safety` version.

    Raises:
        CompatError: It is not installed.
    """
    try:
        return version("swarm-safety")
    except PackageNotFoundError as exc:
        raise CompatError(
            "SWARM is not installed. Install it with: "
            'python -m pip install "swarm-inference-scheduler[swarm]"'
        ) from exc


def require_names(owner: Any, names: Sequence[str], what: str) -> None:
    """Check that `owner` has all `names`.

    Raises:
        CompatError: It lacks some; the message says which.
    """
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise CompatError(
            f"swarm-safety {swarm_version()} has no {', '.join(missing)} on {what}; this release "
            "was written against 1.9.0. Install that one: python -m pip install swarm-safety==1.9.0"
        )


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let `value` stand for `owner`'s attribute `name` for the time of the block."""
    own = vars(owner)
    had, before = name in own, own.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


class Simulation:
    """One orchestrator, with the private parts that the driver needs made public.

    Args:
        orchestrator: A `swarm.core.orchestrator.Orchestrator` that has not run.

    Raises:
        CompatError: This SWARM lacks a name that is needed.
    """

    def __init__(self, orchestrator: Any) -> None:
        require_names(orchestrator, _ORCHESTRATOR_NAMES, "Orchestrator")
        self._orchestrator = orchestrator

    @property
    def orchestrator(self) -> Any:
        """Upstream's orchestrator itself, for the other compat modules."""
        return self._orchestrator

    @property
    def config(self) -> Any:
        """The `OrchestratorConfig`."""
        return self._orchestrator.config

    @property
    def state(self) -> Any:
        """The `EnvState`."""
        return self._orchestrator.state

    @property
    def agents(self) -> dict[str, Any]:
        """The agents by id, in order of registration; spawned ones join later."""
        agents: dict[str, Any] = self._orchestrator._agents
        return agents

    @property
    def epoch_metrics(self) -> list[Any]:
        """The metrics of the epochs that have ended."""
        metrics: list[Any] = self._orchestrator._epoch_metrics
        return metrics

    @property
    def pipeline(self) -> Any:
        """The middleware pipeline with its epoch and step hooks."""
        return self._orchestrator._pipeline

    @property
    def epoch_callbacks(self) -> list[Callable[[Any], None]]:
        """What was registered with `on_epoch_end`."""
        callbacks: list[Callable[[Any], None]] = self._orchestrator._on_epoch_end
        return callbacks

    @property
    def graph_memory(self) -> Any:
        """The store of memories across runs, or None."""
        return self._orchestrator._graph_memory

    @property
    def letta_lifecycle(self) -> Any:
        """The Letta server's lifecycle, or None."""
        return self._orchestrator._letta_lifecycle

    @property
    def external_queue(self) -> Any:
        """The queue of actions chosen outside the process, or None."""
        return self._orchestrator._external_action_queue

    def initialize_network(self) -> None:
        """Connect the registered agents."""
        self._orchestrator._initialize_network()

    def emit(self, event: Any) -> None:
        """Send an event to the log and its subscribers."""
        self._orchestrator._emit_event(event)

    def context(self) -> Any:
        """Return the middleware context of the current state."""
        return self._orchestrator._make_context()

    def eligible(self) -> list[str]:
        """Return the agents that act in this step, in order; draws random numbers."""
        engine = self._orchestrator._perturbation_engine
        dropped = engine.get_dropped_agents() if engine is not None else set()
        agents: list[str] = self._orchestrator._scheduler.get_eligible(
            self.agents,
            self.state,
            governance_engine=self._orchestrator.governance_engine,
            dropped_agents=dropped,
        )
        return agents

    def observe(self, agent_id: str) -> Any:
        """Build an agent's observation; draws random numbers, so once per use."""
        return self._orchestrator._obs_builder.build(agent_id)

    def publish_observation(self, agent_id: str, observation: dict[str, Any]) -> None:
        """Show an observation to the process that chooses for an external agent."""
        self._orchestrator._external_observations[agent_id] = observation

    def external_action(self, agent_id: str, raw: dict[str, Any]) -> Any:
        """Turn what an external process chose into an action."""
        return self._orchestrator._parse_external_action(agent_id, raw)

    def is_async(self, agent: Any) -> bool:
        """Whether an agent decides in coroutines."""
        return bool(self._orchestrator._is_llm_agent(agent))

    async def choose(self, agent: Any, observation: Any) -> Any:
        """Let an agent choose, with governance's ensembles and resampling."""
        return await self._orchestrator._select_action_async(agent, observation)

    def choose_blocking(self, agent: Any, observation: Any) -> Any:
        """Let an agent without coroutines choose; may block its thread."""
        return self._orchestrator._select_action(agent, observation)

    def execute(self, action: Any) -> bool:
        """Carry an action out; return whether it took place."""
        return bool(self._orchestrator._execute_action(action))

    def complete_interaction(self, proposal: Any, *, accepted: bool) -> None:
        """Close a proposal and pay out."""
        self.state.remove_proposal(proposal.proposal_id)
        self._orchestrator._complete_interaction(proposal, accepted=accepted)

    def end_epoch(self) -> Any:
        """Return the epoch's metrics, as upstream computes them."""
        orchestrator = self._orchestrator
        if orchestrator._contract_mw is not None:
            orchestrator._last_contract_metrics = orchestrator._contract_mw.last_metrics
        return orchestrator._compute_epoch_metrics()


def llm_agents_of(agent: Any) -> list[Any]:
    """Return the LLM agents inside `agent`: itself, a council's members, a delegate.

    Raises:
        CompatError: This SWARM lacks a name that is needed.
    """
    from swarm.agents.awm_agent import AWMAgent
    from swarm.agents.council_agent import CouncilAgent
    from swarm.agents.llm_agent import LLMAgent

    found: list[Any] = []
    if isinstance(agent, LLMAgent):
        found = [agent]
    elif isinstance(agent, CouncilAgent):
        names = (
            "_member_agents",
            "_parse_synthesis_to_action",
            "_parse_accept_decision",
            "council_config",
        )
        require_names(agent, names, "CouncilAgent")
        found = list(agent._member_agents.values())
    elif isinstance(agent, AWMAgent):
        require_names(agent, ("_llm_enabled", "_init_llm"), "AWMAgent")
        delegate = agent._init_llm() if agent._llm_enabled else None
        found = [] if delegate is None else [delegate]
    for llm_agent in found:
        require_names(llm_agent, _LLM_AGENT_NAMES, "LLMAgent")
    return found


def blocks_its_thread(agent: Any) -> bool:
    """Whether an agent's `act` waits for a model without being a coroutine."""
    from swarm.agents.awm_agent import AWMAgent

    return isinstance(agent, AWMAgent) and bool(agent._llm_enabled)


def council_of(agent: Any) -> Any:
    """Return the council configuration of a council agent, else None."""
    from swarm.agents.council_agent import CouncilAgent

    return agent.council_config if isinstance(agent, CouncilAgent) else None


@contextmanager
def upstream_command(
    *,
    run: Callable[[Any, Callable[[Any], int]], int],
    build: Callable[[Any, Callable[[Any], Any]], Any],
) -> Iterator[Callable[[list[str]], int]]:
    """Upstream's command line with its `run` wrapped, for the time of the block.

    Upstream's `main()` takes no arguments and has no plug-in mechanism, so two
    names of its modules stand for ours meanwhile and are put back afterwards.

    Args:
        run: Called in place of `cmd_run` with its parsed arguments and `cmd_run`.
        build: Called in place of `build_orchestrator` with the scenario and it.

    Yields:
        A function that runs upstream's `main()` on a list of arguments.
    """
    swarm_version()
    import swarm.__main__ as command
    from swarm.scenarios import loader

    require_names(command, _COMMAND_NAMES, "swarm.__main__")
    require_names(loader, ("build_orchestrator", "load_scenario"), "swarm.scenarios.loader")
    cmd_run, build_orchestrator = command.cmd_run, loader.build_orchestrator

    def main(arguments: list[str]) -> int:
        with replaced(sys, "argv", ["swarm", *arguments]):
            return int(command.main())

    with (
        replaced(command, "cmd_run", lambda args: run(args, cmd_run)),
        replaced(
            loader, "build_orchestrator", lambda scenario: build(scenario, build_orchestrator)
        ),
    ):
        yield main


def upstream_main() -> int:
    """Run upstream's command line as it is, on `sys.argv`.

    Raises:
        CompatError: SWARM is not installed.
    """
    swarm_version()
    from swarm.__main__ import main

    return int(main())
