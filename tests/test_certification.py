"""Each level is given to a backend that deserves it, and to no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest

from scheduler.backends.base import BackendInfo, RawAnswer
from scheduler.backends.fake import FakeBackend
from scheduler.certification import Certification, certify, follows_plan
from scheduler.certification_prompts import (
    BATCH,
    ORDER,
    PREFIX,
    Round,
    Scale,
    batch_sizes,
    program,
)
from scheduler.errors import ConfigError
from scheduler.types import Answer, FinishReason, Outcome, Request, Usage
from scheduler.verdict import Level, Observation, judge, weigh

pytestmark = pytest.mark.virtual_time

Twist = Callable[["TwistedBackend", RawAnswer], RawAnswer]


class TwistedBackend(FakeBackend):
    """A fake backend whose answers depend on more than the request."""

    def __init__(self, twist: Twist, slots: int = 4, **info: Any) -> None:
        super().__init__(slots, latency_s=1.0)
        self._info = replace(self._info, **info)
        self._twist = twist
        self.before = ""
        self.most_beside = 0

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
        self.most_beside = self.in_flight
        answer = self._twist(self, await super().generate(request, seed=seed, slot=slot))
        self.before = request.agent_id
        return answer


def honest(_: TwistedBackend, answer: RawAnswer) -> RawAnswer:
    return replace(answer, token_ids=(1, 2), logprobs=(-0.5, -0.25))


def by_mates(backend: TwistedBackend, answer: RawAnswer) -> RawAnswer:
    return replace(answer, text=f"{answer.text} {backend.most_beside}")


def by_order(backend: TwistedBackend, answer: RawAnswer) -> RawAnswer:
    return replace(answer, text=f"{answer.text} after {backend.before}")


def by_chance(backend: TwistedBackend, answer: RawAnswer) -> RawAnswer:
    return replace(answer, text=f"{answer.text} {backend.calls}")


def logprobs_by_mates(backend: TwistedBackend, answer: RawAnswer) -> RawAnswer:
    return replace(answer, token_ids=(1, 2), logprobs=(-0.5, -0.25 - 2**-40 * backend.most_beside))


async def measured(backend: FakeBackend, **options: Any) -> Certification:
    return await certify(backend, quick=True, **options)


async def test_answers_that_follow_from_the_request_alone_are_invariant() -> None:
    found = await measured(TwistedBackend(honest))
    assert found.verdict.level is Level.INVARIANT
    assert found.compared == ("token ids", "log-probabilities")
    assert (found.slots, found.most_in_flight) == (4, 4)
    assert len(found.evidence) == 6
    for one in found.evidence:
        assert (one.varying, one.most_texts, one.most_token_ids, one.most_logprobs) == (0, 1, 1, 1)
        assert one.repeated
    assert found.answers == sum(one.answers for one in found.evidence)


async def test_answers_that_depend_on_batch_mates_are_ordered() -> None:
    found = await measured(TwistedBackend(by_mates))
    assert found.verdict.level is Level.ORDERED
    varying = {one.question for one in found.evidence if not one.same}
    assert BATCH in varying
    assert ORDER in varying
    assert "copies-1" in found.verdict.reason


async def test_answers_that_depend_on_batch_mates_are_invariant_where_there_are_none() -> None:
    found = await measured(TwistedBackend(by_mates, slots=1))
    assert found.verdict.level is Level.INVARIANT
    assert found.most_in_flight == 1


async def test_a_log_probability_off_by_one_bit_is_seen() -> None:
    found = await measured(TwistedBackend(logprobs_by_mates))
    assert found.verdict.level is Level.ORDERED
    assert all(one.most_texts == one.most_token_ids == 1 for one in found.evidence)
    assert max(one.most_logprobs for one in found.evidence) > 1
    assert "log-probability of token 1" in found.verdict.reason


async def test_answers_that_depend_on_order_are_repeatable_one_at_a_time() -> None:
    found = await measured(TwistedBackend(by_order, slots=1))
    assert found.verdict.level is Level.REPEATABLE
    assert all(one.repeated for one in found.evidence)


async def test_answers_that_depend_on_order_are_ordered_where_a_clock_may_decide() -> None:
    assert (await measured(TwistedBackend(by_order))).verdict.level is Level.ORDERED


async def test_a_shared_endpoint_is_never_repeatable() -> None:
    found = await measured(TwistedBackend(by_order, slots=1, kind="openai"))
    assert found.verdict.level is Level.ORDERED


async def test_an_engine_that_says_that_it_follows_the_plan_may_be_repeatable() -> None:
    facts = {"calibration": {"level": "repeatable"}}
    found = await measured(TwistedBackend(by_order, facts=facts))
    assert found.verdict.level is Level.REPEATABLE


async def test_one_trial_is_not_enough_for_repeatable() -> None:
    found = await measured(TwistedBackend(by_order, slots=1), trials=1)
    assert found.verdict.level is Level.ORDERED
    assert "one trial" in found.verdict.reason


async def test_random_answers_are_ordered_even_one_at_a_time() -> None:
    found = await measured(TwistedBackend(by_chance, slots=1))
    assert found.verdict.level is Level.ORDERED
    assert "the same plan gave other answers" in found.verdict.reason


async def test_a_serial_backend_is_judged_as_one_slot() -> None:
    found = await measured(TwistedBackend(by_order, slots=1, serial=True), slots=4)
    assert (found.verdict.level, found.slots) == (Level.REPEATABLE, 1)


def test_only_an_engine_that_calls_itself_repeatable_is_taken_at_its_word() -> None:
    def info(**facts: Any) -> BackendInfo:
        return BackendInfo("llama_inproc", 4, 2048, "m", facts=facts)

    assert follows_plan(info(), slots=1)
    assert not follows_plan(info(), slots=4)
    assert follows_plan(info(calibration={"level": "repeatable"}), slots=4)
    # Equal row counts say nothing of when the engine takes in what comes.
    assert not follows_plan(info(calibration={"level": "invariant"}), slots=4)
    assert not follows_plan(info(calibration={"level": "ordered"}), slots=4)
    assert not follows_plan(info(calibration="none"), slots=4)


async def test_progress_reaches_its_end() -> None:
    seen: list[tuple[int, int]] = []
    await measured(FakeBackend(), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({total for _, total in seen}) == 1


@pytest.mark.parametrize("context", [400, 1024, 4096])
async def test_prompts_and_answers_fit_a_slot(context: int) -> None:
    backend = FakeBackend(4, context)
    longest = 0
    original = backend.generate

    async def generate(request: Request, *, seed: int, slot: int) -> RawAnswer:
        nonlocal longest
        longest = max(longest, request.prompt_chars // 4 + request.sampling.max_tokens)
        return await original(request, seed=seed, slot=slot)

    backend.generate = generate  # type: ignore[method-assign]  # a probe, not another behaviour
    found = await certify(backend)
    assert context / 3 < longest <= context or longest > 900
    assert found.longest_prompt_tokens <= 1100


async def test_a_slot_that_holds_too_little_is_refused() -> None:
    with pytest.raises(ConfigError, match="a slot holds 128 tokens"):
        await certify(FakeBackend(4, 128))


async def test_a_number_of_trials_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="trials"):
        await certify(FakeBackend(), trials=0)


def rounds(slots: int, **options: Any) -> list[Round]:
    scale = Scale(1000, per_sentence=17.0)
    return list(program(scale, slots, 0.8, **{"quick": False, "timeout_s": 60.0, **options}))


def test_the_same_arguments_ask_the_same() -> None:
    assert rounds(4) == rounds(4)
    assert rounds(4) != rounds(5)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("slots", [1, 2, 4, 8, 16])
def test_every_question_is_asked_with_up_to_all_slots(slots: int, *, quick: bool) -> None:
    asked = rounds(slots, quick=quick)
    assert {one.question for one in asked} == {"", BATCH, ORDER, PREFIX}
    copies = [len(one.requests) for one in asked if one.question == BATCH]
    assert {1, slots} <= set(copies)
    assert batch_sizes(slots, quick=quick) == tuple(sorted(set(copies)))
    assert max(len(one.requests) for one in asked if one.question == ORDER) > slots
    for one in asked:
        if one.question == BATCH:
            assert len(set(map(id, one.requests))) == 1


def test_up_to_eight_slots_have_every_batch_size() -> None:
    assert batch_sizes(8, quick=False) == tuple(range(1, 9))
    assert batch_sizes(1, quick=False) == (1, 2, 3, 4)


def test_orders_are_permutations_of_strongly_different_prompts() -> None:
    orders = [one.requests for one in rounds(4) if one.question == ORDER and len(one.requests) > 1]
    names = [[request.agent_id for request in order] for order in orders]
    assert len({tuple(order) for order in names}) == len(orders) == 3
    assert len({tuple(sorted(order)) for order in names}) == 1
    lengths = sorted(request.prompt_chars for request in orders[0])
    assert lengths[-1] > 8 * lengths[0]
    assert len({request.sampling.max_tokens for request in orders[0]}) > 3
    assert {request.schema is None for request in orders[0]} == {True, False}


def test_siblings_share_their_prefix_and_nobody_elses() -> None:
    siblings = [request for one in rounds(4) if one.question == PREFIX for request in one.requests]
    personas = {request.messages[0].content for request in siblings}
    assert len(personas) == 3
    assert len({len(persona) for persona in personas}) == 3


def observed(texts: str, **fields: Any) -> list[Observation]:
    answers = [Answer(text, Outcome.OK, FinishReason.STOP, seed=1) for text in texts]
    plain: dict[str, Any] = {"temperature": 0.0, "trial": 0, "situation": "alone", **fields}
    return [Observation(BATCH, "p", answer=answer, **plain) for answer in answers]


def test_unique_answers_are_counted_per_prompt() -> None:
    [found] = weigh(
        [*observed("aab"), *(replace(one, prompt="q") for one in observed("cc"))],
    )
    assert (found.prompts, found.answers, found.varying, found.most_texts) == (2, 5, 1, 2)
    assert found.repeated is None
    assert "character 0" in found.example


def test_tokens_that_were_not_told_are_not_different_ones() -> None:
    told, silent = observed("aa")
    told = replace(told, answer=replace(told.answer, token_ids=(1,), logprobs=(-1.0,)))
    [found] = weigh([told, silent])
    assert (found.varying, found.most_token_ids, found.most_logprobs) == (0, 1, 1)


def test_another_end_of_the_same_text_is_another_answer() -> None:
    one, other = observed("aa")
    other = replace(other, answer=replace(other.answer, finish_reason=FinishReason.LENGTH))
    [found] = weigh([one, other])
    assert found.varying == 1
    assert "the end" in found.example


def test_cached_prompts_are_told_from_fresh_ones() -> None:
    one, other = observed("aa")
    other = replace(other, answer=replace(other.answer, usage=Usage(100, 5, cached_tokens=60)))
    [found] = weigh([one, other])
    assert (found.fresh, found.cached) == (1, 1)


def test_without_evidence_there_is_no_verdict() -> None:
    with pytest.raises(ValueError, match="no evidence"):
        judge([], follows_plan=True)


async def test_a_caller_that_gives_up_stops_the_measurement() -> None:
    backend = FakeBackend(latency_s=1.0)
    with anyio.move_on_after(3.0) as scope:
        await certify(backend)
    assert scope.cancelled_caught
    assert backend.in_flight == 0
