"""Requests for tests, and the text that two equal runs must have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from scheduler.canonical import canonical_json
from scheduler.types import (
    Answer,
    Completion,
    FinishReason,
    Message,
    Outcome,
    OutputSchema,
    Request,
)

SCHEMA = OutputSchema(
    "move",
    {
        "type": "object",
        "properties": {"action": {"enum": ["trade", "wait"]}, "price": {"type": "integer"}},
        "required": ["action", "price"],
        "additionalProperties": False,
    },
)


def question(agent: str | int = 0, *, system: str = "You trade.", **fields: Any) -> Request:
    """Return a request of `agent` whose prompt names it."""
    name = agent if isinstance(agent, str) else f"agent-{agent:03d}"
    messages = (Message("system", system), Message("user", f"I am {name}. What now?"))
    return Request(name, messages, **fields)


def questions(count: int, *, systems: int = 1, **fields: Any) -> list[Request]:
    """Return requests of `count` agents that share `systems` different system messages."""
    return [question(i, system=f"You are of kind {i % systems}.", **fields) for i in range(count)]


def names(completions: Iterable[Completion]) -> list[str]:
    return [completion.request.agent_id for completion in completions]


def names_of(count: int) -> list[str]:
    """Return the names that `questions` gives."""
    return [f"agent-{i:03d}" for i in range(count)]


def transcript(completions: Iterable[Completion]) -> bytes:
    """Return what does not depend on time, slot or attempt, one line per answer."""
    lines = [
        canonical_json(
            [
                completion.request.agent_id,
                completion.request.kind,
                answer.seed,
                completion.request.prompt_sha256,
                answer.text,
                answer.outcome.value,
                completion.error is not None,
            ]
        )
        for completion in completions
        for answer in completion.answers or (_NO_ANSWER,)
    ]
    return "\n".join(lines).encode()


_NO_ANSWER = Answer("", Outcome.FAILED, FinishReason.OTHER, seed=-1)
