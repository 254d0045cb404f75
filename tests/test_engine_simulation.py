"""Random delays, faults and cancellations from one seed; invariants after each event.

A failure prints its seed and the command that repeats it.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from scheduler.backends.fake import FakeBackend
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import (
    AttemptError,
    ConnectionFailed,
    MalformedAnswer,
    RequestRejected,
    RetryBudgetExhausted,
    ServerBusy,
    ServerFault,
    ServerLoading,
    StepAborted,
)
from scheduler.retry import MAX_FREE_PASSES
from scheduler.types import Completion, Request
from tests import virtual_time
from tests.questions import question

SEEDS = range(150)
VARIABLE = "SIMULATION_SEED"

Faults = dict[tuple[str, int], list[AttemptError | None]]


class World:
    """What one seed decides, and what has been seen of the engine so far."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.slots = self.draw.choice([1, 2, 3, 8])
        self.config = SchedulerConfig(
            max_batch=self.draw.choice([1, 2, 5, 16]),
            queue_limit=self.draw.choice([1, 3, 7, 100]),
            on_failure=self.draw.choice(["abort", "noop"]),
            retry_budget=self.draw.choice([2, 1000, 1000, 1000]),
        )
        self.fault_share = self.draw.choice([0.0, 0.1, 0.4])
        self.faults: Faults = {}
        self.backend = FakeBackend(self.slots, delay=self.delay, fault=self.fault)
        self.scheduler = Scheduler(self.backend, self.config, log=self)
        self.queued: list[tuple[str, int]] = []
        self.waiting: dict[tuple[str, int], int] = {}
        self.ended: Counter[tuple[str, int]] = Counter()
        self.attempts: Counter[tuple[str, int]] = Counter()
        self.allowed: dict[tuple[str, int], int] = {}

    def delay(self, _: Request, __: int) -> float:
        return self.draw.choice([0.0, 0.1, 1.0, self.draw.random(), 40.0 * self.draw.random()])

    def fault(self, _: Request, __: int) -> AttemptError | None:
        if self.draw.random() >= self.fault_share:
            return None
        return self.draw.choice(
            [
                ServerFault("500"),
                ConnectionFailed("refused"),
                ServerBusy("429", self.draw.choice([None, 0.0, 3.0, 1e6])),
                ServerLoading("503"),
                MalformedAnswer("not JSON"),
                RequestRejected("400"),
            ]
        )

    def request(self, number: int, step: int) -> Request:
        retries = self.draw.randrange(4)
        self.allowed[f"agent-{number:03d}", step] = retries + 1 + MAX_FREE_PASSES
        return question(
            number,
            system=f"kind {self.draw.randrange(3)}",
            step=step,
            max_retries=retries,
            timeout_s=20.0,
        )

    # The engine's log: each event is the occasion to look at everything.

    def info(self, event: str, **fields: Any) -> None:
        key = (fields.get("agent_id", ""), fields.get("step", 0))
        if event == "request.queued":
            assert key not in self.waiting
            self.queued.append(key)
            self.waiting[key] = 0
        if event == "request.dispatched":
            self.started(key, fields["attempt"])
        if event in ("request.settled", "request.withdrawn"):
            self.ended[key] += 1
            self.waiting.pop(key, None)
            assert self.ended[key] == 1, f"{key} ended twice"
        self.look()

    def warning(self, event: str, **_: Any) -> None:
        assert event == "request.retried"
        self.look()

    def error(self, event: str, **_: Any) -> None:
        assert event == "run.aborted"
        self.look()

    def started(self, key: tuple[str, int], attempt: int) -> None:
        assert not self.ended[key], f"{key} runs after its end"
        self.attempts[key] += 1
        assert self.attempts[key] == attempt <= self.allowed[key]
        if self.waiting.pop(key, None) is None:
            return
        for earlier in self.waiting:
            if self.queued.index(earlier) < self.queued.index(key):
                self.waiting[earlier] += 1
                assert self.waiting[earlier] < self.config.max_batch + self.slots

    def look(self) -> None:
        lanes = self.scheduler.lanes
        assert self.backend.in_flight <= self.slots
        assert all(0 <= lane.in_flight <= lane.slots for lane in lanes.values())

    async def step(self, number: int, finished: list[list[Completion]]) -> None:
        """Run one step that may be cancelled, and look at what it returned."""
        requests = [self.request(i, number) for i in range(self.draw.choice([0, 1, 4, 12, 25]))]
        await anyio.sleep(self.draw.choice([0.0, 10 * self.draw.random()]))
        patience_s = self.draw.choice([1e9, 1e9, 60 * self.draw.random()])
        with anyio.move_on_after(patience_s):
            try:
                completions = await self.scheduler.run_step(requests)
            except (StepAborted, RetryBudgetExhausted):
                return
            assert [completion.request for completion in completions] == requests
            finished.append(completions)


async def simulate(seed: int) -> None:
    """Run one seed's world and look at what is left of it."""
    world = World(seed)
    finished: list[list[Completion]] = []
    async with world.scheduler:
        async with anyio.create_task_group() as tasks:
            for number in range(world.draw.choice([1, 2, 5])):
                tasks.start_soon(world.step, number, finished)
        await world.scheduler.drain()
        assert world.backend.in_flight == 0
        assert all(lane.idle and not lane.in_flight for lane in world.scheduler.lanes.values())
    assert world.scheduler.idle
    assert set(world.ended) == set(world.queued)
    async with Scheduler(FakeBackend(16)) as calm:
        for completions in finished:
            answered = [completion for completion in completions if completion.ok]
            expected = await calm.run_step([completion.request for completion in answered])
            assert [c.text for c in answered] == [c.text for c in expected]


@pytest.mark.parametrize("backend", virtual_time.BACKENDS)
def test_invariants_hold_in_random_worlds(backend: str) -> None:
    wanted = os.environ.get(VARIABLE)
    for seed in SEEDS if wanted is None else [int(wanted)]:
        try:
            virtual_time.seed_schedule(seed)
            virtual_time.run(backend, _main(seed))
        except BaseException:
            print(
                f"seed {seed} on {backend}; to repeat it:\n"
                f"{VARIABLE}={seed} python -m pytest {__file__} -k {backend}"
            )
            raise


def _main(seed: int) -> Callable[[], Any]:
    async def main() -> None:
        await simulate(seed)

    return main
