"""SWARM's answers as JSON schemas, one branch per action.

Which schema a prompt gets is told by the block of instructions that ends its
system prompt: upstream appends one of three. Strings are bounded well under
2,000 characters, where llama.cpp's grammars refuse a repetition. A schema goes
to the server beside the prompt and is never written into it.
"""

from __future__ import annotations

from typing import Any, Literal

from scheduler.types import Message, OutputSchema

PromptLayout = Literal["upstream", "shared_first"]

REASONING_CHARS = 200
CONTENT_CHARS = 280
CODE_CHARS = 1500
ID_CHARS = 64

INTERACTION_TYPES = ("collaboration", "delegation", "verification", "reply")
"""The interaction types that upstream's instructions name."""


def _string(longest: int, shortest: int = 0) -> dict[str, Any]:
    return {"type": "string", "minLength": shortest, "maxLength": longest}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _branch(action: str, **params: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "action_type": {"const": action},
        "reasoning": _string(REASONING_CHARS),
    }
    if params:
        fields["params"] = _object(**params)
    return _object(**fields)


def act_schema() -> OutputSchema:
    """Return the schema of an action in the social economy."""
    identifier, content = _string(ID_CHARS, 1), _string(CONTENT_CHARS, 1)
    branches = [
        _branch("NOOP"),
        _branch("POST", content=content),
        _branch("REPLY", post_id=identifier, content=content),
        _branch("VOTE", post_id=identifier, direction={"enum": [1, -1]}),
        _branch(
            "PROPOSE_INTERACTION",
            counterparty_id=identifier,
            interaction_type={"enum": list(INTERACTION_TYPES)},
            content=content,
        ),
        _branch("CLAIM_TASK", task_id=identifier),
        _branch("SUBMIT_OUTPUT", task_id=identifier, content=content),
    ]
    return OutputSchema("act", {"anyOf": branches})


def kernel_schema() -> OutputSchema:
    """Return the schema of an action where GPU kernels are submitted and checked."""
    identifier = _string(ID_CHARS, 1)
    branches = [
        _branch("SUBMIT_KERNEL", challenge_id=identifier, cuda_code=_string(CODE_CHARS, 1)),
        _branch("VERIFY_KERNEL", submission_id=identifier),
        _branch("AUDIT_KERNEL", submission_id=identifier),
        _branch("NOOP"),
    ]
    return OutputSchema("kernel", {"anyOf": branches})


def accept_schema() -> OutputSchema:
    """Return the schema of a decision about a proposal."""
    fields = {"accept": {"type": "boolean"}, "reasoning": _string(REASONING_CHARS)}
    return OutputSchema("accept", _object(**fields))


class Instructions:
    """Upstream's three blocks of instructions, and what belongs to each.

    Args:
        layout: `shared_first` moves the instructions, which all agents share,
            before the persona: agents of different personas then share a long
            prompt prefix, which a slot reads once. It changes the prompt.
        structured: Whether requests get a schema at all.
    """

    def __init__(self, layout: PromptLayout = "upstream", *, structured: bool = True) -> None:
        from swarm.agents.llm_prompts import (
            ACCEPT_INTERACTION_SCHEMA,
            ACTION_SCHEMA,
            KERNEL_ACTION_SCHEMA,
        )

        self._layout = layout
        self._structured = structured
        self._schemas = (
            (ACTION_SCHEMA, act_schema()),
            (ACCEPT_INTERACTION_SCHEMA, accept_schema()),
            (KERNEL_ACTION_SCHEMA, kernel_schema()),
        )

    def schema_of(self, system_prompt: str) -> OutputSchema | None:
        """Return the schema that the prompt's instructions ask for, or None."""
        if not self._structured:
            return None
        for block, schema in self._schemas:
            if system_prompt.endswith(block):
                return schema
        return None

    def messages(self, system_prompt: str, user_prompt: str) -> tuple[Message, ...]:
        """Return the chat that is sent for upstream's pair of prompts."""
        if self._layout == "shared_first":
            system_prompt = self._shared_first(system_prompt)
        return (Message("system", system_prompt), Message("user", user_prompt))

    def _shared_first(self, system_prompt: str) -> str:
        for block, _ in self._schemas:
            if system_prompt.endswith(block):
                persona = system_prompt.removesuffix(block).strip()
                return f"{block.strip()}\n\n{persona}\n"
        return system_prompt
