"""Which errors are tried again, after which pause, and how often."""

from __future__ import annotations

import random

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import errors
from scheduler.errors import (
    AttemptError,
    RetryBudgetExhausted,
    ServerBusy,
    ServerFault,
    ServerLoading,
)
from scheduler.retry import (
    MAX_FREE_PASSES,
    RetryBudget,
    RetryDecision,
    backoff_s,
    classify,
    retrying,
)
from scheduler.types import Request
from tests.questions import question

DECISIONS = [
    (errors.AttemptTimeout("late"), RetryDecision(retry=True, wait_ready=True)),
    (errors.ConnectionFailed("refused"), RetryDecision(retry=True, wait_ready=True)),
    (ServerBusy("429"), RetryDecision(retry=True)),
    (ServerBusy("429", 3.0), RetryDecision(retry=True, retry_after_s=3.0)),
    (ServerLoading("503"), RetryDecision(retry=True, counts=False, wait_ready=True)),
    (ServerFault("500"), RetryDecision(retry=True)),
    (errors.MalformedAnswer("not JSON"), RetryDecision(retry=True)),
    (AttemptError("some"), RetryDecision(retry=True)),
    (errors.RequestRejected("400"), RetryDecision(retry=False)),
    (errors.ContextExceeded("long"), RetryDecision(retry=False)),
    (errors.AuthenticationFailed("401"), RetryDecision(retry=False)),
    (errors.BackendUnavailable("gone"), RetryDecision(retry=False)),
    (KeyError("defect"), RetryDecision(retry=False)),
    (KeyboardInterrupt(), RetryDecision(retry=False)),
]


@pytest.mark.parametrize(("error", "decision"), DECISIONS, ids=lambda value: type(value).__name__)
def test_each_error_has_its_decision(error: BaseException, decision: RetryDecision) -> None:
    assert classify(error) == decision


def test_every_attempt_error_has_been_thought_of() -> None:
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, AttemptError)
    }
    assert kinds == {type(error) for error, _ in DECISIONS if isinstance(error, AttemptError)}


@given(st.integers(1, 10_000), st.floats(1e-3, 60), st.floats(1e-3, 600))
def test_pauses_grow_and_keep_their_bounds(attempt: int, base_s: float, cap_s: float) -> None:
    pause = backoff_s(question(), attempt, base_s=base_s, cap_s=cap_s)
    whole = min(cap_s, base_s * 2.0 ** min(attempt - 1, 32))
    assert whole / 2 <= pause <= whole
    assert pause == backoff_s(question(), attempt, base_s=base_s, cap_s=cap_s)


def test_pauses_vectors() -> None:
    pauses = [backoff_s(question(), n, base_s=0.5, cap_s=30) for n in (1, 2, 3)]
    assert pauses == pytest.approx([0.391732791, 0.661241607, 1.119435756])


def test_pauses_of_different_agents_differ() -> None:
    pauses = {backoff_s(question(i), 1, base_s=1, cap_s=9) for i in range(50)}
    assert len(pauses) == 50


def test_pauses_leave_the_shared_random_generator_alone() -> None:
    before = random.getstate()
    backoff_s(question(), 1, base_s=1, cap_s=9)
    assert random.getstate() == before


def test_a_budget_is_spent_one_by_one() -> None:
    budget = RetryBudget(2)
    budget.spend()
    budget.spend()
    with pytest.raises(RetryBudgetExhausted, match="all 2 retries of this run are spent"):
        budget.spend()
    assert budget.spent == 2


class Attempts:
    """Fails with given errors, then answers; keeps the pauses that were announced."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.count = 0
        self.pauses: list[float] = []

    async def attempt(self) -> str:
        await anyio.lowlevel.checkpoint()
        self.count += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"

    def announced(self, error: AttemptError, decision: RetryDecision, pause_s: float) -> None:
        assert decision == classify(error)
        self.pauses.append(pause_s)

    async def run(self, request: Request) -> str:
        return await retrying(
            self.attempt, request, base_s=1.0, cap_s=60.0, before_pause=self.announced
        )


@pytest.mark.virtual_time
async def test_what_succeeds_at_once_is_tried_once() -> None:
    attempts = Attempts()
    assert await attempts.run(question()) == "answer"
    assert (attempts.count, attempts.pauses) == (1, [])


@pytest.mark.virtual_time
async def test_pauses_are_slept_and_announced() -> None:
    attempts = Attempts(ServerFault("1"), ServerBusy("2", 9.0), ServerBusy("3", 0.1))
    began = anyio.current_time()
    assert await attempts.run(question(timeout_s=30)) == "answer"
    assert attempts.count == 4
    assert attempts.pauses == [
        backoff_s(question(), 1, base_s=1, cap_s=60),
        9.0,
        backoff_s(question(), 3, base_s=1, cap_s=60),
    ]
    assert anyio.current_time() - began == pytest.approx(sum(attempts.pauses))


@pytest.mark.virtual_time
async def test_the_last_error_is_raised_as_it_is() -> None:
    last = ServerFault("last")
    attempts = Attempts(ServerFault("first"), last)
    with pytest.raises(ServerFault) as caught:
        await attempts.run(question(max_retries=1))
    assert caught.value is last
    assert attempts.count == 2


@pytest.mark.virtual_time
@pytest.mark.parametrize("error", [errors.RequestRejected("no"), KeyError("defect")])
@pytest.mark.parametrize("after", [0, 1])
async def test_permanent_errors_end_it_at_once(error: Exception, after: int) -> None:
    attempts = Attempts(*[ServerFault("")] * after, error)
    with pytest.raises(type(error)) as caught:
        await attempts.run(question())
    assert caught.value is error
    assert attempts.count == after + 1


@pytest.mark.virtual_time
@pytest.mark.parametrize("max_retries", [0, 2])
async def test_loading_is_free_for_a_while(max_retries: int) -> None:
    attempts = Attempts(*[ServerLoading("503")] * 1000)
    with pytest.raises(ServerLoading):
        await attempts.run(question(max_retries=max_retries))
    assert attempts.count == MAX_FREE_PASSES + max_retries + 1


@pytest.mark.virtual_time
async def test_what_the_announcement_raises_ends_it() -> None:
    class Spent(Attempts):
        def announced(self, *_: object) -> None:
            raise RetryBudgetExhausted("spent")

    attempts = Spent(ServerFault(""))
    with pytest.raises(RetryBudgetExhausted):
        await attempts.run(question())
    assert attempts.count == 1


@pytest.mark.virtual_time
@pytest.mark.parametrize("failures", [0, 1, 2])
async def test_cancellation_passes_through(failures: int) -> None:
    class Hanging(Attempts):
        async def attempt(self) -> str:
            if not self.errors:
                await anyio.sleep_forever()
            return await super().attempt()

    with anyio.move_on_after(100) as scope:
        await Hanging(*[ServerFault("")] * failures).run(question())
    assert scope.cancelled_caught
