"""What the journal keeps of an answer, as plain data, and reading it back.

A journal may come from a stranger: nothing of a record is taken for what it should be.
"""

from __future__ import annotations

from typing import Any

from scheduler.errors import RequestFailed
from scheduler.types import Answer, FinishReason, Outcome, Usage


def record_of(outcome: Answer | RequestFailed) -> dict[str, Any]:
    """Return the record of an answer, or of a question that failed for good."""
    if isinstance(outcome, RequestFailed):
        return {"outcome": Outcome.FAILED.value, "error": str(outcome)}
    return {
        "text": outcome.text,
        "outcome": outcome.outcome.value,
        "finish_reason": outcome.finish_reason.value,
        "seed": outcome.seed,
        "reask": outcome.reask,
        "usage": {name: getattr(outcome.usage, name) for name in Usage.__slots__},
        "reasoning": outcome.reasoning,
        "violation": outcome.violation,
    }


def recorded(data: Any) -> Answer | str:
    """Return what a record says: an answer, or a failure's message.

    Raises:
        KeyError: A field is missing.
        TypeError: A field is of another type.
        ValueError: A field has a value that is not one of its own.
    """
    if data["outcome"] == Outcome.FAILED.value:
        return str(data["error"])
    for name in ("text", "reasoning", "violation"):
        if not isinstance(data[name], str):
            raise TypeError(f"{name} is no text")
    for name in ("seed", "reask"):
        if type(data[name]) is not int:
            raise TypeError(f"{name} is no whole number")
    return Answer(
        text=data["text"],
        outcome=Outcome(data["outcome"]),
        finish_reason=FinishReason(data["finish_reason"]),
        seed=data["seed"],
        reask=data["reask"],
        usage=Usage(**data["usage"]),
        reasoning=data["reasoning"],
        violation=data["violation"],
    )
