"""The engine with a journal: stored before used, recalled and not asked again."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from scheduler.backends.base import BackendInfo, RawAnswer
from scheduler.backends.fake import FakeBackend
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import JournalError, RequestFailed, RequestRejected, ServerFault, StepAborted
from scheduler.journal import Journal, question_key
from scheduler.types import Answer, Completion, Message, Outcome, OutputSchema, Request, Sampling
from tests import virtual_time
from tests.doubles import NoLog, TextBackend, always, config, failing
from tests.questions import SCHEMA, names, question, questions, transcript

pytestmark = pytest.mark.virtual_time

GOOD = '{"action":"wait","price":1}'
BAD = "not JSON"
VARIABLE = "SIMULATION_SEED"


@asynccontextmanager
async def journal_in(directory: Path, **options: Any) -> AsyncIterator[Journal]:
    journal = Journal(directory / "j", **options)
    await journal.open()
    try:
        yield journal
    finally:
        await journal.aclose()


async def run(
    directory: Path, backend: Any, requests: list[Request], **settings: Any
) -> list[Completion]:
    """Run one step with the journal in `directory`, opened for it alone."""
    async with (
        journal_in(directory) as journal,
        Scheduler(backend, config(**settings), journal=journal) as scheduler,
    ):
        return await scheduler.run_step(requests)


class OtherModel(FakeBackend):
    """The fake backend with another fingerprint."""

    async def start(self) -> BackendInfo:
        return replace(await super().start(), build="2")


class Events(NoLog):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def info(self, event: str, **_: Any) -> None:
        self.seen.append(event)


# --- stored before used


async def test_answers_are_on_disk_before_run_step_returns(tmp_path: Path) -> None:
    requests = questions(20)
    async with journal_in(tmp_path) as journal:
        async with Scheduler(FakeBackend(), journal=journal) as scheduler:
            fingerprint = scheduler.info["default"].fingerprint
            completions = await scheduler.run_step(requests)
            assert journal.stored == 20
        texts = [journal.recall(request, 0, fingerprint) for request in requests]
    assert [one.text for one in texts if isinstance(one, Answer)] == [
        completion.text for completion in completions
    ]


async def test_an_answer_is_stored_before_it_is_told_of(tmp_path: Path) -> None:
    async with journal_in(tmp_path) as journal:

        class Watching(NoLog):
            answered = 0

            def info(self, event: str, **_: Any) -> None:
                self.answered += event == "request.answered"
                assert journal.stored >= self.answered

        log = Watching()
        async with Scheduler(FakeBackend(), log=log, journal=journal) as scheduler:
            await scheduler.run_step(questions(20))
        assert log.answered == 20


# --- recalled


async def test_recalled_answers_reach_no_backend(tmp_path: Path) -> None:
    requests = [*questions(12, systems=3), question("chooser", schema=SCHEMA)]
    first = await run(tmp_path, FakeBackend(), requests)
    backend, log = FakeBackend(), Events()
    async with (
        journal_in(tmp_path) as journal,
        Scheduler(backend, log=log, journal=journal) as scheduler,
    ):
        second = await scheduler.run_step(requests)
        assert scheduler.stats.recalled == 13
        assert scheduler.idle
    assert transcript(second) == transcript(first)
    assert backend.calls == 0
    assert log.seen.count("request.recalled") == 13
    assert "request.dispatched" not in log.seen
    assert [completion.attempts for completion in second] == [0] * 13


async def test_the_same_journal_serves_the_next_scheduler(tmp_path: Path) -> None:
    backend = FakeBackend()
    async with journal_in(tmp_path) as journal:
        for _ in range(2):
            async with Scheduler(backend, journal=journal) as scheduler:
                await scheduler.run_step(questions(5))
    assert backend.calls == 5


async def test_recalled_and_asked_come_in_the_order_of_the_requests(tmp_path: Path) -> None:
    requests = questions(20)
    await run(tmp_path, FakeBackend(), requests[::3])
    backend = FakeBackend(delay=lambda r, _: 10.0 - int(r.agent_id[-1]))
    completions = await run(tmp_path, backend, requests)
    assert names(completions) == names(await run(tmp_path, FakeBackend(), requests))
    assert names(completions) == [request.agent_id for request in requests]
    assert backend.calls == 20 - 7


async def test_recall_needs_no_room_in_the_queue(tmp_path: Path) -> None:
    requests = questions(30)
    await run(tmp_path, FakeBackend(), requests[:29])
    backend = FakeBackend(slots=1)
    completions = await run(tmp_path, backend, requests, queue_limit=1)
    assert len(completions) == 30
    assert backend.calls == 1


async def test_a_step_that_fails_while_it_waits_for_room_recalls_nothing_more(
    tmp_path: Path,
) -> None:
    requests = questions(4)
    await run(tmp_path, FakeBackend(), requests[2:])
    log = Events()
    backend = FakeBackend(slots=1, fault=always(RequestRejected("no"), "agent-000"))
    async with (
        journal_in(tmp_path) as journal,
        Scheduler(backend, config(queue_limit=1, max_batch=1), journal=journal, log=log) as one,
    ):
        with pytest.raises(StepAborted):
            await one.run_step(requests)
        assert one.stats.recalled == journal.recalled == 0
    assert "request.recalled" not in log.seen


@pytest.mark.parametrize(
    "change",
    [
        {"messages": (Message("user", "something else"),)},
        {"sampling": Sampling(temperature=0.1)},
        {"sampling": Sampling(thinking=True)},
        {"base_seed": 1},
        {"schema": OutputSchema("move", {"type": "string"})},
        {"ordinal": 1},
        {"step": 1},
        {"agent_id": "another"},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_changed_question_is_asked_again(change: dict[str, Any], tmp_path: Path) -> None:
    request = question(schema=SCHEMA)
    await run(tmp_path, FakeBackend(), [request])
    backend = FakeBackend()
    await run(tmp_path, backend, [replace(request, **change)])
    assert backend.calls == 1


@pytest.mark.parametrize(
    "change", [{"timeout_s": 1.0}, {"max_retries": 9}, {"prefix_group": "g"}], ids=str
)
async def test_how_it_is_asked_changes_nothing(change: dict[str, Any], tmp_path: Path) -> None:
    await run(tmp_path, FakeBackend(), [question()])
    backend = FakeBackend(slots=9)
    await run(tmp_path, backend, [replace(question(), **change)], max_batch=1, slots=2)
    assert backend.calls == 0


async def test_another_model_is_asked_again(tmp_path: Path) -> None:
    await run(tmp_path, FakeBackend(), [question()])
    backend = OtherModel()
    await run(tmp_path, backend, [question()])
    assert backend.calls == 1


async def test_a_backend_of_another_name_is_recalled(tmp_path: Path) -> None:
    """Names hold addresses, and those may change when a run is mended."""
    await run(tmp_path, FakeBackend(), [question()])
    backend = FakeBackend()
    await run(tmp_path, {"http://elsewhere": backend}, [question(backend="http://elsewhere")])
    assert backend.calls == 0


# --- re-asks


async def test_all_answers_of_a_re_asked_question_are_recalled(tmp_path: Path) -> None:
    request = question(schema=SCHEMA)
    [first] = await run(tmp_path, TextBackend(BAD, BAD, GOOD), [request])
    backend = TextBackend(GOOD)
    [second] = await run(tmp_path, backend, [request])
    assert [answer.text for answer in second.answers] == [BAD, BAD, GOOD]
    assert transcript([second]) == transcript([first])
    assert backend.seeds == []


async def test_an_unfinished_re_ask_goes_on_where_it_was(tmp_path: Path) -> None:
    request = question(schema=SCHEMA)

    class Stopping(TextBackend):
        async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
            if len(self.seeds) == 1:
                scope.cancel()
            return await super().generate(request, seed=seed, slot=slot)

    with anyio.CancelScope() as scope:
        await run(tmp_path, Stopping(BAD), [request])
    backend = TextBackend(BAD, GOOD)
    [completion] = await run(tmp_path, backend, [request])
    async with Scheduler(TextBackend(BAD, BAD, GOOD)) as scheduler:
        [whole] = await scheduler.run_step([request])
    assert [answer.text for answer in completion.answers] == [BAD, BAD, GOOD]
    assert transcript([completion]) == transcript([whole])
    assert backend.seeds == [answer.seed for answer in whole.answers[1:]]


async def test_a_question_that_stayed_invalid_is_recalled_as_that(tmp_path: Path) -> None:
    request = question(schema=SCHEMA)
    await run(tmp_path, TextBackend(BAD), [request])
    backend = TextBackend(GOOD)
    [completion] = await run(tmp_path, backend, [request])
    assert [answer.outcome for answer in completion.answers] == [Outcome.INVALID] * 3
    assert backend.seeds == []


async def test_fewer_re_asks_than_before_take_the_first_ones(tmp_path: Path) -> None:
    request = question(schema=SCHEMA)
    await run(tmp_path, TextBackend(BAD, BAD, GOOD), [request])
    [completion] = await run(tmp_path, TextBackend(GOOD), [request], max_reasks=1)
    assert [answer.text for answer in completion.answers] == [BAD, BAD]


# --- failures


async def test_a_failure_under_noop_is_recalled(tmp_path: Path) -> None:
    refusing = FakeBackend(fault=always(RequestRejected("400"), "agent-002"))
    first = await run(tmp_path, refusing, questions(5), on_failure="noop")
    backend = FakeBackend()
    second = await run(tmp_path, backend, questions(5), on_failure="noop")
    assert transcript(second) == transcript(first)
    assert str(second[2].error) == str(first[2].error)
    assert backend.calls == 0
    with pytest.raises(RequestFailed, match="agent-002"):
        _ = second[2].text


async def test_a_failure_after_re_asks_is_recalled_after_them(tmp_path: Path) -> None:
    request = question(schema=SCHEMA)

    class Breaking(TextBackend):
        async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
            if self.seeds:
                raise RequestRejected("400")
            return await super().generate(request, seed=seed, slot=slot)

    [first] = await run(tmp_path, Breaking(BAD), [request], on_failure="noop")
    backend = TextBackend(GOOD)
    [second] = await run(tmp_path, backend, [request], on_failure="noop")
    assert [answer.text for answer in second.answers] == [BAD]
    assert str(second.error) == str(first.error)
    assert backend.seeds == []


async def test_a_failure_under_abort_is_asked_again(tmp_path: Path) -> None:
    refusing = FakeBackend(fault=always(RequestRejected("400"), "agent-002"))
    with pytest.raises(StepAborted):
        await run(tmp_path, refusing, questions(5))
    backend = FakeBackend()
    completions = await run(tmp_path, backend, questions(5))
    assert all(completion.ok for completion in completions)
    async with Scheduler(FakeBackend()) as scheduler:
        assert transcript(completions) == transcript(await scheduler.run_step(questions(5)))
    assert 1 <= backend.calls <= 2  # the failed one, and one that may never have been sent


async def test_attempts_that_were_retried_leave_no_trace(tmp_path: Path) -> None:
    faulty = FakeBackend(fault=failing(ServerFault("500"), ServerFault("500")))
    first = await run(tmp_path, faulty, questions(5))
    async with Scheduler(FakeBackend()) as scheduler:
        assert transcript(first) == transcript(await scheduler.run_step(questions(5)))
    backend = FakeBackend()
    assert transcript(await run(tmp_path, backend, questions(5))) == transcript(first)
    assert backend.calls == 0


# --- a journal or a log that breaks


@pytest.mark.parametrize("on_failure", ["abort", "noop"])
async def test_a_broken_journal_ends_the_run_whatever_a_failure_means(
    on_failure: str, tmp_path: Path
) -> None:
    async with journal_in(tmp_path) as journal:
        await journal.aclose()
        async with Scheduler(
            FakeBackend(), config(on_failure=on_failure), journal=journal
        ) as scheduler:
            for _ in range(2):
                with pytest.raises(JournalError, match="is not open"):
                    await scheduler.run_step(questions(9))
            assert scheduler.idle


async def test_a_failure_that_cannot_be_stored_ends_the_run(tmp_path: Path) -> None:
    refusing = FakeBackend(fault=always(RequestRejected("400")))
    async with journal_in(tmp_path) as journal:
        await journal.aclose()
        async with Scheduler(refusing, config(on_failure="noop"), journal=journal) as scheduler:
            with pytest.raises(JournalError, match="is not open"):
                await scheduler.run_step([question()])


async def test_a_log_that_breaks_while_recalling_ends_the_run(tmp_path: Path) -> None:
    await run(tmp_path, FakeBackend(), questions(3))

    class Broken(NoLog):
        def info(self, event: str, **_: Any) -> None:
            raise OSError("disk full")

    async with (
        journal_in(tmp_path) as journal,
        Scheduler(FakeBackend(), log=Broken(), journal=journal) as scheduler,
    ):
        with pytest.raises(Exception, match="the log can't be written"):
            await scheduler.run_step(questions(3))
        assert scheduler.idle


# --- interrupted anywhere


class Stop:
    """Cancels a scope at the n-th occasion; threads take time that no virtual clock shows."""

    def __init__(self, occasions: int) -> None:
        self.left = occasions
        self.scope = anyio.CancelScope()

    def occasion(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


class Choosy(FakeBackend):
    """Breaks schemas and fails as the seeds say; notes what it is asked."""

    def __init__(self, stop: Stop, slots: int, **options: Any) -> None:
        super().__init__(slots, **options)
        self._stop = stop
        self.asked: list[tuple[str, int]] = []

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
        self._stop.occasion()
        self.asked.append((request.label, seed))
        answer = await super().generate(request, seed=seed, slot=slot)
        self._stop.occasion()
        draw = random.Random(seed)
        if draw.random() < 0.2 and self.asked.count((request.label, seed)) == 1:
            raise ServerFault("500")
        return replace(answer, text=BAD) if draw.random() < 0.4 else answer


class Acknowledging(Journal):
    """Notes the questions whose answers it has stored."""

    def __init__(self, path: Path, stop: Stop) -> None:
        super().__init__(path)
        self._stop = stop
        self.acknowledged: list[tuple[str, int]] = []

    async def store(self, request: Request, answer: Answer, fingerprint: str) -> None:
        self._stop.occasion()
        await super().store(request, answer, fingerprint)
        self.acknowledged.append((request.label, answer.seed))
        self._stop.occasion()


class World:
    """A run of several steps with faults and re-asks, all from one seed."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self.delays = random.Random(seed + 1)
        self.slots = draw.choice([1, 2, 5])
        self.config = SchedulerConfig(
            max_batch=draw.choice([1, 4, 16]), queue_limit=draw.choice([1, 3, 100])
        )
        self.steps = [
            [
                question(agent, step=step, schema=SCHEMA if draw.random() < 0.3 else None)
                for agent in range(draw.choice([1, 4, 9]))
            ]
            for step in range(4)
        ]

    def backend(self, stop: Stop) -> Choosy:
        return Choosy(stop, self.slots, delay=lambda *_: self.delays.choice([0.0, 1.0, 5.0]))

    async def play(self, backend: Choosy, journal: Journal | None) -> bytes:
        done: list[Completion] = []
        async with Scheduler(backend, self.config, journal=journal) as scheduler:
            for requests in self.steps:
                done += await scheduler.run_step(requests)
        return transcript(done)


async def interrupt(seed: int, directory: Path) -> int:
    """Run the world of `seed`, stopping it again and again; return how often it was stopped."""
    whole = await World(seed).play(World(seed).backend(Stop(0)), None)
    acknowledged: list[tuple[str, int]] = []
    draw = random.Random(seed)
    for stops in range(100):
        world, stop = World(seed), Stop(draw.randint(1, 40))
        backend = world.backend(stop)
        journal = Acknowledging(directory / str(seed), stop)
        await journal.open()
        text = None
        with stop.scope:
            text = await world.play(backend, journal)
        await journal.aclose()
        assert backend.in_flight == 0
        again = set(backend.asked) & set(acknowledged)
        assert not again, f"asked again: {again}"
        acknowledged += journal.acknowledged
        assert len(set(acknowledged)) == len(acknowledged)
        if text is not None:
            assert text == whole
            return stops
    raise AssertionError("never finished")


@pytest.mark.parametrize("backend", virtual_time.BACKENDS)
def test_a_run_stopped_anywhere_goes_on_as_if_it_had_not_been(backend: str, tmp_path: Path) -> None:
    wanted = os.environ.get(VARIABLE)
    stops = 0
    half = range(virtual_time.BACKENDS.index(backend), 50, 2)  # of the seeds on each event loop
    for seed in half if wanted is None else [int(wanted)]:
        try:
            virtual_time.seed_schedule(seed)
            stops += virtual_time.run(backend, _main(seed, tmp_path))
        except BaseException:
            print(
                f"seed {seed} on {backend}; to repeat it:\n"
                f"{VARIABLE}={seed} python -m pytest {__file__} -k '{backend} and stopped'"
            )
            raise
    assert stops > 25 or wanted is not None


def _main(seed: int, directory: Path) -> Callable[[], Any]:
    async def main() -> int:
        return await interrupt(seed, directory)

    return main


def test_keys_of_equal_questions_are_equal() -> None:
    assert question_key(question(), 0, "m") == question_key(question(), 0, "m")
