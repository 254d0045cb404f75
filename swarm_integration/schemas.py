"""SWARM's answers as JSON schemas, one branch per action.

Which schema a prompt gets is told by the block of instructions that ends its
system prompt: upstream appends one of three. What an observation shows narrows
it to the actions that can take place and the ids that can be named. Strings are
bounded well under 2,000 characters, where llama.cpp's grammars refuse a
repetition. A schema goes to the server beside the prompt, never into it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

from scheduler.types import Message, OutputSchema
from swarm_integration.compat_layout import OWN_ROW_CHARS, WORDING, check_wording
from swarm_integration.layout import Scene, shared_first
from swarm_integration.shown import Names, Shown

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


def act_schema(shown: Shown | None = None) -> OutputSchema:
    """Return the schema of an action in the social economy.

    Args:
        shown: What the observation allows; None allows every action and any id.
    """
    return _schema("act", _act_branches, shown)


def kernel_schema(shown: Shown | None = None) -> OutputSchema:
    """Return the schema of an action where GPU kernels are submitted and checked.

    Args:
        shown: What the observation allows; None allows every action and any id.
    """
    return _schema("kernel", _kernel_branches, shown)


Ids = Callable[[str], dict[str, Any]]
"""Returns the schema of the id that an action names."""


def _act_branches(ids: Ids) -> dict[str, dict[str, Any]]:
    content = _string(CONTENT_CHARS, 1)
    return {
        "NOOP": _branch("NOOP"),
        "POST": _branch("POST", content=content),
        "REPLY": _branch("REPLY", post_id=ids("REPLY"), content=content),
        "VOTE": _branch("VOTE", post_id=ids("VOTE"), direction={"enum": [1, -1]}),
        "PROPOSE_INTERACTION": _branch(
            "PROPOSE_INTERACTION",
            counterparty_id=ids("PROPOSE_INTERACTION"),
            interaction_type={"enum": list(INTERACTION_TYPES)},
            content=content,
        ),
        "CLAIM_TASK": _branch("CLAIM_TASK", task_id=ids("CLAIM_TASK")),
        "SUBMIT_OUTPUT": _branch("SUBMIT_OUTPUT", task_id=ids("SUBMIT_OUTPUT"), content=content),
    }


def _kernel_branches(ids: Ids) -> dict[str, dict[str, Any]]:
    code = _string(CODE_CHARS, 1)
    return {
        "SUBMIT_KERNEL": _branch(
            "SUBMIT_KERNEL", challenge_id=ids("SUBMIT_KERNEL"), cuda_code=code
        ),
        "VERIFY_KERNEL": _branch("VERIFY_KERNEL", submission_id=ids("VERIFY_KERNEL")),
        "AUDIT_KERNEL": _branch("AUDIT_KERNEL", submission_id=ids("AUDIT_KERNEL")),
        "NOOP": _branch("NOOP"),
    }


def _schema(
    name: str, branches_of: Callable[[Ids], dict[str, dict[str, Any]]], shown: Shown | None
) -> OutputSchema:
    if shown is None:
        every = branches_of(lambda _: _string(ID_CHARS, 1))
        return OutputSchema(name, {"anyOf": list(every.values())})

    def allowed(of: Callable[[Names], dict[str, Any]]) -> dict[str, Any]:
        branches = branches_of(lambda action: of(shown.named_by(action) or Names()))
        return {"anyOf": [branch for action, branch in branches.items() if action in shown.actions]}

    return OutputSchema(name, allowed(_listed), allowed(_meant))


def _listed(names: Names) -> dict[str, Any]:
    return {"enum": names.listed}


def _meant(names: Names) -> dict[str, Any]:
    """What an answer may write that was not held to the list: one of it, with marks around.

    What it invents is asked again; which id it means is told when it is read.
    """
    one = "|".join(re.escape(listed) for listed in names.listed)
    end = "" if names.cut else r"(?!\w)"
    return {**_string(2 * ID_CHARS, 1), "pattern": rf"(?i)(?<!\w)({one}){end}"}


def accept_schema() -> OutputSchema:
    """Return the schema of a decision about a proposal."""
    fields = {"accept": {"type": "boolean"}, "reasoning": _string(REASONING_CHARS)}
    return OutputSchema("accept", _object(**fields))


def _narrowed(schema: OutputSchema, shown: Shown) -> OutputSchema:
    """Return the schema of that name for what `shown` allows."""
    makers = {"act": act_schema, "kernel": kernel_schema}
    return makers[schema.name](shown) if schema.name in makers else schema


def added_chars(layout: PromptLayout) -> int:
    """Return how many characters a layout adds to a prompt at most."""
    return OWN_ROW_CHARS if layout == "shared_first" else 0


class Instructions:
    """Upstream's three blocks of instructions, and what belongs to each.

    Args:
        layout: `shared_first` moves what all agents share to the front: the action
            format before the persona, and the world before the agent's own lines.
            Agents then share a long prompt prefix, which is read once. It changes
            the prompt.
        structured: Whether requests get a schema at all.
        full_ids: Whether a schema lists what the observation lets the agent do and
            name, and ids that a model wrote are mapped back to whole ones.

    Raises:
        CompatError: This SWARM words its prompts otherwise, so nothing can be moved.
    """

    def __init__(
        self,
        layout: PromptLayout = "upstream",
        *,
        structured: bool = True,
        full_ids: bool = True,
    ) -> None:
        from swarm.agents.llm_prompts import (
            ACCEPT_INTERACTION_SCHEMA,
            ACTION_SCHEMA,
            KERNEL_ACTION_SCHEMA,
        )

        if layout == "shared_first":
            check_wording()
        self.layout = layout
        self._structured = structured
        self.full_ids = full_ids
        self._schemas = (
            (ACTION_SCHEMA, act_schema()),
            (ACCEPT_INTERACTION_SCHEMA, accept_schema()),
            (KERNEL_ACTION_SCHEMA, kernel_schema()),
        )

    def schema_of(self, system_prompt: str, shown: Shown | None = None) -> OutputSchema | None:
        """Return the schema that the prompt's instructions ask for, or None.

        Args:
            system_prompt: Upstream's system prompt.
            shown: What the observation behind it allows; None allows everything.
        """
        if not self._structured:
            return None
        for block, schema in self._schemas:
            if system_prompt.endswith(block):
                return _narrowed(schema, shown) if shown and self.full_ids else schema
        return None

    @property
    def added_chars(self) -> int:
        """How many characters the layout adds to a prompt at most."""
        return added_chars(self.layout)

    def messages(
        self, system_prompt: str, user_prompt: str, scene: Scene | None = None
    ) -> tuple[Message, ...]:
        """Return the chat that is sent for upstream's pair of prompts.

        Args:
            system_prompt: Upstream's system prompt.
            user_prompt: Upstream's user prompt.
            scene: What the simulation's state says of the moment, for `shared_first`;
                without it what depends on it stays where it is.
        """
        if self.layout == "upstream":
            return (Message("system", system_prompt), Message("user", user_prompt))
        moved = shared_first(user_prompt, WORDING, scene or Scene())
        user = Message("user", user_prompt) if moved is None else Message("user", *moved)
        return (self._format_first(system_prompt), user)

    def _format_first(self, system_prompt: str) -> Message:
        for block, _ in self._schemas:
            if system_prompt.endswith(block):
                persona = system_prompt.removesuffix(block).strip()
                form = block.strip()
                return Message("system", f"{form}\n\n{persona}\n", len(form))
        return Message("system", system_prompt)
