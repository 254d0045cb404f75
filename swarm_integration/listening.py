"""Hears from upstream's agents what an answer was taken for.

Upstream reads an answer, makes an action of it and hands only the action on. For
the time of a run each agent's own two methods for that tell the turn as well, so
that ids are whole before anything looks them up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from scheduler.structured import extract_json
from swarm_integration import compat
from swarm_integration.choices import current_turn


@contextmanager
def listening(agent: Any) -> Iterator[None]:
    """Note what the agent's answers become, for the time of the block.

    A council answers through its members and makes its action itself; an AWM
    agent's model plans tool calls, which name nothing of the simulation.
    """
    with ExitStack() as stack:
        if compat.council_of(agent) is not None:
            _replace(stack, agent, "_parse_synthesis_to_action", _of_synthesis)
            _replace(stack, agent, "_parse_accept_decision", _of_reading)
        elif agent in compat.llm_agents_of(agent):
            _replace(stack, agent, "_action_dict_to_action", _of_answer)
            _replace(stack, agent, "_parse_action_response", _of_reading)
        yield


def _replace(stack: ExitStack, agent: Any, name: str, wrap: Any) -> None:
    stack.enter_context(compat.replaced(agent, name, wrap(getattr(agent, name))))


def _of_answer(make_action: Any) -> Any:
    def make(answer: dict[str, Any]) -> Any:
        action, turn = make_action(answer), current_turn.get()
        # Saying nothing is a NOOP to upstream.
        return action if turn is None else turn.take(answer.get("action_type", "NOOP"), action)

    return make


def _of_synthesis(make_action: Any) -> Any:
    def make(synthesis: str) -> Any:
        action, turn = make_action(synthesis), current_turn.get()
        if turn is None:
            return action
        turn.read += 1
        try:
            answer = extract_json(synthesis)
        except ValueError:
            return action
        if not isinstance(answer, dict):
            return action
        return turn.take(answer.get("action_type", "NOOP"), action)

    return make


def _of_reading(read: Any) -> Any:
    def read_and_note(text: str) -> Any:
        answer, turn = read(text), current_turn.get()
        if turn is not None:
            turn.read += 1
        return answer

    return read_and_note
