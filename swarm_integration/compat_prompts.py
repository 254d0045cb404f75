"""What SWARM's LLM agents ask at the start of a run, without a model.

An agent of the type `llm` has its prompts built by upstream's public functions. A
council deliberates once with members that only write down what they are asked: its
later prompts quote the members' answers, and which ones is seen, not assumed. A
planner of AWM tasks gets a task as the first epoch would bring it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from swarm_integration.compat import llm_agents_of, replaced, require_names

ACT_GROWTH_CHARS = 1500
"""How many characters a user prompt of an LLM agent grows by at most in a usual run.

Upstream shows 5 posts of 50 characters with ids and votes (about 110 each), 5
memories (about 80) and one proposal of up to 280, beside what the first prompt has.
Measured over 388 prompts: from 935 to 1,960 characters.
"""

COUNCIL_GROWTH_CHARS = 400
"""The same for a council: three counters, and a proposal's text of up to 280."""

LIVE_TOOLS_CHARS = 1500
"""What an AWM server's own tools may add to a plan's prompt: a guess, since it is not up yet."""

_ANSWER_OF = re.compile("\x02([^\x03]*)\x03")
"""The stand-in for an LLM agent's answer; its id stands between the marks."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of an LLM agent.

    Attributes:
        agent_id: The LLM agent that answers it.
        system: The system prompt.
        user: The user prompt, without the answers that it quotes.
        growth_chars: How much longer the user prompt may become during the run, in characters.
        quotes: The LLM agents whose answers stand in it as well.
    """

    agent_id: str
    system: str
    user: str
    growth_chars: int
    quotes: tuple[str, ...] = ()


def first_prompts(agent: Any, orchestrator: Any, observation: Any) -> list[Prompt]:
    """Return the prompts that an agent starts with, longest form of each kind.

    Args:
        agent: Any agent of SWARM; one that is thrown away afterwards.
        orchestrator: The orchestrator that it is registered with.
        observation: What it sees first.

    Raises:
        CompatError: This SWARM lacks a name that is needed.
    """
    from swarm.agents.awm_agent import AWMAgent
    from swarm.agents.council_agent import CouncilAgent
    from swarm.agents.llm_agent import LLMAgent

    if isinstance(agent, LLMAgent):
        return _act_and_accept(agent, observation)
    if isinstance(agent, CouncilAgent):
        return _deliberation(agent, observation)
    if isinstance(agent, AWMAgent):
        return _plan(agent, orchestrator, observation)
    return []


def _act_and_accept(agent: Any, observation: Any) -> list[Prompt]:
    from swarm.agents import llm_prompts

    config = agent.llm_config
    if observation.kernel_available_challenges:
        build = llm_prompts.build_kernel_action_prompt
    else:
        build = llm_prompts.build_action_prompt
    act = build(config.persona, observation, config.system_prompt, [])
    offer = {"proposal_id": "0" * 36, "initiator_id": agent.agent_id, "content": ""}
    accept = llm_prompts.build_accept_prompt(
        config.persona, offer, observation, config.system_prompt, []
    )
    return [
        Prompt(agent.agent_id, system, user, ACT_GROWTH_CHARS) for system, user in (act, accept)
    ]


def _deliberation(agent: Any, observation: Any) -> list[Prompt]:
    from swarm.agents.base import InteractionProposal

    asked: list[Prompt] = []
    proposal = InteractionProposal(initiator_id=agent.agent_id)

    async def deliberate() -> None:
        await agent.act_async(observation)
        await agent.accept_interaction_async(proposal, observation)

    with ExitStack() as stack:
        for member in llm_agents_of(agent):
            note = _noting(member.agent_id, asked)
            stack.enter_context(replaced(member, "_call_llm_async", note))
        # A thread of its own, since the caller may be inside an event loop.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, deliberate()).result()
    return asked


def _noting(
    agent_id: str, asked: list[Prompt]
) -> Callable[[str, str], Awaitable[tuple[str, int, int]]]:
    async def call(system_prompt: str, user_prompt: str) -> tuple[str, int, int]:
        quotes = tuple(_ANSWER_OF.findall(user_prompt))
        user = _ANSWER_OF.sub("", user_prompt)
        asked.append(Prompt(agent_id, system_prompt, user, COUNCIL_GROWTH_CHARS, quotes))
        return f"\x02{agent_id}\x03", 0, 0

    return call


def _plan(agent: Any, orchestrator: Any, observation: Any) -> list[Prompt]:
    require_names(orchestrator, ("_awm_handler",), "Orchestrator")
    require_names(agent, ("_build_awm_tool_prompt",), "AWMAgent")
    handler = orchestrator._awm_handler
    if handler is None:
        return []  # without tasks it asks nothing
    require_names(handler, ("_generate_tasks", "config"), "AWMHandler")
    tasks = handler._generate_tasks()
    if not tasks:
        return []
    task = max(tasks, key=lambda one: len(str(one)))
    seen = replace(observation, awm_task=task, awm_available_tools=task.get("tools", []))
    system, user = agent._build_awm_tool_prompt(seen)
    growth = LIVE_TOOLS_CHARS if handler.config.live_mode else 0
    return [Prompt(delegate.agent_id, system, user, growth) for delegate in llm_agents_of(agent)]
