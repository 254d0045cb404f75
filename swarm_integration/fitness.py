"""Whether the backends can serve a scenario, checked before its first step.

Prompts grow while a run goes on (posts, proposals, memories), so a slot must hold
the first prompt, the growth that upstream's prompt builder allows, and the answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from scheduler.backends.base import Backend, BackendInfo
from scheduler.types import Message
from swarm_integration.agents import Service
from swarm_integration.errors import FitnessError
from swarm_integration.scenario import Rehearsal
from swarm_integration.schemas import Instructions
from swarm_integration.services import Fleet

GROWTH_CHARS = 1500
"""How many characters a user prompt grows by at most in a usual run.

Upstream shows 5 posts of 50 characters with ids and votes (about 110 each), 5
memories (about 80) and one proposal of up to 280, beside what the first prompt has.
Measured over 388 prompts: from 935 to 1,960 characters.
"""

TOKENS_PER_CHAR = 0.5
"""Tokens a character before the model's own tokenizer can be asked: a high guess."""


def estimated_context(rehearsal: Rehearsal) -> int:
    """Return how many tokens a slot should hold, from lengths alone, in steps of 256."""
    longest = 0
    for prompts in rehearsal.prompts:
        chars = max(len(system) + len(user) for system, user in prompts.pairs)
        tokens = math.ceil((chars + GROWTH_CHARS) * TOKENS_PER_CHAR)
        answer = int(rehearsal.blocks[prompts.agent_id].agent.llm_config.max_tokens)
        longest = max(longest, tokens + answer)
    return max(2048, math.ceil(longest / 256) * 256)


async def check_fitness(
    rehearsal: Rehearsal,
    fleet: Fleet,
    instructions: Instructions,
    slots: int | Literal["auto"] = "auto",
) -> None:
    """Start every backend and check its slots, context and model.

    Args:
        rehearsal: The scenario's prompts.
        fleet: The backends, and whom they serve.
        instructions: How prompts are laid out.
        slots: How many slots each backend must have, as configured.

    Raises:
        FitnessError: What does not fit, and what to type.
    """
    for name, backend in fleet.backends.items():
        info = await backend.start()
        if slots != "auto" and slots > info.slots and not info.serial:
            raise FitnessError(
                f"scheduler.slots is {slots}, but {name} ({info.model}) has {info.slots}. "
                f"Lower it, or start the server with --parallel {slots}"
            )
        served = {key: one for key, one in fleet.services.items() if one.backend == name}
        # An endpoint of many models names none; a file in this process is named by its path.
        if fleet.names_must_match and info.model and info.kind != "llama_inproc":
            _check_model(name, info, served)
        if info.context_per_slot is not None:
            await _check_context(name, backend, info, served, rehearsal, instructions)


def _check_model(name: str, info: BackendInfo, served: Mapping[str, Service]) -> None:
    for agent_id, service in served.items():
        if not same_model(service.model, info.model):
            raise FitnessError(
                f"{agent_id} names the model {service.model!r}, but the server at {name} has "
                f"{info.model!r}. Write `model: {info.model}` into the scenario's llm block, or "
                "let the server answer whatever the agents name: "
                "--inference-config configs/llama_server.yaml"
            )


def same_model(wanted: str, served: str) -> bool:
    """Whether a server's model name is what a scenario names.

    Case, punctuation, folders and what a file name adds (quantization, `.gguf`)
    do not count: `llama-3.2-3b-instruct` is `Llama-3.2-3B-Instruct-Q4_K_M.gguf`.
    """

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower().rsplit("/", 1)[-1])

    return bool(plain(wanted)) and plain(served).startswith(plain(wanted))


async def _check_context(
    name: str,
    backend: Backend,
    info: BackendInfo,
    served: Mapping[str, Service],
    rehearsal: Rehearsal,
    instructions: Instructions,
) -> None:
    context = info.context_per_slot or 0
    needs: list[tuple[int, int, int, str]] = []
    for agent_id, messages in _longest(rehearsal, served, instructions):
        tokens = await backend.count_prompt_tokens(messages)
        if tokens is None:
            return
        chars = max(1, sum(len(message.content) for message in messages))
        growth = math.ceil(GROWTH_CHARS * tokens / chars)
        needed = tokens + growth + served[agent_id].sampling.max_tokens
        needs.append((needed, tokens, growth, agent_id))
    if not needs or max(needs)[0] <= context:
        return
    needed, tokens, growth, agent_id = max(needs)
    raise FitnessError(
        f"a slot of {name} holds {context} tokens, but {agent_id} needs {needed}: its "
        f"first prompt {tokens}, growth during the run {growth}, answer "
        f"{served[agent_id].sampling.max_tokens}. {_more_context(info, needed)}, or lower the "
        "agent's max_tokens"
    )


def _more_context(info: BackendInfo, needed: int) -> str:
    rounded = math.ceil(needed / 256) * 256
    if info.kind == "openai":
        return f"Give it a model with more and set backend.openai.context_per_slot to {rounded}"
    if info.kind == "llama_inproc":
        return f"Set n_ctx of the agent's llm block, or backend.context_per_slot, to {rounded}"
    if info.kind == "fake":
        return f"Set backend.fake.context_per_slot to {rounded}"
    return f"Start the server with --parallel {info.slots} --ctx-size {rounded * info.slots}"


def _longest(
    rehearsal: Rehearsal, served: Mapping[str, Service], instructions: Instructions
) -> Iterable[tuple[str, tuple[Message, ...]]]:
    """Yield the longest first prompt for each system prompt and answer length."""
    longest: dict[tuple[str, int], tuple[int, str, tuple[Message, ...]]] = {}
    for prompts in rehearsal.prompts:
        if prompts.agent_id not in served:
            continue
        for system, user in prompts.pairs:
            messages = instructions.messages(system, user)
            key = (system, served[prompts.agent_id].sampling.max_tokens)
            found = (len(user), prompts.agent_id, messages)
            if key not in longest or longest[key][0] < found[0]:
                longest[key] = found
    return [(agent_id, messages) for _, agent_id, messages in longest.values()]
