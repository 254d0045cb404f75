"""The llama-server backend against a real server: the facts that the scripted one assumes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import jsonschema
import pytest
from anyio.from_thread import start_blocking_portal

from scheduler.backends.llama_probe import FIXED_SAMPLING
from scheduler.backends.llama_server import LlamaServerBackend
from scheduler.engine import Scheduler
from scheduler.errors import ContextExceeded, RequestRejected
from scheduler.server import ManagedServer, ServerSpec, find_server
from scheduler.types import FinishReason, Message, OutputSchema, Request, Sampling
from tests.integration.conftest import ENDLESS, endless_flags

pytestmark = pytest.mark.anyio

SCHEMA = OutputSchema(
    "act",
    {
        "type": "object",
        "properties": {"action": {"enum": ["trade", "wait"]}, "why": {"type": "string"}},
        "required": ["action"],
        "additionalProperties": False,
    },
)
# Held to it, the model can't end before its context does; a schema with `minItems` would do the
# same, but such a grammar is slow.
LONG = OutputSchema("long", {"const": "ab " * 2000})
SLOTS, CONTEXT = 4, 512


@pytest.fixture(scope="module")
def llama_server(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real server with 4 slots of 512 tokens."""
    pytest.importorskip("xllamacpp")
    # One thread: several wait for each other, which is slow on a busy machine.
    spec = ServerSpec(demo_model, SLOTS, CONTEXT, threads=1, alias="demo")
    log_path = tmp_path_factory.mktemp("server") / "server.log"
    server = ManagedServer(spec, binary=find_server("xllamacpp"), log_path=log_path)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(server):
        yield server.base_url


@pytest.fixture
async def backend(llama_server: str) -> AsyncIterator[LlamaServerBackend]:
    backend = LlamaServerBackend(llama_server, ready_timeout_s=10)
    yield backend
    await backend.aclose()


def request(n: int = 0, **changes: Any) -> Request:
    messages = (
        Message("system", "You are an agent in a market."),
        Message("user", f"Round {n}: <|eot_id|> trade or wait? \u00e9\U0001f642"),
    )
    plain = Request(f"agent_{n}", messages, sampling=Sampling(0.8, 24), base_seed=5, model="demo")
    return replace(plain, **changes)


async def slots_of(base_url: str) -> list[Any]:
    async with httpx.AsyncClient(trust_env=False) as client:
        slots: list[Any] = (await client.get(base_url.removesuffix("/v1") + "/slots")).json()
    return slots


async def until_slots(base_url: str, *, busy: bool) -> None:
    """Return once some slot is busy, or none."""
    # A server looks for a hang-up when nobody was answered for a second: one that is asked all the
    # time may write on for long for those who have gone.
    pause_s = 0.01 if busy else 1.5
    while True:
        if any(slot["is_processing"] for slot in await slots_of(base_url)) is busy:
            return
        await anyio.sleep(pause_s)


async def test_start_reports_the_servers_slots_and_context(backend: LlamaServerBackend) -> None:
    info = await backend.start()
    await backend.wait_ready()
    assert (info.slots, info.context_per_slot, info.model) == (SLOTS, CONTEXT, "demo")
    assert info.facts["model_file"] == "demo.gguf"
    assert len(info.facts["chat_template_sha256"]) == 64


async def test_answer_has_usage_and_timings(backend: LlamaServerBackend) -> None:
    asked = request(1)
    first = await backend.generate(asked, seed=1, slot=0)
    again = await backend.generate(asked, seed=1, slot=0)
    assert first.usage.prompt_tokens == await backend.count_prompt_tokens(asked.messages)
    assert 0 < first.usage.completion_tokens <= 24
    assert again.usage.cached_tokens > 0
    assert first.prefill_ms is not None
    assert first.decode_ms is not None
    assert first.decode_ms > 0


async def test_reported_tokens_are_those_of_the_answer_and_do_not_change_it(
    backend: LlamaServerBackend,
) -> None:
    plain = await backend.generate(request(1), seed=1, slot=0)
    again = await backend.generate(request(1, report_tokens=True), seed=1, slot=0)
    assert (plain.text, plain.token_ids, plain.logprobs) == (again.text, (), ())
    assert again.usage.completion_tokens - 1 <= len(again.token_ids)
    assert len(again.token_ids) == len(again.logprobs) <= again.usage.completion_tokens
    assert all(-100 < one <= 0 for one in again.logprobs)
    assert any(again.logprobs)


async def test_every_sampling_parameter_reaches_the_slot(
    backend: LlamaServerBackend, llama_server: str
) -> None:
    sampling = Sampling(0.5, 400, 7, 0.75, 0.125, 1.5, 0.25, 0.375)
    asked = request(2, sampling=sampling, schema=SCHEMA)
    await backend.generate(asked, seed=11, slot=0)
    slots = await slots_of(llama_server)
    used = [slot["params"] for slot in slots if slot.get("params", {}).get("seed") == 11]
    expected = {
        **FIXED_SAMPLING,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.75,
        "min_p": 0.125,
        "repeat_penalty": 1.5,
        "presence_penalty": 0.25,
        "frequency_penalty": 0.375,
        "n_predict": 400,
        "reasoning_format": "deepseek",
        "stream": False,
    }
    assert {key: used[0][key] for key in expected} == expected


async def test_answers_hold_the_schema(backend: LlamaServerBackend) -> None:
    for seed in range(8):
        asked = request(seed, schema=SCHEMA, sampling=Sampling(1.0, 200))
        answer = await backend.generate(asked, seed=seed, slot=0)
        if answer.finish_reason is FinishReason.STOP:
            jsonschema.validate(json.loads(answer.text), SCHEMA.schema)
        else:
            assert answer.text.lstrip().startswith("{")


async def test_the_seed_decides_the_text_of_a_lone_request(backend: LlamaServerBackend) -> None:
    texts = [(await backend.generate(request(), seed=seed, slot=0)).text for seed in (3, 3, 4, 3)]
    assert texts[0] == texts[1] == texts[3] != texts[2]


@pytest.mark.parametrize(
    "text", ["Hi", "  padded  ", "\u00e9\U0001f642 <|eot_id|>\n\n", "", "x" * 99]
)
async def test_token_count_is_what_the_server_uses(backend: LlamaServerBackend, text: str) -> None:
    for messages in (
        (Message("user", text),),
        (Message("system", text), Message("user", "a"), Message("assistant", text)),
        (Message("system", "s"), Message("user", text)),
    ):
        asked = request(messages=messages, sampling=Sampling(0.0, 1))
        answer = await backend.generate(asked, seed=1, slot=0)
        assert await backend.count_prompt_tokens(messages) == answer.usage.prompt_tokens


async def test_a_prompt_too_long_names_agent_and_sizes(backend: LlamaServerBackend) -> None:
    asked = request(messages=(Message("user", "word " * 2000),))
    tokens = await backend.count_prompt_tokens(asked.messages)
    with pytest.raises(ContextExceeded, match=f"agent_0.* {tokens} tokens.* {CONTEXT}"):
        await backend.generate(asked, seed=1, slot=0)


async def test_an_answer_that_fills_the_context_is_cut(backend: LlamaServerBackend) -> None:
    asked = request(sampling=Sampling(0.8, 5000), schema=LONG)
    answer = await backend.generate(asked, seed=1, slot=0)
    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == CONTEXT


async def test_a_schema_that_the_server_cannot_read_is_rejected(
    backend: LlamaServerBackend,
) -> None:
    asked = request(schema=OutputSchema("bad", {"type": "nonsense"}))
    with pytest.raises(RequestRejected, match="nonsense"):
        await backend.generate(asked, seed=1, slot=0)


async def test_pinning_and_thinking_are_accepted(llama_server: str) -> None:
    backend = LlamaServerBackend(llama_server, pin_slots=True)
    asked = request(3, sampling=Sampling(0.8, 8, thinking=False))
    for slot in range(SLOTS):
        await backend.generate(asked, seed=100 + slot, slot=slot)
    await backend.aclose()
    assert [slot["params"]["seed"] for slot in await slots_of(llama_server)] == [100, 101, 102, 103]


async def test_cancelling_returns_and_the_slots_serve_again(
    demo_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    spec = ServerSpec(demo_model, SLOTS, CONTEXT, threads=1, alias="demo")
    binary = find_server("xllamacpp")
    async with ManagedServer(
        spec, binary=binary, log_path=tmp_path / "log", flags=endless_flags
    ) as server:
        backend = LlamaServerBackend(server.base_url)
        async with anyio.create_task_group() as tasks:
            for seed in range(SLOTS):
                asked = request(sampling=ENDLESS)
                tasks.start_soon(partial(backend.generate, asked, seed=seed, slot=0))
            await until_slots(server.base_url, busy=True)
            tasks.cancel_scope.cancel()
        with anyio.fail_after(60):
            await until_slots(server.base_url, busy=False)
            assert (await backend.generate(request(), seed=1, slot=0)).text
        await backend.aclose()


async def test_a_step_of_twelve_on_four_slots_keeps_order_and_limit(
    backend: LlamaServerBackend,
) -> None:
    requests = [request(n, schema=SCHEMA, sampling=Sampling(0.8, 100)) for n in range(12)]
    async with Scheduler(backend) as scheduler:
        completions = await scheduler.run_step(requests)
        assert scheduler.idle
    assert [completion.request.agent_id for completion in completions] == [
        f"agent_{n}" for n in range(12)
    ]
    assert all(completion.error is None for completion in completions)
    assert scheduler.stats.max_in_flight == SLOTS
