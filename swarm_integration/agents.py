"""Which agents' model calls go through the scheduler, and how.

Every call of SWARM's LLM agents ends in one pair of methods, `_call_llm_async`
and `_call_llm_sync`; for the time of a run each agent gets its own pair that
asks in a round instead. Prompt audit, usage statistics, parsing and memory stay
upstream's. A council's time limit per member is lifted, because it would count
the wait for a slot; it becomes the deadline of each attempt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from scheduler.backends.chat_answer import encodable
from scheduler.types import Completion, Message, Outcome, Request, Sampling
from swarm_integration import compat
from swarm_integration.choices import current_turn
from swarm_integration.compat_layout import scene_of
from swarm_integration.errors import InvalidAnswer
from swarm_integration.listening import listening
from swarm_integration.rounds import RequestMaker, Rounds
from swarm_integration.schemas import Instructions

_NO_LIMIT_S = 1e9
_LOCAL_PROVIDERS = frozenset({"llama_cpp", "ollama"})


@dataclass(frozen=True, slots=True)
class Service:
    """Who answers an LLM agent, and with which parameters.

    Attributes:
        backend: The backend's name in the scheduler.
        model: The model name sent to it.
        base_seed: From which its requests' seeds are derived.
        sampling: How tokens are drawn.
        timeout_s: Deadline of one attempt in seconds.
        max_retries: How many more attempts may follow a failed one.
    """

    backend: str
    model: str
    base_seed: int
    sampling: Sampling
    timeout_s: float
    max_retries: int


class LlmAgents:
    """The LLM agents of one simulation, connected to the scheduler's rounds.

    Args:
        services: Who answers each LLM agent, by its id.
        rounds: Where questions are asked.
        state: SWARM's state, for the current epoch and step.
        instructions: What upstream's prompts ask for, and how they are laid out.
    """

    def __init__(
        self,
        services: Mapping[str, Service],
        rounds: Rounds,
        state: Any,
        instructions: Instructions,
    ) -> None:
        self._services = services
        self._rounds = rounds
        self._state = state
        self._instructions = instructions
        self._owners: set[str] = set()
        self.kind = "act"
        self._laid_out: Counter[str] = Counter()

    @property
    def full_ids(self) -> bool:
        """Whether ids that a model wrote are mapped back to whole ones."""
        return self._instructions.full_ids

    @property
    def prompts(self) -> dict[str, Any]:
        """The layout, and how many user prompts it was for: councils' have no sections."""
        counts = dict(sorted(self._laid_out.items()))
        return {"layout": self._instructions.layout, "laid_out": counts}

    def decides(self, agent_id: str) -> bool:
        """Whether an agent has a model that is connected."""
        return agent_id in self._owners

    @contextmanager
    def connected(self, agents: Mapping[str, Any]) -> Iterator[None]:
        """Lead the agents' model calls through the rounds, for the time of the block."""
        with ExitStack() as stack:
            for agent in agents.values():
                for llm_agent in compat.llm_agents_of(agent):
                    self._connect(llm_agent, stack)
                    self._owners.add(agent.agent_id)
                council = compat.council_of(agent)
                if council is not None:
                    stack.enter_context(compat.replaced(council, "timeout_per_member", _NO_LIMIT_S))
                stack.enter_context(listening(agent))
            yield

    def _connect(self, agent: Any, stack: ExitStack) -> None:
        async def call(system_prompt: str, user_prompt: str) -> tuple[str, int, int]:
            make = self._maker(agent, system_prompt, user_prompt)
            return _settle(agent, await self._rounds.ask(agent.agent_id, self.kind, make))

        def call_blocking(system_prompt: str, user_prompt: str) -> tuple[str, int, int]:
            make = self._maker(agent, system_prompt, user_prompt)
            return _settle(agent, self._rounds.ask_blocking(agent.agent_id, self.kind, make))

        stack.enter_context(compat.replaced(agent, "_call_llm_async", call))
        stack.enter_context(compat.replaced(agent, "_call_llm_sync", call_blocking))

    def _maker(self, agent: Any, system_prompt: str, user_prompt: str) -> RequestMaker:
        """Return what makes the request; an error in it, too, is for the rounds to raise.

        Raised here it would end in upstream's agent, which takes any error for a failed call.
        """
        try:
            return self._made(agent, encodable(system_prompt), encodable(user_prompt))
        except Exception as exc:  # noqa: BLE001 - whatever it is
            return partial(_raise, exc)

    def _made(self, agent: Any, system_prompt: str, user_prompt: str) -> RequestMaker:
        service = self._services[agent.agent_id]
        turn = current_turn.get()
        shown = None if turn is None else turn.shown
        if turn is not None:
            turn.asked += 1
        epoch, step, kind = self._state.current_epoch, self._state.current_step, self.kind
        messages = self._messages(agent.agent_id, system_prompt, user_prompt)

        def make(ordinal: int) -> Request:
            return Request(
                agent_id=agent.agent_id,
                messages=messages,
                epoch=epoch,
                step=step,
                kind=kind,
                ordinal=ordinal,
                sampling=service.sampling,
                base_seed=service.base_seed,
                schema=self._instructions.schema_of(system_prompt, shown),
                backend=service.backend,
                model=service.model,
                timeout_s=service.timeout_s,
                max_retries=service.max_retries,
            )

        return make

    def _messages(self, agent_id: str, system_prompt: str, user_prompt: str) -> tuple[Message, ...]:
        """Lay a prompt out, from what the state is now."""
        if self._instructions.layout == "upstream":
            return self._instructions.messages(system_prompt, user_prompt)
        scene = scene_of(self._state, agent_id, self._services)
        messages = self._instructions.messages(system_prompt, user_prompt, scene)
        moved = any(message.role == "user" and message.shared_chars for message in messages)
        self._laid_out["shared_first" if moved else "upstream"] += 1
        return messages


def _raise(exc: Exception, _ordinal: int) -> NoReturn:
    raise exc


def _settle(agent: Any, completion: Completion) -> tuple[str, int, int]:
    """Record a completion in the agent's usage statistics and return its text.

    Raises:
        RequestFailed: There is no answer; upstream's agents turn that into a NOOP.
        InvalidAnswer: No answer held the schema; the same.
    """
    prompt_tokens = sum(answer.usage.prompt_tokens for answer in completion.answers)
    completion_tokens = sum(answer.usage.completion_tokens for answer in completion.answers)
    failed = not completion.ok
    if failed or agent.llm_config.cost_tracking:
        # Upstream prices a call by its model's name; a local model costs nothing, whatever it is.
        local = agent.llm_config.provider.value in _LOCAL_PROVIDERS
        agent.usage_stats.record_usage(
            model="" if local else agent.llm_config.model,
            input_tokens=prompt_tokens,
            output_tokens=completion_tokens,
            retries=max(0, completion.attempts - max(1, len(completion.answers))),
            failed=failed,
        )
    if completion.error is not None:
        raise completion.error
    last = completion.answers[-1]
    if last.outcome is Outcome.INVALID:
        raise InvalidAnswer(
            f"{completion.request.label}: {len(completion.answers)} answers broke the schema "
            f"{completion.request.schema.name if completion.request.schema else ''!r} "
            f"({last.violation})",
            completion.attempts,
        )
    return last.text, prompt_tokens, completion_tokens
