"""Backends and settings for tests of the engine: what goes wrong, and when."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from scheduler.backends.base import RawAnswer
from scheduler.backends.fake import FakeBackend
from scheduler.config import SchedulerConfig
from scheduler.errors import (
    AttemptError,
)
from scheduler.types import FinishReason, Request


class TracingBackend(FakeBackend):
    """Writes down when each attempt starts and ends, and on which slot."""

    def __init__(self, slots: int = 4, **options: Any) -> None:
        super().__init__(slots, **options)
        self.started: list[tuple[float, str, int]] = []
        self.ended: list[tuple[float, str, int]] = []
        self.waits_for_ready = 0

    async def wait_ready(self) -> None:
        self.waits_for_ready += 1
        await super().wait_ready()

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
        assert self.open_on(slot) == 0
        self.started.append((anyio.current_time(), request.agent_id, slot))
        try:
            return await super().generate(request, seed=seed, slot=slot)
        finally:
            self.ended.append((anyio.current_time(), request.agent_id, slot))

    def open_on(self, slot: int) -> int:
        """How many attempts are under way on `slot`."""
        starts = sum(at == slot for _, _, at in self.started)
        return starts - sum(at == slot for _, _, at in self.ended)

    def order(self) -> list[str]:
        return [agent for _, agent, _ in self.started]


class TextBackend(FakeBackend):
    """Answers with given texts, one after the other, the last one for ever."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self.texts = list(texts)
        self.seeds: list[int] = []

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
        await checkpoint()
        self.seeds.append(seed)
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        return RawAnswer(text, FinishReason.STOP)


def failing(
    *errors: AttemptError, agent: str = ""
) -> Callable[[Request, int], AttemptError | None]:
    """Return faults for the first attempts of `agent`'s requests, or of everybody's."""

    def fault(request: Request, attempt: int) -> AttemptError | None:
        hit = agent in ("", request.agent_id) and attempt <= len(errors)
        return errors[attempt - 1] if hit else None

    return fault


def always(error: AttemptError, *agents: str) -> Callable[[Request, int], AttemptError | None]:
    return lambda request, _: error if not agents or request.agent_id in agents else None


def config(**values: Any) -> SchedulerConfig:
    return SchedulerConfig.model_validate(values)


def random_delays(seed: int) -> Callable[[Request, int], float]:
    draw = random.Random(seed)
    return lambda _request, _attempt: draw.choice([0.0, 0.001, draw.random(), 5 * draw.random()])


class NoLog:
    """Drops every event; tests override what they want to see."""

    def info(self, event: str, **_: Any) -> None:
        """Drop it."""

    def warning(self, event: str, **_: Any) -> None:
        """Drop it."""

    def error(self, event: str, **_: Any) -> None:
        """Drop it."""
