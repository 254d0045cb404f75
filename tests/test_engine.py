"""What the engine promises of order, slots, deadlines and a bounded queue."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from itertools import pairwise

import anyio
import pytest
from anyio.lowlevel import checkpoint

from scheduler.backends.base import RawAnswer
from scheduler.backends.fake import FakeBackend
from scheduler.engine import Scheduler
from scheduler.errors import (
    AttemptError,
    AttemptTimeout,
    ConfigError,
    RequestFailed,
    RequestRejected,
    StepAborted,
)
from scheduler.types import FinishReason, Request
from tests.doubles import TracingBackend, always, config, random_delays
from tests.questions import SCHEMA, names, names_of, question, questions, transcript

pytestmark = pytest.mark.virtual_time


# --- order and bytes


async def test_completions_come_in_the_order_of_the_requests() -> None:
    backend = FakeBackend(slots=4, delay=lambda r, _: 10.0 - int(r.agent_id[-1]))
    async with Scheduler(backend) as scheduler:
        completions = await scheduler.run_step(questions(10))
    assert names(completions) == [f"agent-{i:03d}" for i in range(10)]
    assert all(completion.ok for completion in completions)


@pytest.mark.parametrize("slots", [1, 4, 16])
@pytest.mark.parametrize("max_batch", [1, 16])
async def test_bytes_do_not_depend_on_delays_slots_or_window(slots: int, max_batch: int) -> None:
    requests = questions(9, systems=3) + questions(2, kind="accept", schema=SCHEMA)
    async with Scheduler(FakeBackend(slots=1), config(max_batch=1)) as scheduler:
        expected = transcript(await scheduler.run_step(requests))
    first = 0 if anyio.get_cancelled_exc_class().__module__.startswith("trio") else 1
    for seed in range(first, 200, 2):  # half of the seeds on each event loop
        backend = FakeBackend(slots=slots, delay=random_delays(seed))
        async with Scheduler(backend, config(max_batch=max_batch)) as scheduler:
            got = transcript(await scheduler.run_step(requests))
        assert got == expected, f"delays of seed {seed}: random_delays({seed})"
        assert backend.max_in_flight <= slots


async def test_an_empty_step_is_over_at_once() -> None:
    async with Scheduler(FakeBackend()) as scheduler:
        assert await scheduler.run_step([]) == []
        assert scheduler.idle


async def test_equal_requests_are_all_answered() -> None:
    async with Scheduler(FakeBackend()) as scheduler:
        first, second = await scheduler.run_step([question(), question()])
    assert first.text == second.text


async def test_repr_states_the_facts() -> None:
    backend = FakeBackend(slots=2, delay=lambda *_: 1.0)
    async with Scheduler(backend) as scheduler, anyio.create_task_group() as tasks:
        tasks.start_soon(scheduler.run_step, questions(20))
        await anyio.sleep(0.5)
        assert repr(scheduler) == (
            "<Scheduler [<Lane default: 2 of 2 slots busy, 0 returning, 14 planned, 4 queued>]>"
        )
        assert repr(scheduler.lanes["default"].queue) == "<FairQueue 4 waiting, 1 tenants>"
        assert scheduler.info["default"].slots == 2


# --- slots


async def test_a_freed_slot_takes_the_next_request_at_once() -> None:
    backend = TracingBackend(slots=3, delay=lambda r, _: 1.0 + int(r.agent_id[-3:]) % 7)
    async with Scheduler(backend) as scheduler:
        await scheduler.run_step(questions(40))
    gaps = zip(sorted(backend.started)[3:], sorted(backend.ended), strict=False)
    assert all(start[0] == end[0] for start, end in gaps)
    assert backend.max_in_flight == 3


async def test_each_slot_runs_one_request_at_a_time() -> None:
    backend = TracingBackend(slots=3, delay=random_delays(1))
    async with Scheduler(backend, config(slots=2)) as scheduler:
        await scheduler.run_step(questions(30))
    assert {slot for _, _, slot in backend.started} == {0, 1}
    assert backend.max_in_flight == 2
    assert scheduler.stats.max_in_flight == 2


async def test_more_slots_than_the_backend_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"slots is 5, but backend 'default' \(fake\) has 4"):
        async with Scheduler(FakeBackend(slots=4), config(slots=5)):
            pytest.fail("opened")


async def test_a_task_serves_one_request_after_the_other() -> None:
    class Who(FakeBackend):
        def __init__(self) -> None:
            super().__init__(slots=3)
            self.tasks: set[str | None] = set()

        async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
            me.set(me.get(request.agent_id))  # kept by the task that runs here
            self.tasks.add(me.get())
            return await super().generate(request, seed=seed, slot=slot)

    me: ContextVar[str] = ContextVar("me")
    backend = Who()
    async with Scheduler(backend) as scheduler:
        await scheduler.run_step(questions(50))
    assert backend.tasks == {"agent-000", "agent-001", "agent-002"}


async def test_a_backend_that_never_waits_leaves_the_loop_to_others() -> None:
    class Eager(FakeBackend):
        async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
            self.calls += 1
            return RawAnswer("at once", FinishReason.STOP)

    backend = Eager(slots=2)
    async with Scheduler(backend) as scheduler, anyio.create_task_group() as tasks:
        tasks.start_soon(scheduler.run_step, questions(100))
        while backend.calls < 10:  # each look is a turn of the loop
            await checkpoint()
        assert backend.calls < 90
        tasks.cancel_scope.cancel()
    assert backend.calls < 100


async def test_requests_of_one_prefix_group_stay_together() -> None:
    backend = TracingBackend(slots=2, delay=lambda *_: 1.0)
    async with Scheduler(backend) as scheduler:
        await scheduler.run_step(questions(16, systems=2))
    kinds = {
        slot: [int(a[-3:]) % 2 for _, a, at in backend.started if at == slot] for slot in (0, 1)
    }
    assert all(len(set(kind)) == 1 for kind in kinds.values())


@pytest.mark.parametrize("max_batch", [1, 4, 16])
async def test_no_request_waits_longer_than_its_window(max_batch: int) -> None:
    backend = TracingBackend(slots=2, delay=random_delays(7))
    requests = questions(48, systems=5)
    async with Scheduler(backend, config(max_batch=max_batch)) as scheduler:
        await scheduler.run_step(requests)
    window = {request.agent_id: i // max_batch for i, request in enumerate(requests)}
    starts = [
        [at for at, agent, _ in backend.started if window[agent] == number]
        for number in range(48 // max_batch)
    ]
    assert all(max(one) <= min(next_) for one, next_ in pairwise(starts))


# --- deadlines


async def test_deadline_counts_from_dispatch_and_not_from_the_queue() -> None:
    backend = FakeBackend(slots=1, delay=lambda *_: 0.9)
    requests = questions(120, timeout_s=1.0)
    async with Scheduler(backend) as scheduler:
        completions = await scheduler.run_step(requests)
    assert anyio.current_time() >= 100
    assert all(completion.ok and completion.attempts == 1 for completion in completions)
    assert backend.calls == 120
    assert max(c.answers[0].timings.queue_ms for c in completions) == pytest.approx(119 * 900)


async def test_an_attempt_ends_at_its_deadline_and_is_tried_again() -> None:
    backend = TracingBackend(slots=1, delay=lambda _, attempt: 60.0 if attempt == 1 else 0.1)
    async with Scheduler(backend) as scheduler:
        completion = await scheduler.submit(question(timeout_s=2.0))
    assert completion.ok
    assert completion.attempts == 2
    assert backend.ended[0][0] - backend.started[0][0] == pytest.approx(2.0)


async def test_a_hanging_backend_ends_in_a_timeout_error() -> None:
    backend = FakeBackend(delay=lambda *_: 1e9)
    async with Scheduler(backend, config(on_failure="noop")) as scheduler:
        completion = await scheduler.submit(question(timeout_s=2.0, max_retries=1))
    assert isinstance(completion.error, RequestFailed)
    assert isinstance(completion.error.__cause__, AttemptTimeout)
    assert "no answer within 2 s of dispatch" in str(completion.error)
    assert (completion.attempts, completion.error.attempts) == (2, 2)
    with pytest.raises(RequestFailed):
        _ = completion.text


async def test_a_backends_own_timeout_error_is_not_taken_for_the_deadline() -> None:
    def fault(*_: object) -> AttemptError | None:
        raise TimeoutError("mine")

    async with Scheduler(FakeBackend(fault=fault), config(on_failure="noop")) as scheduler:
        completion = await scheduler.submit(question())
    assert completion.error is not None
    assert type(completion.error.__cause__) is TimeoutError
    assert "mine" in str(completion.error)


# --- several backends


async def test_several_backends_serve_one_step_of_which_one_fails() -> None:
    backends = {
        "quick": FakeBackend(slots=4, delay=lambda *_: 0.1),
        "slow": FakeBackend(slots=1, delay=lambda *_: 2.0),
        "broken": FakeBackend(fault=always(RequestRejected("no"))),
    }
    requests = [question(i, backend=list(backends)[i % 3]) for i in range(12)]
    async with Scheduler(backends, config(on_failure="noop")) as scheduler:
        completions = await scheduler.run_step(requests)
    assert names(completions) == names_of(12)
    assert [completion.ok for completion in completions] == [i % 3 != 2 for i in range(12)]


async def test_abort_withdraws_from_all_backends() -> None:
    backends = {
        "slow": FakeBackend(slots=1, delay=lambda *_: 2.0),
        "broken": FakeBackend(fault=always(RequestRejected("no"))),
    }
    requests = [question(i, backend=("slow", "broken")[i == 9]) for i in range(10)]
    async with Scheduler(backends) as scheduler:
        with pytest.raises(StepAborted) as caught:
            await scheduler.run_step(requests)
        assert scheduler.idle
    assert backends["slow"].calls == 1
    assert caught.value.answered == 1


async def test_one_full_queue_does_not_keep_another_backend_waiting() -> None:
    backends = {
        "quick": TracingBackend(slots=1, delay=lambda *_: 0.1),
        "slow": FakeBackend(slots=1, delay=lambda *_: 5.0),
    }
    requests = [question(i, backend="slow" if i else "quick") for i in range(8)]
    async with Scheduler(backends, config(queue_limit=2, max_batch=1)) as scheduler:
        began = anyio.current_time()
        await scheduler.run_step(requests)
    assert backends["quick"].started[0][0] == began  # type: ignore[attr-defined] # a union


async def test_an_unknown_backend_is_named_with_those_there_are() -> None:
    async with Scheduler({"a": FakeBackend(), "b": FakeBackend()}) as scheduler:
        with pytest.raises(ConfigError) as caught:
            await scheduler.run_step([question(backend="a"), question("zoe", backend="c")])
        assert scheduler.idle
    assert str(caught.value) == "zoe act (epoch 0, step 0): no backend 'c'; has: a, b"


# --- back-pressure


@pytest.mark.parametrize("max_batch", [1, 2, 16])
@pytest.mark.parametrize("slots", [1, 2, 30])
async def test_a_step_longer_than_the_queue_waits_for_room(slots: int, max_batch: int) -> None:
    for seed in range(5):
        backend = FakeBackend(slots=slots, delay=random_delays(seed))
        async with Scheduler(backend, config(queue_limit=3, max_batch=max_batch)) as scheduler:
            completions = await scheduler.run_step(questions(20, systems=2))
        assert names(completions) == names_of(20)
        assert backend.calls == 20


async def test_two_steps_share_a_short_queue() -> None:
    results: Mapping[str, list[list[str]]] = {"act": [], "other": []}

    async def step(scheduler: Scheduler, kind: str) -> None:
        results[kind].append(names(await scheduler.run_step(questions(20, kind=kind))))

    for seed in range(20):
        backend = FakeBackend(slots=2, delay=random_delays(seed))
        async with Scheduler(backend, config(queue_limit=3)) as scheduler:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(step, scheduler, "act")
                tasks.start_soon(step, scheduler, "other")
            assert scheduler.idle
    assert all(result == [names_of(20)] * 20 for result in results.values())


async def test_a_failure_ends_a_step_that_waits_for_room() -> None:
    backend = FakeBackend(
        slots=1, delay=lambda *_: 1.0, fault=always(RequestRejected("no"), "agent-000")
    )
    async with Scheduler(backend, config(queue_limit=1, max_batch=1)) as scheduler:
        with pytest.raises(StepAborted):
            await scheduler.run_step(questions(20))
        assert scheduler.idle
    assert backend.calls == 1


async def test_submit_runs_requests_side_by_side() -> None:
    got: dict[int, str] = {}

    async def ask(scheduler: Scheduler, i: int) -> None:
        got[i] = (await scheduler.submit(question(i))).request.agent_id

    backend = FakeBackend(slots=8, delay=lambda *_: 1.0)
    async with Scheduler(backend) as scheduler:
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for i in range(32):
                tasks.start_soon(ask, scheduler, i)
        assert anyio.current_time() - began == pytest.approx(4.0)
    assert got == dict(enumerate(names_of(32)))
    assert backend.max_in_flight == 8
