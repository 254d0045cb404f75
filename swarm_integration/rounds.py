"""Where the agents' questions meet the scheduler: rounds that no timer decides.

A phase (the acts of a step, or its accepts) is a list of participants, one
coroutine each. They run until every one of them waits for an answer or has
finished; the questions that are open then form a round, which goes to the
scheduler as one step. What an answer makes an agent ask next (a council's second
stage) is the next round. Answers are handed out in the order of the questions.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio.from_thread

from scheduler.errors import SchedulerError
from scheduler.types import Completion, Request
from swarm_integration.idle import SimulationLoop


@dataclass(eq=False, slots=True)
class Participant:
    """One agent's part in a phase.

    Attributes:
        index: Its place in the phase's order.
        blocking: Whether it runs on a thread of its own, one such at a time.
        questions: What it has asked so far, in order.
        moved: Set when it has asked something or has finished.
        dismissed: Whether its phase is over, so that it may ask nothing more.
    """

    index: int
    blocking: bool
    questions: list[Question] = field(default_factory=list)
    task: asyncio.Task[Any] | None = None
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    dismissed: bool = False

    @property
    def finished(self) -> bool:
        """Whether its coroutine has returned or raised."""
        return self.task is not None and self.task.done()

    @property
    def waits(self) -> bool:
        """Whether it has a question that is not answered."""
        return any(not question.answer.done() for question in self.questions)


@dataclass(eq=False, slots=True)
class Question:
    """A request, the future that its agent waits for, and what came back.

    The future alone would not do: an agent that gives up waiting cancels it.
    """

    asker: Participant
    request: Request
    answer: asyncio.Future[Completion]
    completion: Completion | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """What a participant does: a coroutine function, and whether it may block."""

    run: Callable[[], Coroutine[Any, Any, Any]]
    blocking: bool = False


@dataclass(frozen=True, slots=True)
class Phase:
    """What one phase brought.

    Attributes:
        results: The jobs' results, in their order.
        completions: The answered questions in canonical order: by participant,
            then by the order in which it asked.
    """

    results: list[Any]
    completions: list[Completion]


_asking: ContextVar[Participant] = ContextVar("participant")


class Asker(Protocol):
    """Who answers a round of questions; a `Scheduler` is one."""

    async def run_step(self, requests: Sequence[Request]) -> list[Completion]:
        """Return the completions of `requests`, in their order."""
        ...


RequestMaker = Callable[[int], Request]
"""Makes the request from its ordinal: how many of its kind the agent asked before."""


class Rounds:
    """Runs phases on a `SimulationLoop`.

    Args:
        scheduler: Who answers, or None when no agent has a model.
    """

    def __init__(self, scheduler: Asker | None) -> None:
        self._scheduler = scheduler
        self._asked: Counter[tuple[str, str]] = Counter()
        self._open: list[Question] = []
        self._broken: Exception | None = None
        self.played = 0

    def start_step(self) -> None:
        """Count ordinals from 0 again."""
        self._asked.clear()

    async def ask(self, agent_id: str, kind: str, make: RequestMaker) -> Completion:
        """Put a question from inside a participant and wait for its round.

        Raises:
            SchedulerError: Called from outside a phase.
        """
        return await self._put(_participant(), agent_id, kind, make)

    def ask_blocking(self, agent_id: str, kind: str, make: RequestMaker) -> Completion:
        """Do the same from a blocking participant's thread.

        Raises:
            CancelledError: The phase has ended. Not an `Exception`, which agents
                catch and take for a failed call.
        """
        try:
            return anyio.from_thread.run(self._put, _participant(), agent_id, kind, make)
        except concurrent.futures.CancelledError as exc:
            raise asyncio.CancelledError from exc

    async def _put(
        self, asker: Participant, agent_id: str, kind: str, make: RequestMaker
    ) -> Completion:
        if asker.dismissed:
            raise asyncio.CancelledError
        ordinal = self._asked[agent_id, kind]
        self._asked[agent_id, kind] += 1
        try:
            request = make(ordinal)
        except Exception as exc:
            self._broken = self._broken or exc
            raise asyncio.CancelledError from exc
        answer: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        question = Question(asker, request, answer)
        asker.questions.append(question)
        self._open.append(question)
        asker.moved.set()
        return await answer

    async def play(self, jobs: Sequence[Job]) -> Phase:
        """Run `jobs` to their ends, round by round.

        Raises:
            Exception: What the first job (in order) raised, or the scheduler did, or the making
                of a request, which agents don't hear of.
        """
        loop = asyncio.get_running_loop()
        if not isinstance(loop, SimulationLoop):
            raise SchedulerError("a simulation runs on a SimulationLoop (see run_blocking)")
        participants = [Participant(index, job.blocking) for index, job in enumerate(jobs)]
        try:
            for participant, job in zip(participants, jobs, strict=True):
                await self._start(participant, job)
            while await self._all_wait(loop, participants):
                await self._play_round()
        finally:
            self._open.clear()
            await _stop(participants)
        return Phase(
            [participant.task.result() for participant in participants if participant.task],
            [
                question.completion
                for participant in participants
                for question in participant.questions
                if question.completion is not None
            ],
        )

    async def _all_wait(self, loop: SimulationLoop, participants: Sequence[Participant]) -> bool:
        """Return once all participants wait or have finished: whether one still waits.

        Raises:
            Exception: What a participant raised, or the making of a request.
        """
        while True:
            await loop.idle()
            if self._broken is not None:
                raise self._broken
            for one in participants:
                if one.task is not None and one.task.done():
                    one.task.result()
            unfinished = [one for one in participants if not one.finished]
            busy = [one for one in unfinished if not one.waits]
            if not busy:
                return bool(unfinished)
            for one in busy:
                one.moved.clear()
            await _first_of(one.moved.wait() for one in busy)

    async def _start(self, participant: Participant, job: Job) -> None:
        context = copy_context()
        context.run(_asking.set, participant)
        participant.task = asyncio.create_task(job.run(), context=context)
        participant.task.add_done_callback(lambda _: participant.moved.set())
        if participant.blocking:
            await participant.moved.wait()

    async def _play_round(self) -> None:
        if self._scheduler is None:
            raise SchedulerError("an agent asked for a model, but the run has no scheduler")
        waiting = [question for question in self._open if not question.answer.done()]
        questions = sorted(waiting, key=lambda question: question.asker.index)
        self._open.clear()
        completions = await self._scheduler.run_step([q.request for q in questions])
        self.played += 1
        for question, completion in zip(questions, completions, strict=True):
            question.completion = completion
            if question.answer.done():
                continue
            question.asker.moved.clear()
            question.answer.set_result(completion)
            if question.asker.blocking:
                await question.asker.moved.wait()


def _participant() -> Participant:
    try:
        return _asking.get()
    except LookupError as exc:
        raise SchedulerError("a model was asked outside of a simulation step") from exc


async def _first_of(waits: Iterable[Coroutine[Any, Any, Any]]) -> None:
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _cancel(tasks)


async def _stop(participants: Sequence[Participant]) -> None:
    """End what has not finished; a thread can't be, so it is freed and waited for."""
    for one in participants:
        one.dismissed = True
        for question in one.questions:
            question.answer.cancel()
    tasks = [one.task for one in participants if one.task is not None and not one.blocking]
    threads = [one.task for one in participants if one.task is not None and one.blocking]
    await _cancel(tasks)
    await asyncio.gather(*threads, return_exceptions=True)


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel the tasks and wait for them; what they raise has been told already."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
