"""Whether the backends can serve a scenario, checked before its first step.

Prompts grow while a run goes on (posts, proposals, memories), so a slot must hold
the first prompt, the growth that upstream's prompt builder allows, and the answer.
A council's prompts quote its members' answers, each of which may be as long as that
member's `max_tokens`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from scheduler.backends.base import Backend, BackendInfo, how_to_get_slots
from scheduler.server_command import default_threads, physical_cores
from scheduler.types import Message
from swarm_integration.agents import Service
from swarm_integration.compat_prompts import Prompt
from swarm_integration.errors import FitnessError
from swarm_integration.scenario import Rehearsal
from swarm_integration.schemas import Instructions, PromptLayout, added_chars
from swarm_integration.services import Fleet

TOKENS_PER_CHAR = 0.5
"""Tokens a character before the model's own tokenizer can be asked: a high guess."""

TOKENS_PER_MORE_BYTE = 1.25
"""What each byte beyond a character's first adds: up to 3 tokens for one of Chinese."""


def estimated_context(rehearsal: Rehearsal, layout: PromptLayout = "upstream") -> int:
    """Return how many tokens a slot should hold, from lengths alone, in steps of 256."""
    added = added_chars(layout)
    longest = 0
    for prompt in rehearsal.prompts:
        text = prompt.system + prompt.user
        more = len(text.encode("utf-8", "replace")) - len(text)
        rate = TOKENS_PER_CHAR + TOKENS_PER_MORE_BYTE * more / max(1, len(text))
        tokens = math.ceil((len(text) + prompt.growth_chars + added) * rate)
        answers = _most_tokens(rehearsal, prompt.agent_id, *prompt.quotes)
        longest = max(longest, tokens + answers)
    return max(2048, math.ceil(longest / 256) * 256)


def _most_tokens(rehearsal: Rehearsal, *agent_ids: str) -> int:
    """Return how many tokens an answer of each of these agents takes together at most."""
    return sum(int(rehearsal.blocks[one].agent.llm_config.max_tokens) for one in agent_ids)


async def check_fitness(
    rehearsal: Rehearsal,
    fleet: Fleet,
    instructions: Instructions,
    slots: int | Literal["auto"] = "auto",
    *,
    managed: bool = False,
) -> None:
    """Start every backend and check its slots, context and model.

    Args:
        rehearsal: The scenario's prompts.
        fleet: The backends, and whom they serve.
        instructions: How prompts are laid out.
        slots: How many slots each backend must have, as configured.
        managed: Whether the server is the run's own.

    Raises:
        FitnessError: What does not fit, and what to type.
    """
    for name, backend in fleet.backends.items():
        info = await backend.start()
        if slots != "auto" and slots > info.slots and not info.serial:
            raise FitnessError(
                f"scheduler.slots is {slots}, but {name} ({info.model}) has {info.slots}. "
                f"Lower it, or {how_to_get_slots(info.kind, slots)}"
            )
        served = {key: one for key, one in fleet.services.items() if one.backend == name}
        # An endpoint of many models names none; a file in this process is named by its path.
        if fleet.names_must_match and info.model and info.kind != "llama_inproc":
            _check_model(name, info, served)
        if info.context_per_slot is not None:
            need = await _need(backend, served, rehearsal, instructions)
            if need is not None and need.total > info.context_per_slot:
                more = _more_context(info, need.total, managed=managed)
                where = "" if name == "default" else f" of {name}"
                raise FitnessError(
                    f"a slot{where} holds {info.context_per_slot} tokens, but {need}. "
                    f"{more}, or lower {need.lower}"
                )


def crowded(infos: Iterable[BackendInfo]) -> Iterator[str]:
    """Yield a note of each model in this process that has more threads than there are cores."""
    cores = physical_cores()
    for info in infos:
        threads = info.facts.get("n_threads", 0)
        if info.kind == "llama_inproc" and threads > cores:
            yield (
                f"note: {info.model} has {threads} threads on {cores} physical cores, where they "
                "wait for each other by spinning; the default, with other bits, is "
                f"{default_threads()}"
            )


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


async def _need(
    backend: Backend,
    served: Mapping[str, Service],
    rehearsal: Rehearsal,
    instructions: Instructions,
) -> _Need | None:
    """Return what the prompt that needs most needs; None where that can't be told."""
    most: _Need | None = None
    for prompt, messages in _longest(rehearsal, served, instructions):
        tokens = await backend.count_prompt_tokens(messages)
        if tokens is None:
            return None
        chars = max(1, sum(len(message.content) for message in messages))
        grown = prompt.growth_chars + instructions.added_chars
        need = _Need(
            prompt.agent_id,
            first=tokens,
            growth=math.ceil(grown * tokens / chars),
            quoted=_most_tokens(rehearsal, *prompt.quotes),
            answer=served[prompt.agent_id].sampling.max_tokens,
        )
        if most is None or need.total > most.total:
            most = need
    return most


@dataclass(frozen=True, slots=True)
class _Need:
    """How many tokens of context a prompt needs, and what for."""

    agent_id: str
    first: int
    growth: int
    quoted: int
    answer: int

    @property
    def total(self) -> int:
        return self.first + self.growth + self.quoted + self.answer

    @property
    def lower(self) -> str:
        """What to lower so that it needs less."""
        return "max_tokens of the council's members" if self.quoted else "the agent's max_tokens"

    def __str__(self) -> str:
        quoted = f", answers of others in it {self.quoted}" if self.quoted else ""
        return (
            f"{self.agent_id} needs {self.total}: its first prompt {self.first}{quoted}, "
            f"growth during the run {self.growth}, answer {self.answer}"
        )


def _more_context(info: BackendInfo, needed: int, *, managed: bool) -> str:
    rounded = math.ceil(needed / 256) * 256
    if managed:
        return f"Set backend.context_per_slot to {rounded}, or to auto"
    if info.kind == "openai":
        return f"Give it a model with more and set backend.openai.context_per_slot to {rounded}"
    if info.kind == "llama_inproc":
        return f"Set n_ctx of the agent's llm block, or backend.context_per_slot, to {rounded}"
    if info.kind == "fake":
        return f"Set backend.fake.context_per_slot to {rounded}"
    return (
        f"Start the server with --parallel {info.slots} --ctx-size {rounded * info.slots} "
        f"(swarm-inference serve: --context-per-slot {rounded})"
    )


def _longest(
    rehearsal: Rehearsal, served: Mapping[str, Service], instructions: Instructions
) -> Iterable[tuple[Prompt, tuple[Message, ...]]]:
    """Yield the longest first prompt of each kind: system prompt, quotes, answer's length."""
    longest: dict[tuple[str, tuple[str, ...], int], Prompt] = {}
    for prompt in rehearsal.prompts:
        if prompt.agent_id not in served:
            continue
        max_tokens = served[prompt.agent_id].sampling.max_tokens
        key = (prompt.system, tuple(sorted(prompt.quotes)), max_tokens)
        if key not in longest or len(longest[key].user) < len(prompt.user):
            longest[key] = prompt
    for prompt in longest.values():
        yield prompt, instructions.messages(prompt.system, prompt.user)
