"""What became of the LLM agents' actions: chosen, valid, executed, lost, refused.

Valid is an action that the agent's observation allowed. In a batched step another
agent may have moved in between; what was valid and found its task taken or its post
gone is lost, and counted apart from what was refused.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from swarm_integration.choices import Choice, Id, Turn, current_turn
from swarm_integration.compat import Simulation
from swarm_integration.compat_actions import PASSING, Obstacle, Rules
from swarm_integration.shown import shown_by

NOOP = "NOOP"


@dataclass(slots=True)
class Count:
    """What became of the actions of one name; `lost` and `refused` by their reason."""

    chosen: int = 0
    valid: int = 0
    executed: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "chosen": self.chosen,
            "valid": self.valid,
            "executed": self.executed,
            "lost": dict(sorted(self.lost.items())),
            "refused": dict(sorted(self.refused.items())),
        }


class Actions:
    """Follows the actions of the agents with a model through one simulation.

    Args:
        simulation: Where they act.
        full_ids: Whether ids are mapped back to whole ones.
    """

    def __init__(self, simulation: Simulation, *, full_ids: bool) -> None:
        self._rules = Rules(simulation)
        self._full_ids = full_ids
        self._counts: dict[str, Count] = {}
        self._ids: Counter[Id] = Counter()
        self._decisions: Counter[str] = Counter()
        self._unanswered = 0
        self._unreadable = 0

    def begin(self, agent_id: str, observation: Any) -> Turn:
        """Start the turn of an agent with a model, for the context that runs this."""
        shown = shown_by(observation, lambda action: self._rules.permits(agent_id, action))
        turn = Turn(agent_id, shown, self._full_ids)
        current_turn.set(turn)
        return turn

    def executed(self, turn: Turn, action: Any, *, done: bool) -> None:
        """Count an action right after it was tried.

        Args:
            turn: The turn in which it was chosen.
            action: Upstream's action.
            done: What upstream says: whether it took place.
        """
        choice = turn.choice_of(action)
        if choice is None and action.action_type.name != NOOP:
            # An agent that makes its action itself, such as an AWM agent from its plan.
            choice = Choice(action.action_type.name, action, allowed=True)
        if choice is not None:
            self._count(choice, action, done=done)
        elif turn.asked:
            self._unreadable += bool(turn.read)
            self._unanswered += not turn.read

    def decided(self, turn: Turn, *, accepted: bool) -> None:
        """Count a decision about a proposal; one without an answer is a no to upstream."""
        if turn.asked and not turn.read:
            self._decisions["unanswered"] += 1
        else:
            self._decisions["accepted" if accepted else "rejected"] += 1

    def _count(self, choice: Choice, action: Any, *, done: bool) -> None:
        count = self._counts.setdefault(choice.name, Count())
        count.chosen += 1
        self._ids.update(choice.ids)
        reason = self._reason(choice, action, done=done)
        if reason is None:
            count.executed += 1
            count.valid += 1
            return
        count.valid += choice.allowed
        lost = choice.allowed and reason in PASSING
        (count.lost if lost else count.refused)[reason.value] += 1

    def _reason(self, choice: Choice, action: Any, *, done: bool) -> Obstacle | None:
        if choice.name != action.action_type.name:
            return Obstacle.NOT_FOR_MODELS
        if self._rules.names_nobody(action):
            return Obstacle.NO_AGENT
        return None if done else self._rules.obstacle(action)

    def summary(self) -> dict[str, Any]:
        """Return the counts as plain data, for the manifest.

        `executed_share` leaves out NOOPs, which always take place, and what was lost
        to an earlier move; None when nothing else was chosen.
        """
        moves = [count for name, count in self._counts.items() if name != NOOP]
        tried = sum(count.chosen - count.lost.total() for count in moves)
        executed = sum(count.executed for count in moves)
        return {
            "full_ids": self._full_ids,
            "by_action": {name: self._counts[name].as_dict() for name in sorted(self._counts)},
            "executed_share": round(executed / tried, 4) if tried else None,
            "unanswered": self._unanswered,
            "unreadable": self._unreadable,
            "ids": {id_.value: self._ids[id_] for id_ in Id},
            "decisions": {
                name: self._decisions[name] for name in ("accepted", "rejected", "unanswered")
            },
        }


def render(counts: dict[str, Any]) -> str:
    """Return `Actions.summary()` as lines of text; nothing where nothing was chosen."""
    by_action: dict[str, dict[str, Any]] = counts["by_action"]
    if not by_action and not counts["unanswered"] and not counts["unreadable"]:
        return ""
    columns = "".join(f"{name:>10}" for name in ("chosen", "valid", "executed", "lost", "refused"))
    lines = [f"  {'':<20}{columns}"]
    for name, count in by_action.items():
        lost, refused = sum(count["lost"].values()), sum(count["refused"].values())
        numbers = (count["chosen"], count["valid"], count["executed"], lost, refused)
        lines.append(f"  {name.lower():<20}" + "".join(f"{number:>10}" for number in numbers))
    for kind in ("lost", "refused"):
        for name, count in by_action.items():
            for reason, number in count[kind].items():
                lines.append(f"  {kind}: {number} {name.lower()}, {reason}")
    lines += _remarks(counts)
    title = "Actions of agents with a model"
    if not counts["full_ids"]:
        title += " (ids as they were written)"
    return "\n".join([title, "-" * 60, *lines])


def _remarks(counts: dict[str, Any]) -> list[str]:
    lines = []
    if counts["executed_share"] is not None:
        share = f"{counts['executed_share']:.1%}"
        lines.append(f"  {share} executed, without noop and what was lost to an earlier move")
    decisions = counts["decisions"]
    if any(decisions.values()):
        said = ", ".join(f"{number} {name}" for name, number in decisions.items())
        lines.append(f"  proposals to them: {said}")
    if counts["unanswered"] or counts["unreadable"]:
        lines.append(
            f"  noop for want of an answer: {counts['unanswered']} unanswered or against the "
            f"schema, {counts['unreadable']} that name no action"
        )
    unclear = counts["ids"]["ambiguous"] + counts["ids"]["unknown"]
    if unclear:
        lines.append(f"  ids that stand for nothing shown, or for several: {unclear}")
    return lines
