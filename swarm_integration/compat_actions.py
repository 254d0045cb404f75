"""Why SWARM refuses an action, read from the state that its handlers look at.

`Orchestrator._execute_action` says only yes or no. The same conditions are asked
again here, after a no, in the order of the handlers (`core/feed_handler.py`,
`core/core_interaction_handler.py`, `core/task_handler.py`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from swarm_integration.compat import Simulation, require_names

_NAMES = ("_handler_registry", "feed", "governance_engine", "network", "task_pool")


class Obstacle(StrEnum):
    """What stands against an action."""

    RATE_LIMIT = "rate limit"
    NO_POST = "no such post"
    NO_TASK = "no such task"
    TASK_TAKEN = "the task is not open"
    NOT_OWN_TASK = "the task is not the agent's"
    REPUTATION = "reputation too low for the task"
    NO_AGENT = "no such agent"
    NO_LINK = "no link to that agent"
    GOVERNANCE = "blocked by governance"
    NO_HANDLER = "not part of this scenario"
    NOT_FOR_MODELS = "not an action of LLM agents"
    OTHER = "refused by SWARM"


PASSING = frozenset(
    {
        Obstacle.NO_POST,
        Obstacle.NO_TASK,
        Obstacle.TASK_TAKEN,
        Obstacle.NOT_OWN_TASK,
        Obstacle.REPUTATION,
        Obstacle.NO_AGENT,
        Obstacle.NO_LINK,
    }
)
"""What another agent's move can put in the way of an action that was possible before."""


class Rules:
    """What a simulation's handlers ask before they carry an action out.

    Raises:
        CompatError: This SWARM lacks a name that is needed.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._orchestrator = simulation.orchestrator
        require_names(self._orchestrator, _NAMES, "Orchestrator")

    def permits(self, agent_id: str, action: str) -> bool:
        """Whether governance lets an agent do the action of that name now."""
        from swarm.agents.base import ActionType

        engine = self._orchestrator.governance_engine
        value = ActionType[action].value
        return engine is None or bool(engine.is_action_allowed(agent_id, value))

    def names_nobody(self, action: Any) -> bool:
        """Whether it is a proposal to an agent that does not exist.

        Upstream takes it, and nobody can ever answer it.
        """
        proposal = action.action_type.name == "PROPOSE_INTERACTION"
        return proposal and action.counterparty_id not in self._orchestrator.state.agents

    def obstacle(self, action: Any) -> Obstacle:
        """Return what stands against an action that was refused."""
        name = action.action_type.name
        if self._orchestrator._handler_registry.get_handler(action.action_type) is None:
            return Obstacle.NO_HANDLER
        if not self.permits(action.agent_id, name):
            return Obstacle.GOVERNANCE
        if self._limited(action.agent_id, name):
            return Obstacle.RATE_LIMIT
        if name in ("REPLY", "VOTE"):
            return self._post(action)
        if name == "PROPOSE_INTERACTION":
            return self._counterparty(action)
        if name == "CLAIM_TASK":
            return self._open_task(action)
        if name == "SUBMIT_OUTPUT":
            return self._own_task(action)
        return Obstacle.OTHER

    def _limited(self, agent_id: str, name: str) -> bool:
        state = self._orchestrator.state
        used, limits = state.get_rate_limit_state(agent_id), state.rate_limits
        if name in ("POST", "REPLY"):
            return not used.can_post(limits)
        if name == "VOTE":
            return not used.can_vote(limits)
        return name == "PROPOSE_INTERACTION" and not used.can_interact(limits)

    def _post(self, action: Any) -> Obstacle:
        found = self._orchestrator.feed.get_post(_key(action.target_id))
        return Obstacle.NO_POST if found is None else Obstacle.OTHER

    def _counterparty(self, action: Any) -> Obstacle:
        if self.names_nobody(action):
            return Obstacle.NO_AGENT
        network = self._orchestrator.network
        linked = network is None or network.has_edge(action.agent_id, action.counterparty_id)
        return Obstacle.OTHER if linked else Obstacle.NO_LINK

    def _open_task(self, action: Any) -> Obstacle:
        task = self._orchestrator.task_pool.get_task(_key(action.target_id))
        if task is None:
            return Obstacle.NO_TASK
        if not task.is_available(self._orchestrator.state.current_epoch):
            return Obstacle.TASK_TAKEN
        agent = self._orchestrator.state.get_agent(action.agent_id)
        short = agent is not None and agent.reputation < task.min_reputation
        return Obstacle.REPUTATION if short else Obstacle.OTHER

    def _own_task(self, action: Any) -> Obstacle:
        task = self._orchestrator.task_pool.get_task(_key(action.target_id))
        if task is None:
            return Obstacle.NO_TASK
        return Obstacle.OTHER if task.claimed_by == action.agent_id else Obstacle.NOT_OWN_TASK


def _key(target: object) -> object:
    # A model may write a list where an id belongs; it is looked up and never found.
    return target if isinstance(target, str) else str(target)
