"""How a request that failed for good ends its step, its run, or nothing else."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from scheduler.backends.fake import FakeBackend
from scheduler.engine import Scheduler
from scheduler.errors import (
    AttemptError,
    ConnectionFailed,
    MalformedAnswer,
    RequestRejected,
    RetryBudgetExhausted,
    RunEndingError,
    SchedulerClosed,
    ServerBusy,
    ServerFault,
    StepAborted,
)
from scheduler.types import OutputSchema, Request
from tests.doubles import TracingBackend, always, config, random_delays
from tests.questions import names, names_of, question, questions

pytestmark = pytest.mark.virtual_time


async def test_abort_finishes_what_is_in_flight_and_withdraws_the_rest() -> None:
    backend = TracingBackend(
        slots=3,
        delay=lambda r, _: 1.0 if r.agent_id == "agent-001" else 4.0,
        fault=always(RequestRejected("refused"), "agent-001"),
    )
    async with Scheduler(backend) as scheduler:
        with pytest.raises(StepAborted) as caught:
            await scheduler.run_step(questions(10))
        assert scheduler.idle
        assert anyio.current_time() == pytest.approx(max(end for end, _, _ in backend.ended))
        completion = await scheduler.submit(question(9))
        assert completion.ok
    assert backend.calls == 4
    assert caught.value.answered == 2
    assert [error.attempts for error in caught.value.failures] == [1]
    assert str(caught.value) == (
        "agent-001 act (epoch 0, step 0) failed after 1 attempt: refused. 2 of 10 requests of the "
        "step were answered. To go on when a request fails for good, set scheduler.on_failure to "
        "noop"
    )


async def test_in_an_aborted_step_nobody_waits_for_a_backend_that_is_gone() -> None:
    """One request ends the step, one loses the backend, one would then be asked again."""
    ends = {"agent-000": 1.0, "agent-001": 2.0, "agent-002": 3.0}
    faults = {"agent-000": RequestRejected("refused"), "agent-001": ConnectionFailed("gone")}
    backend = TracingBackend(
        slots=3,
        delay=lambda r, _: ends[r.agent_id],
        fault=lambda r, _: faults.get(r.agent_id),
    )
    never_valid = OutputSchema("z", {"type": "string", "pattern": "^z$"})
    async with Scheduler(backend) as scheduler:
        with pytest.raises(StepAborted, match=r"agent-000 .* refused"):
            await scheduler.run_step(questions(3, schema=never_valid))
        assert scheduler.idle
        assert anyio.current_time() == pytest.approx(3.0)
    assert (backend.calls, backend.waits_for_ready) == (3, 0)


async def test_abort_names_the_failures_in_the_order_of_the_requests() -> None:
    backend = FakeBackend(
        slots=3,
        delay=lambda r, _: 9.0 - int(r.agent_id[-1]),
        fault=always(RequestRejected("no")),
    )
    async with Scheduler(backend) as scheduler:
        with pytest.raises(StepAborted) as caught:
            await scheduler.run_step(questions(8))
    assert [str(f).split()[0] for f in caught.value.failures] == [f"agent-00{i}" for i in range(3)]
    assert "(and 2 more). 0 of 8" in str(caught.value)


async def test_abort_tries_nothing_again() -> None:
    backend = FakeBackend(
        slots=2,
        delay=lambda r, _: 1.0 + int(r.agent_id[-1]),
        fault=lambda r, _: (
            RequestRejected("no") if r.agent_id.endswith("0") else ServerFault("500")
        ),
    )
    async with Scheduler(backend) as scheduler:
        with pytest.raises(StepAborted) as caught:
            await scheduler.run_step(questions(2))
        assert backend.calls == 2
        assert len(caught.value.failures) == 1
        assert scheduler.idle


async def test_abort_withdraws_what_pauses_between_attempts() -> None:
    backend = FakeBackend(
        slots=2,
        delay=lambda r, _: 1.0 + int(r.agent_id[-1]),
        fault=lambda r, _: (
            ServerBusy("429", 20) if r.agent_id.endswith("0") else RequestRejected("")
        ),
    )
    async with Scheduler(backend) as scheduler:
        start = anyio.current_time()
        with pytest.raises(StepAborted):
            await scheduler.run_step(questions(2))
        assert anyio.current_time() - start == pytest.approx(2.0)
        assert scheduler.idle


async def test_abort_of_one_step_leaves_another_alone() -> None:
    backend = FakeBackend(
        slots=2, delay=random_delays(3), fault=always(RequestRejected("no"), "agent-005")
    )
    results: list[Any] = []

    async def step(scheduler: Scheduler, requests: list[Request]) -> None:
        try:
            results.append(names(await scheduler.run_step(requests)))
        except StepAborted as exc:
            results.append(len(exc.failures))

    async with Scheduler(backend) as scheduler, anyio.create_task_group() as tasks:
        tasks.start_soon(step, scheduler, questions(10))
        tasks.start_soon(step, scheduler, questions(5, kind="other"))
    assert 1 in results
    assert names_of(5) in results


async def test_noop_puts_the_error_into_the_completion() -> None:
    backend = FakeBackend(fault=always(RequestRejected("no"), "agent-003", "agent-004"))
    async with Scheduler(backend, config(on_failure="noop")) as scheduler:
        completions = await scheduler.run_step(questions(8))
    assert [completion.error is None for completion in completions] == [
        i not in (3, 4) for i in range(8)
    ]
    assert scheduler.stats.failures == 2
    assert scheduler.stats.answered_ok == 6
    assert names(completions) == names_of(8)


async def test_a_defect_of_a_backend_fails_its_request_and_hangs_nobody() -> None:
    def fault(request: Request, _: int) -> AttemptError | None:
        return {"agent-001": None}[request.agent_id]

    async with Scheduler(FakeBackend(fault=fault), config(on_failure="noop")) as scheduler:
        completions = await scheduler.run_step(questions(3))
    assert [completion.ok for completion in completions] == [False, True, False]
    assert completions[0].error is not None
    assert isinstance(completions[0].error.__cause__, KeyError)


async def test_an_error_without_words_is_named_by_its_type() -> None:
    backend = FakeBackend(fault=always(MalformedAnswer()))
    async with Scheduler(backend, config(on_failure="noop")) as scheduler:
        completion = await scheduler.submit(question(max_retries=1))
    assert str(completion.error).endswith("failed after 2 attempts: MalformedAnswer")


async def test_a_backend_that_cancels_itself_shortens_no_result() -> None:
    def fault(request: Request, _: int) -> AttemptError | None:
        if request.agent_id == "agent-001":
            raise anyio.get_cancelled_exc_class()
        return None

    async with Scheduler(FakeBackend(slots=1, fault=fault)) as scheduler:
        if anyio.get_cancelled_exc_class().__module__.startswith("trio"):
            return  # trio lets nobody make a Cancelled
        with pytest.raises(SchedulerClosed) as caught:
            await scheduler.run_step(questions(5))
        assert "agent-001 act (epoch 0, step 0) was cancelled from outside" in str(caught.value)
        assert scheduler.idle


async def test_what_is_in_flight_when_a_run_ends_is_finished_and_kept() -> None:
    backend = TracingBackend(slots=3, delay=lambda *_: 2.0)
    async with Scheduler(backend) as scheduler, anyio.create_task_group() as tasks:

        async def step() -> None:
            with pytest.raises(RunEndingError, match="enough"):
                await scheduler.run_step(questions(9))

        tasks.start_soon(step)
        await anyio.sleep(1.0)
        began = anyio.current_time()
        scheduler.end(RunEndingError("enough"))
        await scheduler.drain()
        assert anyio.current_time() - began == pytest.approx(1.0)
        assert (backend.calls, scheduler.stats.answered_ok) == (3, 3)


async def test_a_run_ends_with_the_error_that_came_first() -> None:
    ended: list[str] = []

    async def patient(scheduler: Scheduler) -> None:
        with pytest.raises(RetryBudgetExhausted):
            await scheduler.submit(question("patient", timeout_s=1e9))
        ended.append("patient")

    backend = FakeBackend(
        delay=lambda r, _: 1e6 if r.agent_id == "patient" else 1.0,
        fault=always(ServerFault("500")),
    )
    scheduler = Scheduler(backend, config(retry_budget=0))

    async def owner() -> None:
        async with scheduler:
            tasks.start_soon(patient, scheduler)
            await anyio.sleep(1.0)
            await scheduler.submit(question("hasty"))

    async with anyio.create_task_group() as tasks:
        with pytest.raises(RetryBudgetExhausted):
            await owner()
    assert ended == ["patient"]
    assert scheduler.idle
    with pytest.raises(RetryBudgetExhausted):
        await scheduler.submit(question())
