"""A world that one seed decides: what is asked, what goes wrong and when, who loses patience.

The scheduler and its journal are the real ones; the backends are fake and the clock jumps. A
world has several lives: all but the last one meet faults and may be stopped in the middle;
each goes on from the journal that the lives before it have left. The engine's log is the
occasion to look at everything (`Watch`).
"""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from scheduler.backends.base import RawAnswer
from scheduler.backends.fake import FakeBackend
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import (
    AttemptError,
    BackendUnavailable,
    ConnectionFailed,
    JournalError,
    MalformedAnswer,
    RequestRejected,
    RetryBudgetExhausted,
    ServerBusy,
    ServerFault,
    ServerLoading,
    StepAborted,
)
from scheduler.journal import Journal
from scheduler.seeds import derive_seed
from scheduler.types import Completion, FinishReason, Request, Usage
from tests.questions import SCHEMA, question
from tests.simulation.watch import Watch

T = TypeVar("T")

INVALID_SHARE = 0.15
PATIENCE_S = 30.0
LOOK_S = 2.0


class SimulatedJournal(Journal):
    """A journal whose writes take virtual time and may fail; on disk it is a real one."""

    def __init__(self, path: Path, draw: random.Random, *, fails_at: int, **options: Any) -> None:
        super().__init__(path, **options)
        self._draw = draw
        self._fails_at = fails_at
        self._calls = 0

    async def _on_thread(self, call: Callable[[], T]) -> T:
        await checkpoint()
        with anyio.CancelScope(shield=True):  # as a thread, which can't be cancelled either
            await anyio.sleep(self._draw.choice([0.0, 0.01, 0.3]))
        self._calls += 1
        if self._calls == self._fails_at:
            raise self._unwritable(sqlite3.OperationalError("database or disk is full"))
        return call()


class SimulatedBackend(FakeBackend):
    """Answers, fails, goes away and comes back as the seed decides.

    Args:
        slots: How many requests it takes at once.
        luck: Decides delays and faults, with what is asked and how often it was: never with
            the order in which requests come, which cancellation on asyncio leaves to chance.
        longest_s: How long an answer may take; an attempt's deadline is 20 s.
        fault_share: Share of attempts that meet a fault.
        outages: Times, from its start, between which nobody is there.
        watch: Is told of each attempt.
    """

    def __init__(
        self,
        slots: int,
        luck: str,
        longest_s: float,
        fault_share: float,
        outages: list[tuple[float, float]],
        watch: Watch,
    ) -> None:
        super().__init__(slots)
        self._luck = luck
        self._times: Counter[tuple[str, int]] = Counter()
        self._longest_s = longest_s
        self._share = fault_share
        self._outages = outages
        self._watch = watch
        self._given_up = False
        self._open = 0
        self._asking = 0

    async def start(self) -> Any:
        self._epoch = anyio.current_time()
        return await super().start()

    def _ends(self) -> float | None:
        now = anyio.current_time() - self._epoch
        return next((end - now for begin, end in self._outages if begin <= now < end), None)

    async def wait_ready(self) -> None:
        self._watch.check(self._asking == 0, "two ask for one backend's readiness at once")
        self._asking += 1
        try:
            await checkpoint()
            away_s, patience_s = self._ends(), LOOK_S if self._given_up else PATIENCE_S
            if away_s is not None:
                await anyio.sleep(min(away_s, patience_s))
                self._given_up = away_s > patience_s
                if self._given_up:
                    raise BackendUnavailable("nobody there")
        finally:
            self._asking -= 1

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
        self._watch.asks(request, seed)
        self._times[request.label, seed] += 1
        draw = random.Random(
            f"{self._luck} {request.label} {seed} {self._times[request.label, seed]}"
        )
        self._open += 1
        self._watch.check(self._open <= self._info.slots, "more in flight than slots")
        try:
            if self._ends() is not None:
                raise ConnectionFailed("refused")
            await anyio.sleep(self._seconds_of_one(draw))
            if self._ends() is not None:
                raise ConnectionFailed("broke off")
            if draw.random() < self._share:
                raise _some_fault(draw)
            return answer(request, seed)
        finally:
            self._open -= 1

    def _seconds_of_one(self, draw: random.Random) -> float:
        return draw.choice([0.0, 0.1, 1.0, draw.random(), self._longest_s * draw.random()])

    @property
    def idle(self) -> bool:
        return self._open == self._asking == 0


def _some_fault(draw: random.Random) -> AttemptError:
    return draw.choice(
        [
            ServerFault("500"),
            ConnectionFailed("reset"),
            ServerBusy("429", draw.choice([None, 0.0, 3.0, 1e6])),
            ServerLoading("503"),
            MalformedAnswer("not JSON"),
            RequestRejected("400"),
        ]
    )


def answer(request: Request, seed: int) -> RawAnswer:
    """What the model of this world says: the same to the same question, sometimes nonsense."""
    text = f"{request.agent_id} {seed}"
    if request.schema is not None:
        nonsense = derive_seed("nonsense", seed) / 2**31 < INVALID_SHARE
        text = "nonsense" if nonsense else f'{{"action": "trade", "price": {seed}}}'
    return RawAnswer(text, FinishReason.STOP, Usage(10, 2))


@dataclass(frozen=True)
class _Waits:
    """When a step begins and how long its caller waits for it."""

    before_s: float
    patience_s: float

    @classmethod
    def drawn(cls, draw: random.Random, *, calm: bool) -> _Waits:
        before_s = draw.choice([0.0, 10 * draw.random(), 200 * draw.random()])
        return cls(before_s, 1e9 if calm else draw.choice([1e9, 1e9, 60 * draw.random()]))


class World:
    """What one seed decides of one world.

    Args:
        seed: Decides everything.
        directory: Where its journal is.
    """

    def __init__(self, seed: int, directory: Path) -> None:
        self.seed = seed
        self._path = directory / f"{seed}.sqlite3"
        draw = random.Random(f"{seed} world")
        self.lives = draw.choice([1, 1, 2, 3])
        self._slots = {name: draw.choice([1, 2, 3, 8]) for name in ("default", "other")}
        self._journalled = draw.random() < 0.7
        self._config = SchedulerConfig(
            max_batch=draw.choice([1, 2, 5, 16]),
            queue_limit=draw.choice([1, 3, 7, 100]),
            on_failure=draw.choice(["abort", "noop"]),
            retry_budget=draw.choice([2, 1000, 1000, 1000]),
            max_reasks=draw.choice([0, 2]),
        )
        both = ["default", "other"] if draw.random() < 0.3 else ["default"]
        sizes = [draw.choice([0, 1, 4, 12, 25]) for _ in range(draw.choice([1, 2, 5]))]
        self.steps = [
            [self._request(draw, i, step, both) for i in range(size)]
            for step, size in enumerate(sizes)
        ]
        self.watch = Watch(self._config, self._slots)
        self.returned: list[list[Completion]] = []

    def _request(self, draw: random.Random, number: int, step: int, backends: list[str]) -> Request:
        return question(
            number,
            system=f"kind {draw.randrange(3)}",
            step=step,
            max_retries=draw.randrange(4),
            timeout_s=20.0,
            schema=draw.choice([None, SCHEMA]),
            backend=draw.choice(backends),
            base_seed=self.seed,
        )

    async def live(self) -> None:
        """Live all lives; the last one meets no fault and answers everything."""
        for life in range(self.lives - 1):
            await self._one_life(random.Random(f"{self.seed} life {life}"), calm=False)
        if self.lives == 1 and random.Random(f"{self.seed} only").random() < 0.9:
            await self._one_life(random.Random(f"{self.seed} life 0"), calm=False)
        else:
            await self._one_life(random.Random(f"{self.seed} last"), calm=True)
        self.watch.raise_defects()

    async def _one_life(self, draw: random.Random, *, calm: bool) -> None:
        self.watch.begin_life()
        journal = await self._journal(draw, calm=calm) if self._journalled else None
        backends = {name: self._backend(draw, name, calm) for name in self._slots}
        scheduler = Scheduler(backends, self._config, log=self.watch, journal=journal)
        self.watch.scheduler, self.watch.journal = scheduler, journal
        limit_s = 1e9 if calm else draw.choice([1e9, 1e9, 100 * draw.random()])
        try:
            with anyio.move_on_after(limit_s):
                async with scheduler:
                    async with anyio.create_task_group() as tasks:
                        for requests in self.steps:
                            waits = _Waits.drawn(draw, calm=calm)
                            tasks.start_soon(self._step, scheduler, requests, waits, calm)
                    await scheduler.drain()
        finally:
            with anyio.CancelScope(shield=True):
                if journal is not None:
                    await journal.aclose()
        self.watch.check(scheduler.idle, "not idle at its end")
        self.watch.check(all(b.idle for b in backends.values()), "a backend is still busy")
        self.watch.end_life()

    async def _journal(self, draw: random.Random, *, calm: bool) -> SimulatedJournal:
        journal = SimulatedJournal(
            self._path,
            draw,
            fails_at=0 if calm else draw.choice([0, 0, 0, draw.randrange(2, 40)]),
            on_error=draw.choice(["abort", "continue"]),
        )
        await journal.open()
        return journal

    def _backend(self, draw: random.Random, name: str, calm: bool) -> SimulatedBackend:
        share, longest_s, outages = 0.0, 15.0, []
        if not calm:
            share, longest_s = draw.choice([0.0, 0.1, 0.4]), 40.0
            for _ in range(draw.choice([0, 0, 1, 2])):
                begin = 60 * draw.random()
                outages.append(
                    (begin, begin + draw.choice([1.0, 20 * draw.random(), 100 * draw.random()]))
                )
        return SimulatedBackend(
            self._slots[name], f"{draw.random()}", longest_s, share, outages, self.watch
        )

    async def _step(
        self, scheduler: Scheduler, requests: list[Request], waits: _Waits, calm: bool
    ) -> None:
        """Run one step that may be cancelled, and look at what it returned."""
        await anyio.sleep(waits.before_s)
        with (
            anyio.move_on_after(waits.patience_s),
            suppress(StepAborted, RetryBudgetExhausted, JournalError),
        ):
            completions = await scheduler.run_step(requests)
            self.watch.check(
                [completion.request for completion in completions] == requests,
                "results are not in the order of the requests",
            )
            for completion in completions:
                self.watch.check_answers(completion, answer)
            self.returned.append(completions)
            return
        self.watch.check(not calm, "a calm life did not answer everything")
