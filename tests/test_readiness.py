"""Who finds out whether a server is back, and what a request meets while it is gone."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from scheduler.backends.fake import FakeBackend
from scheduler.engine import Scheduler
from scheduler.errors import (
    BackendUnavailable,
    ConnectionFailed,
    RequestFailed,
    RunEndingError,
    SchedulerError,
)
from scheduler.readiness import Readiness
from scheduler.types import Request
from tests.doubles import NoLog, TracingBackend, config
from tests.questions import question, questions

pytestmark = pytest.mark.virtual_time

PATIENCE_S = 120.0
LOOK_S = 5.0


class Outage(TracingBackend):
    """A backend that is gone between two moments, and looked for as the protocol says."""

    def __init__(self, begins_s: float, ends_s: float, **options: Any) -> None:
        super().__init__(fault=self._refused, **options)
        self._begins_s = begins_s
        self.ends_s = ends_s
        self._given_up = False
        self.asking = 0

    @property
    def gone(self) -> bool:
        return self._begins_s <= anyio.current_time() - self.epoch < self.ends_s

    async def start(self) -> Any:
        self.epoch = anyio.current_time()
        return await super().start()

    def _refused(self, request: Request, attempt: int) -> ConnectionFailed | None:
        return ConnectionFailed("refused") if self.gone else None

    async def wait_ready(self) -> None:
        assert self.asking == 0, "asked by two at once"
        self.asking += 1
        self.waits_for_ready += 1
        until = anyio.current_time() + (LOOK_S if self._given_up else PATIENCE_S)
        try:
            while self.gone:
                if anyio.current_time() >= until:
                    self._given_up = True
                    raise BackendUnavailable("nobody there")
                await anyio.sleep(0.1)
            self._given_up = False
        finally:
            self.asking -= 1


class Told(NoLog):
    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def info(self, event: str, **fields: Any) -> None:
        if event.startswith("backend."):
            self.events.append((event, fields["backend"]))

    warning = info

    def lost(self, backend: str, error: SchedulerError) -> None:
        self.events.append(("lost", backend))

    def back(self, backend: str) -> None:
        self.events.append(("back", backend))


async def test_one_request_asks_and_the_others_wait_for_what_it_finds() -> None:
    backend = Outage(0.0, 7.0, slots=8)
    async with Scheduler(backend) as scheduler:
        completions = await scheduler.run_step(questions(8, max_retries=1))
    assert all(completion.ok for completion in completions)
    assert backend.waits_for_ready == 1
    assert {completion.attempts for completion in completions} == {2}


async def test_an_outage_costs_only_those_an_attempt_that_were_under_way() -> None:
    backend = Outage(0.0, 7.0, slots=4)
    async with Scheduler(backend, config(retry_budget=4)) as scheduler:
        completions = await scheduler.run_step(questions(100, max_retries=1))
    attempts = [completion.attempts for completion in completions]
    assert (attempts.count(2), attempts.count(1)) == (4, 96)


async def test_a_request_without_retries_leaves_a_doubt_for_the_next_one() -> None:
    backend = Outage(0.0, 7.0, slots=1)
    async with Scheduler(backend, config(on_failure="noop")) as scheduler:
        completions = await scheduler.run_step(questions(3, max_retries=0))
    assert [completion.ok for completion in completions] == [False, True, True]
    assert backend.waits_for_ready == 1


async def test_a_missed_deadline_leaves_a_doubt_too() -> None:
    backend = TracingBackend(1, delay=lambda request, _: 1e9 if "000" in request.agent_id else 1.0)
    async with Scheduler(backend, config(on_failure="noop")) as scheduler:
        completions = await scheduler.run_step(questions(3, max_retries=0, timeout_s=5.0))
    assert [completion.ok for completion in completions] == [False, True, True]
    assert backend.waits_for_ready == 1


async def test_doubt_that_comes_while_one_asks_is_not_cleared_by_the_answer() -> None:
    backend = Outage(0.0, 0.0)
    await backend.start()
    readiness = Readiness("default", backend)
    readiness.doubt()
    backend.ends_s = 3.0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(readiness.wait, Told())
        await anyio.sleep(1)
        readiness.doubt()
    assert backend.waits_for_ready == 2
    assert not readiness.in_doubt
    await readiness.wait(Told())
    assert backend.waits_for_ready == 2


async def test_who_waits_takes_over_from_one_that_is_cancelled() -> None:
    backend = Outage(0.0, 7.0, slots=2)
    async with Scheduler(backend) as scheduler:
        with anyio.move_on_after(3):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(scheduler.submit, question("first"))
                await anyio.sleep(2)
                assert backend.asking == 1
                tasks.start_soon(survive, scheduler)
        completion = await scheduler.submit(question("last"))
        assert completion.ok
        assert scheduler.idle
    assert anyio.current_time() - backend.epoch < PATIENCE_S


async def survive(scheduler: Scheduler) -> None:
    with anyio.CancelScope(shield=True):
        assert (await scheduler.submit(question("second"))).ok


async def test_requests_fail_soon_while_a_server_is_known_to_be_gone() -> None:
    backend, told = Outage(0.0, 1000.0, slots=2), Told()
    async with Scheduler(backend, config(on_failure="noop"), log=told) as scheduler:
        began = anyio.current_time()
        first = await scheduler.run_step(questions(2))
        waited_s = anyio.current_time() - began
        assert PATIENCE_S <= waited_s < PATIENCE_S + 2
        calls, began = backend.calls, anyio.current_time()
        later = await scheduler.run_step(questions(6, step=1))
        assert anyio.current_time() - began <= 3 * (LOOK_S + 0.1)
        assert backend.calls == calls, "sent to a server that was known to be gone"
        assert {completion.attempts for completion in later} == {0}
        assert [isinstance(one.error, RequestFailed) for one in first + later] == [True] * 8
        await anyio.sleep(1000)
        back = await scheduler.run_step(questions(6, step=2))
    assert all(completion.ok and completion.attempts == 1 for completion in back)
    assert told.events == [("backend.lost", "default"), ("backend.back", "default")]


async def test_a_step_that_fails_does_not_wait_for_a_server_that_is_gone() -> None:
    backend = Outage(0.5, 1e9, slots=2, delay=lambda request, _: 1.0)
    async with Scheduler(backend, config(queue_limit=100)) as scheduler:
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_end_later, scheduler)
            with pytest.raises(RunEndingError):
                await scheduler.run_step(questions(20))
        assert anyio.current_time() - began == pytest.approx(10)
        await scheduler.drain()
        assert anyio.current_time() - began == pytest.approx(10)
        with pytest.raises(RunEndingError):
            await scheduler.submit(question())


async def _end_later(scheduler: Scheduler) -> None:
    await anyio.sleep(10)
    scheduler.end(RunEndingError("that is all"))


async def test_one_lost_backend_does_not_touch_another() -> None:
    gone, well = Outage(0.0, 1e9), FakeBackend()
    settings = config(on_failure="noop")
    async with Scheduler({"gone": gone, "well": well}, settings) as scheduler:
        await scheduler.submit(question("a", backend="gone"))
        began = anyio.current_time()
        completion = await scheduler.submit(question("b", backend="well"))
    assert completion.ok
    assert anyio.current_time() == began
