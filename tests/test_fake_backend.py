"""The fake backend answers from the request and its seed alone."""

from __future__ import annotations

import json
import random
from typing import Any

import anyio
import pytest
from jsonschema import Draft202012Validator

from scheduler.backends.fake import FakeBackend, example_of
from scheduler.errors import ServerFault
from scheduler.structured import SchemaChecker
from scheduler.types import Message
from tests.questions import SCHEMA, question

pytestmark = pytest.mark.virtual_time


async def test_the_same_question_has_the_same_answer() -> None:
    first = await FakeBackend().generate(question(), seed=1, slot=0)
    again = await FakeBackend(slots=9).generate(question(step=3), seed=1, slot=5)
    assert first == again
    assert first.text != (await FakeBackend().generate(question(), seed=2, slot=0)).text
    assert first.text != (await FakeBackend().generate(question(1), seed=1, slot=0)).text
    assert first.usage.completion_tokens > 0


async def test_answers_hold_their_schema() -> None:
    backend = FakeBackend()
    for seed in range(30):
        answer = await backend.generate(question(schema=SCHEMA), seed=seed, slot=0)
        assert SchemaChecker().violation(SCHEMA, answer.text) == ""


async def test_latency_is_drawn_from_the_seed_up_to_the_longest() -> None:
    took = []
    for seed in (1, 2, 1):
        began = anyio.current_time()
        await FakeBackend(latency_s=2.0).generate(question(), seed=seed, slot=0)
        took.append(anyio.current_time() - began)
    assert took[0] == pytest.approx(took[2])
    assert took[0] != pytest.approx(took[1])
    assert all(0 < seconds < 2 for seconds in took)


async def test_delay_and_fault_know_the_attempt() -> None:
    seen: list[tuple[str, int]] = []

    def fault(request: Any, attempt: int) -> ServerFault | None:
        seen.append((request.agent_id, attempt))
        return ServerFault("first") if attempt == 1 else None

    backend = FakeBackend(fault=fault, delay=lambda _, attempt: float(attempt))
    began = anyio.current_time()
    with pytest.raises(ServerFault):
        await backend.generate(question("a"), seed=1, slot=0)
    await backend.generate(question("a"), seed=1, slot=0)
    assert seen == [("a", 1), ("a", 2)]
    assert anyio.current_time() - began == pytest.approx(3.0)
    assert (backend.calls, backend.in_flight, backend.max_in_flight) == (2, 0, 1)


async def test_more_requests_than_slots_are_a_defect() -> None:
    backend = FakeBackend(slots=1, delay=lambda *_: 1.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: backend.generate(question(0), seed=1, slot=0))
        await anyio.sleep(0.5)
        with pytest.raises(RuntimeError, match="more than 1 requests in flight"):
            await backend.generate(question(1), seed=1, slot=0)


async def test_it_is_always_ready() -> None:
    backend = FakeBackend(slots=2, context_per_slot=100)
    info = await backend.start()
    assert (info.kind, info.slots, info.context_per_slot) == ("fake", 2, 100)
    await backend.wait_ready()
    assert await backend.count_prompt_tokens([Message("user", "x" * 40)]) == 10
    await backend.aclose()
    await backend.aclose()


@pytest.mark.parametrize(
    "schema",
    [
        {"const": 3},
        {"enum": ["a", None]},
        {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
        {"oneOf": [{"const": 1}, {"const": 2}]},
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
        {"type": "integer", "minimum": 5, "maximum": 6},
        {"type": "integer", "minimum": 500},
        {"type": "integer", "maximum": -3},
        {"type": "number", "minimum": 2.0},
        {"type": "number", "minimum": -1.0, "maximum": -0.5},
        {"type": "string", "maxLength": 5},
        {"type": "string", "minLength": 300},
        {"type": "string"},
        {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "null"}}},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 5},
    ],
)
async def test_examples_hold_their_schema(schema: dict[str, Any]) -> None:
    for seed in range(20):
        value = example_of(schema, random.Random(seed))
        assert list(Draft202012Validator(schema).iter_errors(value)) == []
        json.dumps(value, allow_nan=False)
