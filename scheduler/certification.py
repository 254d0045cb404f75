"""Measures what a backend's arithmetic promises, by asking it through the scheduler.

The three questions of determinism tests: the same prompt alone and in batches; mixed
prompts in shuffled order; shared prefixes, cached and not. What is asked stands in
`certification_prompts.py`, what follows from the answers in `verdict.py`. It knows
nothing of how a backend was started; who keeps the result must.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from scheduler.backends.base import Backend, BackendInfo
from scheduler.certification_prompts import (
    LONGEST_PROMPT_TOKENS,
    MOST_ANSWER_TOKENS,
    Round,
    Scale,
    program,
    sentences,
)
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import ConfigError
from scheduler.types import Message
from scheduler.verdict import Evidence, Level, Observation, Verdict, judge, weigh

TEMPERATURES = (0.0, 0.8)

_SMALLEST_PROMPT_TOKENS = 150
_SHARED_KINDS = ("openai", "upstream_provider")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Certification:
    """What was measured of one backend.

    Attributes:
        verdict: The level, and why it is this one.
        evidence: What each question showed at each temperature.
        info: What the backend said at its start.
        slots: How many requests the backend was given at once.
        most_in_flight: How many of them really ran at once, at most.
        trials: How often the whole plan was asked.
        answers: How many answers were compared.
        longest_prompt_tokens: Tokens of the longest prompt.
        compared: What was compared beside the text: `token ids`, `log-probabilities`.
    """

    verdict: Verdict
    evidence: tuple[Evidence, ...]
    info: BackendInfo
    slots: int
    most_in_flight: int
    trials: int
    answers: int
    longest_prompt_tokens: int
    compared: tuple[str, ...]


async def certify(
    backend: Backend,
    *,
    slots: Literal["auto"] | int = "auto",
    trials: int = 2,
    quick: bool = False,
    temperatures: Sequence[float] = TEMPERATURES,
    timeout_s: float = 600.0,
    progress: Progress | None = None,
) -> Certification:
    """Measure a backend; nothing else may use it meanwhile.

    Args:
        backend: Is started, and not closed.
        slots: How many requests are answered at once.
        trials: How often the whole plan is asked; 2 or more, or nothing is `repeatable`.
        quick: Fewer and shorter prompts.
        temperatures: Each is measured by itself.
        timeout_s: Deadline of one attempt, in seconds.
        progress: Told how many answers there are, and how many there will be.

    Raises:
        ConfigError: More slots are asked for than there are, or a slot holds too little.
        StepAborted: A request failed for good.
    """
    if trials < 1:
        raise ConfigError(f"trials must be 1 or more, got {trials}")
    # A window of one request leaves the order as it is given: shuffled means shuffled.
    config = SchedulerConfig(max_batch=1, slots=slots, max_reasks=0)
    async with Scheduler(backend, config) as scheduler:
        lane = scheduler.lanes["default"]
        scale = await _scale(backend, lane.info.context_per_slot)
        rounds = [
            (temperature, one)
            for temperature in temperatures
            for one in program(scale, lane.slots, temperature, quick=quick, timeout_s=timeout_s)
        ]
        observations = await _observe(scheduler, rounds, trials, progress)
    evidence = tuple(weigh(observations))
    return Certification(
        verdict=judge(evidence, follows_plan=follows_plan(lane.info, lane.slots)),
        evidence=evidence,
        info=lane.info,
        slots=lane.slots,
        most_in_flight=scheduler.stats.max_in_flight,
        trials=trials,
        answers=len(observations),
        longest_prompt_tokens=max(one.answer.usage.prompt_tokens for one in observations),
        compared=_compared(evidence),
    )


def follows_plan(info: BackendInfo, slots: int) -> bool:
    """Whether the engine's schedule can depend on the plan alone and on no clock.

    So it is where one request runs at a time, unless the endpoint is one that others use
    as well, and where the engine says so itself (its own calibration).
    """
    calibration = info.facts.get("calibration")
    if isinstance(calibration, dict) and calibration.get("level") == Level.REPEATABLE:
        return True
    return (slots == 1 or info.serial) and info.kind not in _SHARED_KINDS


async def _observe(
    scheduler: Scheduler,
    rounds: Sequence[tuple[float, Round]],
    trials: int,
    progress: Progress | None,
) -> list[Observation]:
    total = trials * sum(len(one.requests) for _, one in rounds)
    done = 0
    observations = []
    for trial in range(trials):
        for temperature, one in rounds:
            completions = await scheduler.run_step(one.requests)
            done += len(completions)
            if progress is not None:
                progress(done, total)
            observations += [
                Observation(
                    one.question,
                    completion.request.agent_id,
                    temperature,
                    trial,
                    one.situation,
                    completion.answers[-1],
                )
                for completion in completions
                if one.question
            ]
    return observations


async def _scale(backend: Backend, context_per_slot: int | None) -> Scale:
    """Return how long prompts may be and how many tokens a sentence has.

    Raises:
        ConfigError: A slot does not hold a prompt of a useful length.
    """
    room = LONGEST_PROMPT_TOKENS
    if context_per_slot is not None:
        room = min(room, int(0.9 * (context_per_slot - MOST_ANSWER_TOKENS)))
    if room < _SMALLEST_PROMPT_TOKENS:
        raise ConfigError(
            f"a slot holds {context_per_slot} tokens; to certify the backend, give it "
            f"{2 * _SMALLEST_PROMPT_TOKENS} or more"
        )
    few, many = 10, 30
    small = await backend.count_prompt_tokens([Message("user", sentences(few, 0))])
    large = await backend.count_prompt_tokens([Message("user", sentences(many, 0))])
    if small is None or large is None or large <= small:
        return Scale(room)
    per_sentence = (large - small) / (many - few)
    return Scale(room, per_sentence, overhead=small - few * per_sentence + 2 * per_sentence)


def _compared(evidence: Sequence[Evidence]) -> tuple[str, ...]:
    told = [
        ("token ids", max(one.most_token_ids for one in evidence)),
        ("log-probabilities", max(one.most_logprobs for one in evidence)),
    ]
    return tuple(name for name, most in told if most)
