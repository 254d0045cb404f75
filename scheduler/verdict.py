"""From observed answers to what they prove about a backend's arithmetic.

Pure: it is told what was answered in which situation and decides. A level is given only
for what was seen, and `repeatable` only to an engine whose schedule can't follow a clock,
since for any other one two equal runs may be luck.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from typing import Any

from scheduler.types import Answer


class Level(StrEnum):
    """What a backend's arithmetic promises."""

    INVARIANT = "invariant"
    """The same bits whatever else is in the batch, in any order, cached or not."""
    REPEATABLE = "repeatable"
    """The same bits for the same plan."""
    ORDERED = "ordered"
    """The order and the seeds only."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One answer and where it was seen.

    Attributes:
        question: Which of the three questions it belongs to.
        prompt: The prompt's name; prompts of one name and temperature are equal.
        temperature: Sampled with.
        trial: Which repetition of the whole plan, from 0.
        situation: What shared its batch or the cache, in words.
        answer: What came back.
    """

    question: str
    prompt: str
    temperature: float
    trial: int
    situation: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one question showed at one temperature.

    Attributes:
        question: The question.
        temperature: Sampled with.
        prompts: How many different prompts were asked.
        answers: How many answers they got.
        varying: Prompts with more than one unique answer.
        most_texts: The most unique texts that one prompt got; 1 is what invariance needs.
        most_token_ids: The same for token ids; 0 where the backend tells none.
        most_logprobs: The same for the tokens' log-probabilities, compared bit for bit.
        cached: Answers for which half of the prompt or more came from the backend's cache.
        fresh: Answers for which less than a tenth of it did.
        repeated: Whether each trial gave, place by place, the answers of the first one;
            None where there was one trial.
        example: Where the first two different answers differ, or nothing.
    """

    question: str
    temperature: float
    prompts: int
    answers: int
    varying: int
    most_texts: int
    most_token_ids: int
    most_logprobs: int
    cached: int
    fresh: int
    repeated: bool | None
    example: str

    @property
    def same(self) -> bool:
        """Whether every prompt had one unique answer."""
        return self.varying == 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """A level and why it is this one."""

    level: Level
    reason: str


def weigh(observations: Iterable[Observation]) -> list[Evidence]:
    """Return the evidence of each question and temperature, in the order of their coming."""
    groups: dict[tuple[str, float], list[Observation]] = {}
    for one in observations:
        groups.setdefault((one.question, one.temperature), []).append(one)
    return [_evidence(group) for group in groups.values()]


def judge(evidence: Sequence[Evidence], *, follows_plan: bool) -> Verdict:
    """Return the level that `evidence` allows.

    Args:
        evidence: What was seen; of each question and temperature, one.
        follows_plan: Whether the engine's schedule follows the plan alone: it answers one
            request at a time, or says so itself.

    Raises:
        ValueError: There is no evidence.
    """
    if not evidence:
        raise ValueError("no evidence, so no verdict")
    varying = [one for one in evidence if not one.same]
    if not varying:
        return Verdict(
            Level.INVARIANT, "every prompt had one unique answer, whatever ran before and beside it"
        )
    found = f"{varying[0].example} ({len(varying)} of {len(evidence)} measurements varied)"
    if not follows_plan:
        return Verdict(Level.ORDERED, f"answers depend on what runs before or beside them: {found}")
    if all(one.repeated for one in evidence):
        return Verdict(
            Level.REPEATABLE, f"the same plan gave the same answers, another one did not: {found}"
        )
    if any(one.repeated is False for one in evidence):
        return Verdict(Level.ORDERED, f"the same plan gave other answers: {found}")
    return Verdict(
        Level.ORDERED,
        f"answers vary, and one trial can't show whether the same plan repeats them: {found}",
    )


def _evidence(group: Sequence[Observation]) -> Evidence:
    by_prompt: dict[str, list[Observation]] = {}
    for one in group:
        by_prompt.setdefault(one.prompt, []).append(one)
    unique = {name: _unique(same) for name, same in by_prompt.items()}
    varying = [name for name, counts in unique.items() if max(counts) > 1]
    return Evidence(
        question=group[0].question,
        temperature=group[0].temperature,
        prompts=len(by_prompt),
        answers=len(group),
        varying=len(varying),
        most_texts=max(counts[0] for counts in unique.values()),
        most_token_ids=max(counts[1] for counts in unique.values()),
        most_logprobs=max(counts[2] for counts in unique.values()),
        cached=sum(_cached_share(one.answer) >= 0.5 for one in group),
        fresh=sum(_cached_share(one.answer) < 0.1 for one in group),
        repeated=_repeated(group),
        example=_example(by_prompt[varying[0]]) if varying else "",
    )


def _unique(same_prompt: Sequence[Observation]) -> tuple[int, int, int]:
    """Return how many different texts, token ids and log-probabilities there are.

    A backend that has told neither ids nor log-probabilities has not told different ones.
    """
    answers = [one.answer for one in same_prompt]
    return (
        len({_text(answer) for answer in answers}),
        len({answer.token_ids for answer in answers} - {()}),
        len({answer.logprobs for answer in answers} - {()}),
    )


def _repeated(group: Sequence[Observation]) -> bool | None:
    trials: dict[int, list[Any]] = {}
    for one in group:
        place = (one.prompt, one.situation, _text(one.answer))
        tokens = (one.answer.token_ids, one.answer.logprobs)
        trials.setdefault(one.trial, []).append((place, tokens))
    first, *others = trials.values()
    return all(other == first for other in others) if others else None


def _cached_share(answer: Answer) -> float:
    return answer.usage.cached_tokens / max(1, answer.usage.prompt_tokens)


def _text(answer: Answer) -> tuple[str, str, str]:
    return answer.text, answer.reasoning, answer.finish_reason.value


def _example(same_prompt: Sequence[Observation]) -> str:
    """Say where the first two answers that differ do so."""
    for first, other in combinations(same_prompt, 2):
        difference = _difference(first.answer, other.answer)
        if difference:
            return (
                f"prompt {first.prompt} at temperature {first.temperature:g}: {first.situation} "
                f"and {other.situation} differ from {difference} on"
            )
    return ""


def _difference(one: Answer, other: Answer) -> str:
    pairs: list[tuple[str, Sequence[Any], Sequence[Any]]] = [
        ("token", one.token_ids, other.token_ids),
        ("the log-probability of token", one.logprobs, other.logprobs),
    ]
    for name, ours, theirs in pairs:
        if ours and theirs and ours != theirs:
            return f"{name} {_first_difference(ours, theirs)}"
    if one.text != other.text:
        return f"character {_first_difference(one.text, other.text)}"
    return "the thinking or the end" if _text(one) != _text(other) else ""


def _first_difference(one: Sequence[Any], other: Sequence[Any]) -> int:
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)
