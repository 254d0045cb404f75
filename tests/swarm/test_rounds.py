"""Rounds: what goes to the scheduler together, and who gets which answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import anyio.to_thread
import pytest

from scheduler.backends.fake import FakeBackend
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import ConfigError, RequestRejected, SchedulerError, StepAborted
from scheduler.types import Completion, Message, Request
from swarm_integration.rounds import Job, Phase, RequestMaker, Rounds
from tests.swarm.simulations import on_loop

Coro = Coroutine[Any, Any, Any]


class Recorder(Scheduler):
    """A scheduler that remembers who asked in which step."""

    def __init__(self, backend: FakeBackend | None = None, **settings: Any) -> None:
        super().__init__(backend or FakeBackend(4), SchedulerConfig(**settings))
        self.steps: list[list[str]] = []
        self.requests: list[Request] = []

    async def run_step(self, requests: Sequence[Request]) -> list[Completion]:
        self.steps.append([request.agent_id for request in requests])
        self.requests.extend(requests)
        return await super().run_step(requests)


def maker(agent: str, kind: str = "act", text: str = "") -> RequestMaker:
    def make(ordinal: int) -> Request:
        return Request(agent, (Message("user", text or agent),), kind=kind, ordinal=ordinal)

    return make


class Table:
    """Rounds and what the agents around them need."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.rounds = Rounds(scheduler)

    async def ask(self, agent: str, kind: str = "act") -> str:
        return (await self.rounds.ask(agent, kind, maker(agent, kind))).request.agent_id

    def ask_blocking(self, agent: str) -> str:
        return self.rounds.ask_blocking(agent, "act", maker(agent)).request.agent_id

    async def play(self, *runs: Callable[[], Coro]) -> Phase:
        return await self.rounds.play([Job(run) for run in runs])


def played(main: Callable[[Table], Coro], recorder: Recorder | None = None) -> tuple[Any, Recorder]:
    """Run `main` with an open scheduler; return its result and the scheduler."""
    scheduler = recorder or Recorder()

    async def with_scheduler() -> Any:
        async with scheduler:
            result = await main(Table(scheduler))
            assert scheduler.idle
            return result

    return on_loop(with_scheduler), scheduler


def test_round_waits_until_every_participant_waits_or_has_finished() -> None:
    async def main(table: Table) -> list[Any]:
        async def late() -> str:
            for _ in range(100):
                await asyncio.sleep(0)
            return await table.ask("late")

        async def silent() -> str:
            return "silent"

        return (await table.play(late, silent, lambda: table.ask("early"))).results

    results, recorder = played(main)
    assert results == ["late", "silent", "early"]
    assert recorder.steps == [["late", "early"]]


def test_round_waits_for_a_participant_that_waits_for_something_else_first() -> None:
    async def main(table: Table) -> None:
        async def slow() -> str:
            await asyncio.sleep(0.005)
            return await table.ask("slow")

        async def slower() -> str:
            await asyncio.sleep(0.01)
            return await table.ask("slower")

        await table.play(slower, lambda: table.ask("quick"), slow)

    _, recorder = played(main)
    assert recorder.steps == [["slower", "quick", "slow"]]


def test_no_question_no_round() -> None:
    async def main(table: Table) -> tuple[Phase, int]:
        async def silent() -> str:
            await asyncio.sleep(0.001)
            return "done"

        return await table.play(silent, silent), table.rounds.played

    (phase, count), recorder = played(main)
    assert (phase.results, phase.completions, count) == (["done", "done"], [], 0)
    assert recorder.steps == []


def test_stages_of_a_council_are_rounds_that_others_do_not_hold_up() -> None:
    async def main(table: Table) -> list[Any]:
        async def council() -> str:
            for _ in range(2):
                members = [asyncio.wait_for(table.ask(f"c{n}"), 30) for n in range(3)]
                await asyncio.gather(*members)
            return await asyncio.wait_for(table.ask("c0"), 60)

        return (await table.play(council, lambda: table.ask("x"))).results

    results, recorder = played(main)
    assert results == ["c0", "x"]
    assert recorder.steps == [["c0", "c1", "c2", "x"], ["c0", "c1", "c2"], ["c0"]]


def test_completions_stand_by_participant_then_by_order_of_asking() -> None:
    async def main(table: Table) -> list[str]:
        async def twice() -> None:
            await asyncio.sleep(0.002)
            await table.ask("a", "first")
            await table.ask("a", "second")

        phase = await table.play(twice, lambda: table.ask("b", "only"))
        return [f"{c.request.agent_id} {c.request.kind}" for c in phase.completions]

    assert played(main)[0] == ["a first", "a second", "b only"]


def test_answers_are_handed_out_in_order_whatever_comes_back_first() -> None:
    resumed: list[str] = []

    async def main(table: Table) -> None:
        async def agent(name: str) -> None:
            await table.ask(name)
            resumed.append(name)

        await table.play(*(lambda n=n: agent(str(n)) for n in range(8)))

    backwards = FakeBackend(8, delay=lambda request, _: 0.008 - int(request.agent_id) / 1000)
    played(main, Recorder(backwards))
    assert resumed == [str(n) for n in range(8)]


class Segments:
    """Notes which blocking participant runs, and that no two do so at once."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.running = 0
        self.most = 0

    def note(self, name: str) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        time.sleep(0.003)
        self.seen.append(name)
        self.running -= 1


def test_blocking_participants_join_the_round_one_at_a_time_in_order() -> None:
    segments = Segments()

    async def main(table: Table) -> list[Any]:
        def think(name: str) -> str:
            segments.note(f"{name} before")
            answer = table.ask_blocking(name)
            segments.note(f"{name} after")
            return answer

        def blocking(name: str) -> Job:
            return Job(lambda: anyio.to_thread.run_sync(think, name), blocking=True)

        jobs = [blocking("t0"), Job(lambda: table.ask("x")), blocking("t1"), blocking("t2")]
        return (await table.rounds.play(jobs)).results

    results, recorder = played(main)
    assert results == ["t0", "x", "t1", "t2"]
    assert recorder.steps == [["t0", "x", "t1", "t2"]]
    assert segments.most == 1
    assert segments.seen == [f"t{n} {when}" for when in ("before", "after") for n in range(3)]


def test_blocking_participant_may_finish_without_asking() -> None:
    async def main(table: Table) -> list[Any]:
        quiet = Job(lambda: anyio.to_thread.run_sync(lambda: "quiet"), blocking=True)
        return (await table.rounds.play([quiet, Job(lambda: table.ask("x"))])).results

    assert played(main)[0] == ["quiet", "x"]


def test_what_a_participant_raises_ends_the_phase_and_leaves_no_task() -> None:
    freed = threading.Event()

    async def main(table: Table) -> None:
        async def broken() -> None:
            await table.ask("broken")
            raise ValueError("broken agent")

        async def asks_for_ever() -> None:
            while True:
                await table.ask("endless")

        def think() -> None:
            try:
                table.ask_blocking("thread")
                table.ask_blocking("thread")
            finally:
                freed.set()

        before = asyncio.all_tasks()
        jobs = [
            Job(asks_for_ever),
            Job(lambda: anyio.to_thread.run_sync(think), blocking=True),
            Job(broken),
        ]
        with pytest.raises(ValueError, match="broken agent"):
            await table.rounds.play(jobs)
        assert asyncio.all_tasks() == before

    _, recorder = played(main)
    assert freed.is_set()
    assert recorder.steps == [["endless", "thread", "broken"]]


def test_first_participant_in_order_says_why_the_phase_ended() -> None:
    async def main(table: Table) -> None:
        async def broken(name: str, turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            raise ValueError(name)

        with pytest.raises(ValueError, match="first"):
            await table.play(lambda: broken("first", 9), lambda: broken("second", 0))

    played(main)


def test_aborted_step_frees_blocked_threads_that_ask_again() -> None:
    refused: list[str] = []

    async def main(table: Table) -> None:
        def stubborn(name: str) -> str:
            for _ in range(3):
                try:
                    return table.ask_blocking(name)
                except BaseException as exc:  # noqa: BLE001 - the most stubborn agent there can be
                    refused.append(f"{name} {type(exc).__name__}")
            return "gave up"

        def blocking(name: str) -> Job:
            return Job(lambda: anyio.to_thread.run_sync(stubborn, name), blocking=True)

        before = asyncio.all_tasks()
        with pytest.raises(StepAborted, match="t1"):
            await table.rounds.play([blocking("t0"), blocking("t1"), Job(lambda: table.ask("x"))])
        assert asyncio.all_tasks() == before

    def fault(request: Request, attempt: int) -> RequestRejected | None:
        return RequestRejected("no") if request.agent_id == "t1" else None

    played(main, Recorder(FakeBackend(1, fault=fault)))
    assert sorted(refused) == ["t0 CancelledError"] * 3 + ["t1 CancelledError"] * 3


def test_cancelling_a_phase_leaves_no_task_and_no_thread_waiting() -> None:
    async def main(table: Table) -> None:
        before = asyncio.all_tasks()
        thread = Job(
            lambda: anyio.to_thread.run_sync(table.ask_blocking, "t"),
            blocking=True,
        )
        phase = asyncio.create_task(table.rounds.play([thread, Job(lambda: table.ask("x"))]))
        await asyncio.sleep(0.01)
        phase.cancel()
        with pytest.raises(asyncio.CancelledError):
            await phase
        assert asyncio.all_tasks() == before

    played(main, Recorder(FakeBackend(delay=lambda *_: 1000.0)))


def test_question_that_its_agent_gave_up_does_not_end_the_phase() -> None:
    async def main(table: Table) -> Phase:
        async def impatient() -> str:
            try:
                return await asyncio.wait_for(table.ask("impatient"), 0.002)
            except TimeoutError:
                return "gave up"

        return await table.play(impatient, lambda: table.ask("x"))

    phase, _ = played(main, Recorder(FakeBackend(delay=lambda *_: 0.01)))
    assert phase.results == ["gave up", "x"]
    assert [c.request.agent_id for c in phase.completions] == ["impatient", "x"]


def test_question_withdrawn_before_its_round_is_not_asked() -> None:
    async def main(table: Table) -> Phase:
        async def changes_its_mind() -> str:
            first = asyncio.create_task(table.ask("first"))
            await asyncio.sleep(0)
            first.cancel()
            return await table.ask("second")

        return await table.play(changes_its_mind)

    phase, recorder = played(main)
    assert recorder.steps == [["second"]]
    assert [c.request.agent_id for c in phase.completions] == ["second"]


def test_ordinals_count_per_agent_and_kind_within_a_step() -> None:
    async def main(table: Table) -> None:
        async def agent(name: str) -> None:
            await table.ask(name)
            await asyncio.gather(table.ask(name), table.ask(name, "accept"))

        table.rounds.start_step()
        await table.play(lambda: agent("a"), lambda: agent("b"))
        await table.play(lambda: table.ask("a", "accept"))
        table.rounds.start_step()
        await table.play(lambda: table.ask("a"))

    _, recorder = played(main)
    names = [(r.agent_id, r.kind, r.ordinal) for r in recorder.requests]
    assert names == [
        ("a", "act", 0),
        ("b", "act", 0),
        ("a", "act", 1),
        ("a", "accept", 0),
        ("b", "act", 1),
        ("b", "accept", 0),
        ("a", "accept", 1),
        ("a", "act", 0),
    ]


def test_thousand_participants_are_one_fast_round() -> None:
    async def main(table: Table) -> float:
        started = time.process_time()
        await table.play(*(lambda n=n: table.ask(f"agent-{n}") for n in range(1000)))
        return time.process_time() - started

    cpu_s, recorder = played(main, Recorder(FakeBackend(64)))
    assert [len(step) for step in recorder.steps] == [1000]
    assert cpu_s < 3


def test_asking_outside_of_a_phase_is_refused() -> None:
    async def main(table: Table) -> None:
        with pytest.raises(SchedulerError, match="outside of a simulation step"):
            await table.ask("a")

    played(main)


def test_asking_without_a_scheduler_is_refused() -> None:
    async def main() -> None:
        rounds = Rounds(None)
        job = Job(lambda: rounds.ask("a", "act", maker("a")))
        with pytest.raises(SchedulerError, match="no scheduler"):
            await rounds.play([job])

    on_loop(main)


def test_another_event_loop_is_refused() -> None:
    with pytest.raises(SchedulerError, match="SimulationLoop"):
        asyncio.run(Rounds(None).play([]))


@pytest.mark.parametrize("blocking", [False, True])
def test_a_request_that_can_not_be_made_ends_the_phase_and_not_its_agent_alone(
    blocking: bool,
) -> None:
    def broken(ordinal: int) -> Request:
        raise ConfigError("no such request")

    async def main() -> None:
        async with Recorder() as scheduler:
            rounds = Rounds(scheduler)

            async def careless() -> str:
                try:
                    if blocking:
                        ask = partial(rounds.ask_blocking, "a", "act", broken)
                        await anyio.to_thread.run_sync(ask, abandon_on_cancel=False)
                    else:
                        await rounds.ask("a", "act", broken)
                except Exception:  # noqa: BLE001 - as upstream's agents do
                    return "noop"
                return "asked"

            async def other() -> Completion:
                return await rounds.ask("b", "act", maker("b"))

            jobs = [Job(careless, blocking=blocking), Job(other)]
            with pytest.raises(ConfigError, match="no such request"):
                await rounds.play(jobs)
            assert scheduler.steps == []

    on_loop(main)
