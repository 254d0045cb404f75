"""What a run's log and its numbers say, and what they never do."""

from __future__ import annotations

import io
import json
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.backends.fake import FakeBackend
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import RequestRejected, RetryBudgetExhausted, ServerFault, StepAborted
from scheduler.observe import RunStats, open_run_log, spread
from scheduler.types import (
    Answer,
    Completion,
    FinishReason,
    Message,
    Outcome,
    Request,
    Timings,
    Usage,
)
from tests.questions import SCHEMA, question, questions


async def logged(backend: FakeBackend, requests: list[Request], **config: Any) -> list[Any]:
    """Run one step and return its log's lines, read back."""
    stream = io.StringIO()
    log = open_run_log(stream, run="r1")
    try:
        settings = SchedulerConfig.model_validate(config)
        async with Scheduler(backend, settings, log=log) as scheduler:
            await scheduler.run_step(requests)
    except (StepAborted, RetryBudgetExhausted):
        pass
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def kinds(lines: list[Any]) -> list[str]:
    return [line["event"] for line in lines]


@pytest.mark.virtual_time
async def test_a_requests_way_is_told_in_order() -> None:
    backend = FakeBackend(
        slots=1, delay=lambda *_: 0.5, fault=lambda _, n: ServerFault("500") if n == 1 else None
    )
    lines = await logged(backend, [question("ann", epoch=1, step=2, ordinal=3)])
    assert kinds(lines) == [
        "request.queued",
        "request.dispatched",
        "request.retried",
        "request.dispatched",
        "request.answered",
        "request.settled",
        "step.settled",
    ]
    assert all(line["run"] == "r1" and line["timestamp"].endswith("Z") for line in lines)
    for line in lines[:-1]:
        assert (line["agent_id"], line["epoch"], line["step"]) == ("ann", 1, 2)
        assert (line["kind"], line["ordinal"], line["backend"]) == ("act", 3, "default")
    retried, answered, settled = lines[2], lines[4], lines[5]
    assert (retried["level"], retried["error"], retried["attempt"]) == ("warning", "ServerFault", 1)
    assert answered["service_ms"] == 500.0
    assert (answered["attempt"], answered["reask"], answered["outcome"]) == (2, 0, "ok")
    assert settled["total_ms"] == pytest.approx(1000.0 + retried["pause_ms"], abs=0.01)
    assert (settled["outcome"], settled["attempts"], settled["error"]) == ("ok", 2, None)


@pytest.mark.virtual_time
async def test_failures_and_withdrawals_are_told() -> None:
    backend = FakeBackend(slots=1, fault=lambda *_: RequestRejected("no"))
    lines = await logged(backend, questions(3))
    assert kinds(lines)[-3:] == ["request.settled", "request.withdrawn", "request.withdrawn"]
    assert lines[-3]["outcome"] == "failed"
    assert lines[-3]["error"].endswith("failed after 1 attempt: no")


@pytest.mark.virtual_time
async def test_the_end_of_a_run_is_told_once() -> None:
    backend = FakeBackend(slots=4, fault=lambda *_: ServerFault("500"))
    lines = await logged(backend, questions(4), retry_budget=0)
    assert kinds(lines).count("run.aborted") == 1
    assert "retry_budget" in next(e for e in lines if e["event"] == "run.aborted")["reason"]


@pytest.mark.virtual_time
async def test_no_event_holds_a_messages_text() -> None:
    class Chatty(FakeBackend):
        async def generate(self, request: Request, *, seed: int, slot: int) -> Any:
            answer = await super().generate(request, seed=seed, slot=slot)
            return type(answer)('{"SECRET": "SECRET"}', answer.finish_reason, reasoning="SECRET")

    messages = (Message("system", "SECRET rules"), Message("user", "SECRET prompt"))
    requests = [Request(f"a{i}", messages, schema=SCHEMA if i % 2 else None) for i in range(6)]
    backend = Chatty(fault=lambda r, n: ServerFault("500") if n == 1 else None)
    lines = await logged(backend, requests, on_failure="noop")
    assert len(lines) > 20
    assert any(line.get("violation") for line in lines)
    assert "SECRET" not in json.dumps(lines)


@pytest.mark.virtual_time
async def test_a_log_changes_nothing_but_the_log() -> None:
    stream = io.StringIO()
    texts = []
    for log in (None, open_run_log(stream)):
        async with Scheduler(FakeBackend(), log=log) as scheduler:
            texts.append([c.text for c in await scheduler.run_step(questions(5))])
            assert scheduler.stats.requests == 5
    assert texts[0] == texts[1]
    assert stream.getvalue()


def answer(reask: int = 0, **timings: float) -> Answer:
    usage = Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=3)
    return Answer("x", Outcome.OK, FinishReason.STOP, 1, reask, usage, Timings(**timings))


def test_stats_add_up() -> None:
    stats = RunStats()
    stats.answered(answer(queue_ms=1.0, service_ms=10.0))
    stats.answered(answer(1, queue_ms=1.0, service_ms=30.0, prefill_ms=2.0, decode_ms=8.0))
    stats.settled(Completion(question(), (answer(), answer(1))))
    stats.saw_in_flight(3)
    stats.saw_in_flight(2)
    summary = stats.summary()
    assert summary["requests"] == summary["answered_ok"] == summary["reasks"] == 1
    assert (summary["prompt_tokens"], summary["completion_tokens"]) == (20, 10)
    assert (summary["cached_tokens"], summary["max_in_flight"]) == (6, 3)
    assert summary["queue_ms"] == {"median": 1.0, "p95": 1.0, "max": 1.0}
    assert summary["service_ms"] == {"median": 20.0, "p95": 30.0, "max": 30.0}
    assert summary["prefill_ms"] == {"median": 2.0, "p95": 2.0, "max": 2.0}
    json.dumps(summary)


def test_a_run_without_requests_has_a_summary() -> None:
    assert RunStats().summary()["queue_ms"] is None


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_spread_is_median_nearest_rank_and_maximum(samples: list[float]) -> None:
    found = spread(samples)
    assert found is not None
    assert found["median"] == round(statistics.median(samples), 3)
    assert found["max"] == round(max(samples), 3)
    at_least = sum(round(sample, 3) <= found["p95"] for sample in samples)
    assert at_least >= 0.95 * len(samples)


def test_p95_is_the_nearest_rank() -> None:
    assert spread(range(1, 101)) == {"median": 50.5, "p95": 95, "max": 100}
    assert spread(range(1, 21)) == {"median": 10.5, "p95": 19, "max": 20}
