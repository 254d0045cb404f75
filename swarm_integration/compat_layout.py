"""How SWARM words its prompts' sections, and what its state says beside one agent's prompt.

The wording is upstream's own and no interface, so it is tried at the start of a run that moves
sections about: prompts are built from an observation that holds something of everything, and
have to come apart as known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from swarm_integration.compat import swarm_version
from swarm_integration.errors import CompatError
from swarm_integration.layout import Scene, Wording, heading_of, split
from swarm_integration.shown import AGENTS_SHOWN

WORDING = Wording(
    order=(
        "## Current State",
        "## Rate Limits",
        "## Visible Posts (top 5)",
        "## Pending Proposals (interactions proposed to you)",
        "## Available Tasks",
        "## Your Active Tasks",
        "## Other Agents",
        "## Ecosystem Health",
        "## Available GPU Challenges",
        "## Your Pending Submissions",
        "## Submissions Available for Verification",
        "## Recent Memory",
        "## Interaction Proposal",
        "## History with this agent",
    ),
    closing=("## Your Turn", "## Your Decision"),
    opening="## Current State",
    own_id="- Your ID:",
    world=("## Visible Posts (top 5)", "## Available Tasks", "## Available GPU Challenges"),
    limits="## Rate Limits",
    agents="## Other Agents",
    ecosystem="## Ecosystem Health",
)
"""The headings of `agents/llm_prompts.py`."""

OWN_ROW_CHARS = 160
"""How much longer a prompt becomes at most: the agent's own row, and a heading once more."""


def scene_of(state: Any, agent_id: str, llm_agents: Iterable[str]) -> Scene:
    """Return what the state says now for the prompt of one agent.

    Args:
        state: SWARM's `EnvState`.
        agent_id: Whose prompt it is.
        llm_agents: The agents with a model; ids that the state does not know are left out.
    """
    from swarm.agents.base import Observation

    # One more than a prompt shows: the row that comes up where an agent's own is left out.
    active = state.get_active_agents()[: AGENTS_SHOWN + 1]
    rows = [
        {"agent_id": one.agent_id, "reputation": one.reputation, "resources": one.resources}
        for one in active
    ]
    others = [row for row in rows if row["agent_id"] != agent_id]
    whole, seen = (_agents_section(Observation(visible_agents=some)) for some in (rows, others))
    shown = set(whole.splitlines())
    beyond = [line for line in seen.splitlines() if line not in shown]
    return Scene(
        equal_limits=_equal_limits(state, llm_agents),
        ecosystem=_section(
            Observation(ecosystem_metrics=state.get_epoch_metrics_snapshot()), WORDING.ecosystem
        ),
        others=seen or None,
        everyone=whole,
        beyond="\n".join([WORDING.agents, *beyond]) if beyond else "",
    )


def _agents_section(observation: Any) -> str:
    return _section(observation, WORDING.agents) or ""


def _section(observation: Any, heading: str) -> str | None:
    """Return one section of an observation, in upstream's words."""
    from swarm.agents.llm_prompts import format_observation

    sections = split(f"{format_observation(observation)}\n\n{WORDING.closing[0]}", WORDING)
    return next((one for one in sections or () if heading_of(one) == heading), None)


def _equal_limits(state: Any, llm_agents: Iterable[str]) -> bool:
    from swarm.env.state import RateLimitState

    limits, fresh = state.rate_limits, RateLimitState()
    # Not `get_rate_limit_state`, which enters an agent that has none.
    counts = [state.rate_limit_states.get(one, fresh) for one in llm_agents if one in state.agents]
    may = {
        (
            count.can_post(limits),
            count.can_interact(limits),
            count.can_vote(limits),
            count.can_claim_task(limits),
        )
        for count in counts
    }
    return len(may) <= 1


def check_wording() -> None:
    """Check that upstream's prompts come apart as known.

    Raises:
        CompatError: They do not; the message says which.
    """
    for name, prompt, headings in _samples():
        sections = split(prompt, WORDING)
        found = [heading_of(section) for section in sections or ()]
        if sections is None or found != headings or f"\n{WORDING.own_id} " not in sections[0]:
            raise CompatError(
                f"swarm-safety {swarm_version()} words {name} otherwise than 1.9.0, so "
                "prompt_layout: shared_first can't tell what its agents share; set prompt_layout "
                "to upstream, or install that release: python -m pip install swarm-safety==1.9.0"
            )


def _samples() -> Iterable[tuple[str, str, list[str]]]:
    """Yield each kind of prompt with something in every section, and its headings."""
    from swarm.agents import llm_prompts
    from swarm.agents.base import Observation
    from swarm.agents.llm_config import PersonaType

    ids = {"post_id": "p", "task_id": "t", "submission_id": "s", "challenge_id": "c"}
    whom = {"agent_id": "a", "author_id": "a", "initiator_id": "a", "proposal_id": "p"}
    record = {**ids, **whom, "prompt": "x", "content": "x"}
    seen = Observation(
        visible_posts=[record],
        pending_proposals=[record],
        available_tasks=[record],
        active_tasks=[record],
        visible_agents=[record],
        ecosystem_metrics={"step": 0},
    )
    memory = [{"type": "interaction_outcome", "counterparty": "a"}]
    observed, kernel = WORDING.order[:8], WORDING.order[8:11]
    remembered, proposal, history = WORDING.order[11:]
    turn, decision = WORDING.closing
    persona = PersonaType.OPEN
    _, act = llm_prompts.build_action_prompt(persona, seen, None, memory)
    yield "the prompt for an action", act, [*observed, remembered, turn]
    _, accept = llm_prompts.build_accept_prompt(persona, record, seen, None, memory)
    yield "the prompt for a decision", accept, [*observed, proposal, history, decision]
    market = replace(
        seen,
        kernel_available_challenges=[record],
        kernel_pending_submissions=[record],
        kernel_submissions_to_verify=[record],
    )
    _, submit = llm_prompts.build_kernel_action_prompt(persona, market, None, memory)
    yield "the prompt for a kernel", submit, [*observed, *kernel, remembered, turn]
