"""What the engine asks again: failed attempts and answers that break their schema."""

from __future__ import annotations

import anyio
import pytest

from scheduler.backends.base import RawAnswer
from scheduler.backends.fake import FakeBackend
from scheduler.engine import Scheduler
from scheduler.errors import (
    AttemptError,
    AttemptTimeout,
    BackendUnavailable,
    ConnectionFailed,
    ContextExceeded,
    MalformedAnswer,
    RequestRejected,
    RetryBudgetExhausted,
    ServerBusy,
    ServerFault,
    ServerLoading,
)
from scheduler.seeds import request_seed
from scheduler.types import Outcome, Request
from tests.doubles import TextBackend, TracingBackend, always, config, failing
from tests.questions import SCHEMA, question, questions, transcript

pytestmark = pytest.mark.virtual_time


# --- retries


@pytest.mark.parametrize(
    "error",
    [
        AttemptTimeout("late"),
        ConnectionFailed("refused"),
        ServerBusy("busy"),
        ServerBusy("busy", 0.2),
        ServerFault("500"),
        MalformedAnswer("not JSON"),
    ],
)
async def test_a_passing_fault_is_tried_again(error: AttemptError) -> None:
    backend = TracingBackend(fault=failing(error, error))
    async with Scheduler(backend) as scheduler:
        completion = await scheduler.submit(question(max_retries=2))
    assert completion.ok
    assert completion.attempts == backend.calls == 3
    assert scheduler.stats.retries == 2
    doubtful = isinstance(error, ConnectionFailed | AttemptTimeout)
    assert backend.waits_for_ready == (2 if doubtful else 0)


@pytest.mark.parametrize("error", [RequestRejected("no"), ContextExceeded("too long")])
async def test_a_permanent_fault_is_not_tried_again(error: AttemptError) -> None:
    backend = FakeBackend(fault=always(error))
    async with Scheduler(backend, config(on_failure="noop")) as scheduler:
        completion = await scheduler.submit(question())
    assert backend.calls == 1
    assert completion.error is not None
    assert completion.error.__cause__ is error
    assert str(completion.error) == (
        f"agent-000 act (epoch 0, step 0) failed after 1 attempt: {error}"
    )


@pytest.mark.parametrize("retries", [0, 1, 5])
async def test_attempts_are_one_more_than_retries(retries: int) -> None:
    backend = FakeBackend(fault=always(ServerFault("500")))
    async with Scheduler(backend, config(on_failure="noop")) as scheduler:
        completion = await scheduler.submit(question(max_retries=retries))
    assert completion.attempts == backend.calls == retries + 1


async def test_a_fault_does_not_change_the_answer() -> None:
    async with Scheduler(FakeBackend()) as scheduler:
        expected = transcript(await scheduler.run_step(questions(10)))
    backend = FakeBackend(
        fault=lambda r, n: ServerFault("") if n <= int(r.agent_id[-1]) % 4 else None
    )
    async with Scheduler(backend) as scheduler:
        assert transcript(await scheduler.run_step(questions(10))) == expected


async def test_retry_after_is_honoured() -> None:
    backend = TracingBackend(fault=failing(ServerBusy("429", 7.0)))
    async with Scheduler(backend) as scheduler:
        await scheduler.submit(question(timeout_s=30.0))
    assert backend.started[1][0] - backend.started[0][0] == pytest.approx(7.0)


async def test_retry_after_is_capped_by_the_requests_deadline() -> None:
    backend = TracingBackend(fault=failing(ServerBusy("429", 86_400.0)))
    async with Scheduler(backend) as scheduler:
        await scheduler.submit(question(timeout_s=12.0))
    assert backend.started[1][0] - backend.started[0][0] == pytest.approx(12.0)


async def test_a_pause_between_attempts_leaves_the_slot_to_others() -> None:
    backend = TracingBackend(
        slots=1, delay=lambda *_: 1.0, fault=failing(ServerBusy("", 4.5), agent="agent-000")
    )
    async with Scheduler(backend) as scheduler:
        completions = await scheduler.run_step(questions(10))
    assert backend.order().index("agent-000") == 0
    assert backend.order()[6] == "agent-000"  # before the planned ones, once its pause is over
    assert completions[0].attempts == 2
    assert backend.max_in_flight == 1


async def test_a_loading_server_consumes_no_attempt() -> None:
    backend = TracingBackend(fault=failing(*[ServerLoading("503")] * 5))
    async with Scheduler(backend) as scheduler:
        completion = await scheduler.submit(question(max_retries=0))
    assert completion.ok
    assert backend.waits_for_ready == 5


@pytest.mark.parametrize("on_failure", ["abort", "noop"])
async def test_a_loading_server_spends_none_of_the_retry_budget(on_failure: str) -> None:
    backend = TracingBackend(fault=failing(*[ServerLoading("503")] * 5, ServerFault("500")))
    async with Scheduler(backend, config(retry_budget=4, on_failure=on_failure)) as scheduler:
        completions = await scheduler.run_step(questions(4, max_retries=1))
    assert all(completion.ok for completion in completions)
    assert scheduler.stats.retries == 4 * 6


async def test_a_server_that_loads_for_ever_is_given_up() -> None:
    backend = FakeBackend(fault=always(ServerLoading("503")))
    async with Scheduler(backend, config(on_failure="noop")) as scheduler:
        completion = await scheduler.submit(question(max_retries=2))
    assert completion.error is not None
    assert completion.attempts == 13


async def test_a_server_that_does_not_come_back_fails_the_request() -> None:
    class Gone(FakeBackend):
        async def wait_ready(self) -> None:
            await anyio.sleep(3)
            raise BackendUnavailable("no server at http://127.0.0.1:1")

    backend = Gone(fault=always(ConnectionFailed("refused"), "agent-001"))
    async with Scheduler(backend, config(on_failure="noop")) as scheduler:
        completions = await scheduler.run_step(questions(3))
        assert scheduler.idle
    assert [completion.ok for completion in completions] == [True, False, True]
    assert completions[1].error is not None
    assert isinstance(completions[1].error.__cause__, BackendUnavailable)
    assert completions[1].attempts == 1


@pytest.mark.parametrize("on_failure", ["abort", "noop"])
async def test_an_empty_retry_budget_ends_the_run(on_failure: str) -> None:
    backend = FakeBackend(slots=2, fault=always(ServerFault("500"), "agent-001", "agent-003"))
    settings = config(retry_budget=3, on_failure=on_failure)
    async with Scheduler(backend, settings) as scheduler:
        with pytest.raises(RetryBudgetExhausted) as caught:
            await scheduler.run_step(questions(10, max_retries=10))
        assert "all 3 retries" in str(caught.value)
        assert scheduler.stats.retries == 3
        await scheduler.drain()
        with pytest.raises(RetryBudgetExhausted):
            await scheduler.submit(question())
    assert backend.in_flight == 0


async def test_an_empty_retry_budget_ends_every_step() -> None:
    ended: list[str] = []

    async def step(scheduler: Scheduler, requests: list[Request]) -> None:
        with pytest.raises(RetryBudgetExhausted):
            await scheduler.run_step(requests)
        ended.append(requests[0].kind)

    backend = FakeBackend(
        slots=4, delay=lambda *_: 1.0, fault=always(ServerFault("500"), "agent-000", "agent-001")
    )
    async with Scheduler(backend, config(retry_budget=1)) as scheduler:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(step, scheduler, questions(5))
            tasks.start_soon(step, scheduler, questions(50, kind="other"))
        assert sorted(ended) == ["act", "other"]
        await scheduler.drain()


# --- re-asks


GOOD = '{"action": "wait", "price": 3}'


async def test_a_broken_answer_is_asked_again_with_another_seed() -> None:
    backend = TextBackend("I'd rather talk.", '{"action": "dance", "price": 1}', GOOD)
    request = question(schema=SCHEMA)
    async with Scheduler(backend) as scheduler:
        completion = await scheduler.submit(request)
    assert completion.ok
    assert completion.text == GOOD
    assert [answer.reask for answer in completion.answers] == [0, 1, 2]
    assert backend.seeds == [request_seed(request, n) for n in range(3)]
    assert [a.seed for a in completion.answers] == backend.seeds
    assert len(set(backend.seeds)) == 3
    assert scheduler.stats.reasks == 2


@pytest.mark.parametrize("max_reasks", [0, 3])
async def test_reasks_are_bounded(max_reasks: int) -> None:
    backend = TextBackend("never")
    async with Scheduler(backend, config(max_reasks=max_reasks)) as scheduler:
        completion = await scheduler.submit(question(schema=SCHEMA))
    assert len(completion.answers) == len(backend.seeds) == max_reasks + 1
    assert completion.answers[-1].outcome is Outcome.INVALID
    assert completion.error is None
    assert not completion.ok
    assert completion.text == "never"
    assert scheduler.stats.invalid == 1


async def test_each_reask_has_its_own_attempts() -> None:
    class Stubborn(TextBackend):
        async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
            self.calls += 1
            if self.calls % 2:
                raise ServerFault("500")
            return await super().generate(request, seed=seed, slot=slot)

    request = question(schema=SCHEMA, max_retries=1)
    async with Scheduler(Stubborn("no", "no", GOOD)) as scheduler:
        completion = await scheduler.submit(request)
    assert completion.ok
    assert completion.attempts == 6
    assert [answer.seed for answer in completion.answers] == [
        request_seed(request, n) for n in range(3)
    ]


async def test_schemas_are_not_checked_when_switched_off() -> None:
    async with Scheduler(TextBackend("never"), config(structured_output=False)) as scheduler:
        completion = await scheduler.submit(question(schema=SCHEMA))
    assert completion.ok


async def test_answers_before_a_failure_stay_in_the_completion() -> None:
    class Broken(TextBackend):
        async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
            if self.seeds:
                raise RequestRejected("enough")
            return await super().generate(request, seed=seed, slot=slot)

    async with Scheduler(Broken("no"), config(on_failure="noop")) as scheduler:
        completion = await scheduler.submit(question(schema=SCHEMA))
    assert len(completion.answers) == 1
    assert completion.error is not None
