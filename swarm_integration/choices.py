"""What the LLM agents choose, read where upstream makes actions of their answers.

A turn is one decision of one agent: what its observation allows, and what came of
its answers. It travels in a context variable, because upstream's own code lies
between the driver, which has the observation, and the calls that need it.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from swarm_integration.shown import Names, Shown

UNKNOWN_ACTION = "(unknown)"
"""How an action that SWARM does not have is counted; its name is the model's."""


class Id(StrEnum):
    """What became of an id that a model wrote."""

    WHOLE = "whole"
    """It was a whole id of the observation."""
    MAPPED = "mapped"
    """It was put in the place of what the prompt shows for it."""
    AMBIGUOUS = "ambiguous"
    """It may stand for several; left as it was."""
    UNKNOWN = "unknown"
    """It stands for nothing that the observation holds; left as it was."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An answer that became an action.

    Attributes:
        name: The action that the answer names, or `UNKNOWN_ACTION`.
        action: What upstream made of it, with whole ids.
        allowed: Whether the observation lets the agent do exactly this.
        ids: What became of the ids in it; nothing when they are not mapped.
    """

    name: str
    action: Any
    allowed: bool
    ids: tuple[Id, ...] = ()


@dataclass(eq=False, slots=True)
class Turn:
    """One decision of an agent with a model.

    Attributes:
        agent_id: Whose it is; a council's, not a member's.
        shown: What the observation allows.
        full_ids: Whether ids are mapped.
        choices: The answers that became actions; several with an ensemble.
        asked: How many questions were asked.
        read: How many answers could be read.
    """

    agent_id: str
    shown: Shown
    full_ids: bool
    choices: list[Choice] = field(default_factory=list)
    asked: int = 0
    read: int = 0

    def take(self, name: object, action: Any) -> Any:
        """Note that an answer naming the action `name` became `action`; return that.

        Its ids are made whole where that can be told.
        """
        written = _written(name)
        ids = self._make_whole(action) if written == action.action_type.name else ()
        self.choices.append(Choice(written, action, self._allows(written, action), ids))
        return action

    def choice_of(self, action: Any) -> Choice | None:
        """Return the choice behind the action that upstream selected, if there is one."""
        return next((each for each in self.choices if each.action is action), None)

    def _make_whole(self, action: Any) -> tuple[Id, ...]:
        if not self.full_ids:
            return ()
        found = []
        for attribute, names in self._places(action):
            written = getattr(action, attribute)
            whole, id_ = _resolved(written, names)
            found.append(id_)
            if id_ is Id.MAPPED:
                setattr(action, attribute, whole)
        return tuple(found)

    def _places(self, action: Any) -> list[tuple[str, Names]]:
        """Return which attributes of `action` hold ids, and of what."""
        name = action.action_type.name
        if name == "PROPOSE_INTERACTION":
            places = [("counterparty_id", self.shown.agents)]
            # A proposal may be about a task; most are about none.
            return places + ([("target_id", self.shown.tasks)] if action.target_id else [])
        if name in ("CLAIM_TASK", "SUBMIT_OUTPUT"):
            return [("target_id", self.shown.tasks)]
        names = self.shown.named_by(name)
        return [] if names is None else [("target_id", names)]

    def _allows(self, name: str, action: Any) -> bool:
        if name != action.action_type.name or name not in self.shown.actions:
            return False
        names = self.shown.named_by(name)
        named = action.counterparty_id if name == "PROPOSE_INTERACTION" else action.target_id
        return names is None or named in names


current_turn: ContextVar[Turn | None] = ContextVar("current_turn", default=None)
"""The turn in which the running code decides, if any."""


def _written(name: object) -> str:
    from swarm.agents.base import ActionType

    plain = str(name).upper()
    return plain if plain in ActionType.__members__ else UNKNOWN_ACTION


def _resolved(written: object, names: Names) -> tuple[str, Id]:
    text = str(written)
    found = names.candidates(text)
    if len(found) != 1:
        return text, Id.AMBIGUOUS if found else Id.UNKNOWN
    return found[0], Id.WHOLE if found[0] == written else Id.MAPPED
