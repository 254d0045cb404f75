"""The in-process backend with the real library and small random-weight models."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
import jsonschema
import pytest

from scheduler.backends.base import RawAnswer
from scheduler.backends.llama_inproc import LlamaInprocBackend
from scheduler.backends.llama_prompt import Prompt
from scheduler.backends.llama_sampling import MOST_GRAMMARS, Grammars
from scheduler.backends.native_model import NativeModel, NativeSpec, load_native
from scheduler.engine import Scheduler
from scheduler.errors import ConfigError, ConnectionFailed, ContextExceeded, RequestRejected
from scheduler.seeds import request_seed
from scheduler.types import FinishReason, OutputSchema, Sampling
from tests.inproc.conftest import TYPES
from tests.inproc.fixed_prompts import ACT, answers_of, endless_request, fixed_request

if importlib.util.find_spec("llama_cpp") is None and os.environ.get("REQUIRE_LLAMA_CPP") != "1":
    pytest.skip("llama-cpp-python is not installed", allow_module_level=True)

import llama_cpp

PROMPTS = range(12)
PATIENCE_S = 60.0


@pytest.fixture
def model(models: dict[str, Path]) -> Path:
    return models["Q8_0"]


@pytest.fixture
async def backend(model: Path) -> AsyncIterator[LlamaInprocBackend]:
    backend = LlamaInprocBackend(model, n_ctx=2048, n_threads=1)
    await backend.start()
    yield backend
    await backend.aclose()


class Paused:
    """A loaded model that goes no further than to one of its evaluations until it is interrupted.

    That evaluation is then begun, as one is that finds itself interrupted.

    Attributes:
        came_to: The number of the evaluation that an answer has come to, from 1.
    """

    def __init__(self, native: NativeModel, pause_at: int) -> None:
        self.facts = native.facts
        self.prompt = native.prompt
        self.close = native.close
        self.came_to = 0
        self._native = native
        self._pause_at = pause_at
        self._there = threading.Event()
        self._interrupted = threading.Event()

    def answer(
        self,
        prompt: Prompt,
        sampling: Sampling,
        seed: int,
        schema: OutputSchema | None,
        stopped: Callable[[], bool],
    ) -> RawAnswer:
        def looked() -> bool:
            self.came_to += 1
            if self.came_to != self._pause_at:
                return stopped()
            self._there.set()
            assert self._interrupted.wait(PATIENCE_S)
            return False

        return self._native.answer(prompt, sampling, seed, schema, looked)

    def interrupt(self) -> None:
        self._native.interrupt()
        self._interrupted.set()

    async def there(self) -> None:
        """Return once the evaluation is reached."""
        with anyio.fail_after(PATIENCE_S):
            while not self._there.is_set():  # noqa: ASYNC110 - another thread sets it
                await anyio.sleep(0.002)


class Pausing:
    """Loads a model that pauses, and keeps it."""

    def __init__(self, pause_at: int) -> None:
        self._pause_at = pause_at
        self.native: Paused

    def __call__(self, spec: NativeSpec) -> NativeModel:
        self.native = Paused(load_native(spec), self._pause_at)
        return self.native


@pytest.mark.parametrize("weights", TYPES)
async def test_answers_do_not_depend_on_what_ran_before(
    models: dict[str, Path], weights: str
) -> None:
    number = random.randrange(10**6)
    print(f"shuffled with random.Random({number})")
    shuffled = random.Random(number)
    backend = LlamaInprocBackend(models[weights], n_ctx=2048, n_threads=1)
    await backend.start()
    expected = await answers_of(backend, PROMPTS)
    assert len(set(expected.values())) >= 10
    for _ in range(3):
        order = list(PROMPTS)
        shuffled.shuffle(order)
        some = order[: shuffled.randint(4, len(order))]
        assert await answers_of(backend, some) == {n: expected[n] for n in some}
        with anyio.move_on_after(0.02):
            longer = endless_request(order[0], rounds=shuffled.randint(1, 60))
            await backend.generate(longer, seed=1, slot=0)
    await backend.aclose()
    one_by_one = LlamaInprocBackend(models[weights], n_ctx=2048, n_threads=1)
    for n in (7, 2):
        await one_by_one.start()
        assert await answers_of(one_by_one, [n, n]) == {n: expected[n]}
        await one_by_one.aclose()
        one_by_one = LlamaInprocBackend(models[weights], n_ctx=2048, n_threads=1)


def fresh_process(model: Path, count: int) -> dict[str, Any]:
    script = Path(__file__).with_name("fixed_prompts.py")
    command = [sys.executable, str(script), str(model), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert done.stderr == ""
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource module")
async def test_new_process_answers_the_same_and_twelve_agents_share_one_model(
    backend: LlamaInprocBackend, model: Path
) -> None:
    twelve, one = fresh_process(model, 12), fresh_process(model, 1)
    expected = await answers_of(backend, PROMPTS)
    assert twelve["texts"] == {str(n): text for n, text in expected.items()}
    assert one["texts"] == {"0": expected[0]}
    assert twelve["peak_mib"] - one["peak_mib"] < 50


async def test_an_answer_tells_its_tokens(backend: LlamaInprocBackend) -> None:
    answer = await backend.generate(fixed_request(0), seed=1, slot=0)
    assert len(answer.token_ids) == answer.usage.completion_tokens
    again = await backend.generate(fixed_request(0), seed=1, slot=0)
    other = await backend.generate(fixed_request(0), seed=2, slot=0)
    assert answer.token_ids == again.token_ids != other.token_ids


async def test_prompt_tokens_are_those_of_the_library(
    backend: LlamaInprocBackend, model: Path
) -> None:
    library = llama_cpp.Llama(str(model), n_ctx=2048, verbose=False)
    for n in (0, 4, 8):
        request = fixed_request(n)
        answer = await backend.generate(request, seed=1, slot=0)
        messages = [{"role": m.role, "content": m.content} for m in request.messages]
        theirs = library.create_chat_completion(messages, max_tokens=1, seed=1)["usage"]
        counted = await backend.count_prompt_tokens(request.messages)
        assert answer.usage.prompt_tokens == counted == theirs["prompt_tokens"]
    library.close()


async def test_shared_system_message_is_read_once(backend: LlamaInprocBackend) -> None:
    first, second = fixed_request(2), fixed_request(5)
    cold = await backend.generate(first, seed=1, slot=0)
    began = perf_counter()
    warm = await backend.generate(second, seed=1, slot=0)
    took_ms = (perf_counter() - began) * 1000
    assert cold.usage.cached_tokens == 0
    assert 100 < warm.usage.cached_tokens < warm.usage.prompt_tokens
    assert warm.prefill_ms is not None
    assert warm.decode_ms is not None
    assert 0 < warm.prefill_ms + warm.decode_ms < took_ms


async def test_finished_answers_hold_their_schema(backend: LlamaInprocBackend) -> None:
    for seed in range(12):
        # More tokens than a text has bytes that holds the schema.
        request = replace(fixed_request(1), sampling=Sampling(1.0, 800))
        answer = await backend.generate(request, seed=seed, slot=0)
        assert answer.finish_reason is FinishReason.STOP
        jsonschema.validate(json.loads(answer.text), ACT.schema)


async def test_seed_and_temperature_decide(backend: LlamaInprocBackend) -> None:
    request = fixed_request(0)
    texts = [(await backend.generate(request, seed=seed, slot=0)).text for seed in (1, 2, 3, 1)]
    assert texts[0] == texts[3]
    assert len(set(texts)) == 3
    greedy = replace(request, sampling=Sampling(0.0, 24))
    assert len({(await backend.generate(greedy, seed=s, slot=0)).text for s in (1, 2, 3)}) == 1


async def test_token_limit_ends_an_answer(backend: LlamaInprocBackend) -> None:
    request = endless_request(max_tokens=7)
    answer = await backend.generate(request, seed=1, slot=0)
    assert answer.finish_reason is FinishReason.LENGTH
    assert answer.usage.completion_tokens == 7


async def test_prompt_and_answer_that_just_fit_are_answered(model: Path) -> None:
    backend = LlamaInprocBackend(model, n_ctx=512, n_threads=1)
    await backend.start()
    request = endless_request(rounds=20)
    count = await backend.count_prompt_tokens(request.messages) or 0
    most = replace(request, sampling=Sampling(0.8, 512 - count))
    answer = await backend.generate(most, seed=1, slot=0)
    assert answer.usage.completion_tokens == 512 - count
    with pytest.raises(ContextExceeded, match=r"agent_0's prompt"):
        await backend.generate(replace(most, sampling=Sampling(0.8, 513 - count)), seed=1, slot=0)
    await backend.aclose()


@pytest.mark.parametrize(
    ("rounds", "evaluation"), [(300, 1), (300, 3), (1, 20)], ids=["begin", "prefill", "decode"]
)
async def test_cancelling_ends_the_evaluation_under_way(
    model: Path, rounds: int, evaluation: int
) -> None:
    """A cancelled answer is waited for until it ends: where it is, and not an evaluation later."""
    load = Pausing(evaluation)
    backend = LlamaInprocBackend(model, n_ctx=2048, n_threads=1, grace_s=PATIENCE_S, load=load)
    await backend.start()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(backend.generate, endless_request(rounds=rounds), seed=1, slot=0))
        await load.native.there()
        tasks.cancel_scope.cancel()
    assert load.native.came_to == evaluation
    expected = (await backend.generate(fixed_request(0), seed=1, slot=0)).text
    await backend.aclose()
    other = LlamaInprocBackend(model, n_ctx=2048, n_threads=1)
    await other.start()
    assert (await other.generate(fixed_request(0), seed=1, slot=0)).text == expected
    await other.aclose()


async def test_close_while_an_answer_runs_frees_the_model(model: Path) -> None:
    load = Pausing(20)
    backend = LlamaInprocBackend(model, n_ctx=2048, n_threads=1, grace_s=PATIENCE_S, load=load)
    await backend.start()

    async def ask() -> None:
        with pytest.raises(ConnectionFailed, match="closed before the answer"):
            await backend.generate(endless_request(), seed=1, slot=0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await load.native.there()
        await backend.aclose()
    assert load.native.came_to == 20


async def test_schema_that_no_grammar_can_hold_is_rejected(backend: LlamaInprocBackend) -> None:
    schema = OutputSchema("odd", {"not": {"type": "string"}})
    with pytest.raises(RequestRejected, match="'odd'"):
        await backend.generate(replace(fixed_request(1), schema=schema), seed=1, slot=0)


@pytest.fixture
def odd_model(model: Path, tmp_path: Path) -> Path:
    """A complete file that lacks a tensor."""
    path = tmp_path / "odd.gguf"
    path.write_bytes(model.read_bytes().replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"))
    return path


async def test_model_that_llama_cpp_refuses_is_a_config_error(odd_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"odd\.gguf can't be loaded.*attn_q"):
        await LlamaInprocBackend(odd_model, n_ctx=512).start()


async def test_scheduler_runs_it_on_one_slot_in_order(backend: LlamaInprocBackend) -> None:
    async with Scheduler(backend) as scheduler:
        done = await scheduler.run_step([fixed_request(n) for n in PROMPTS])
    assert [completion.request.agent_id for completion in done] == [f"agent_{n}" for n in PROMPTS]
    assert {completion.slot for completion in done} == {0}
    first = done[0].answers[0]
    assert first.seed == request_seed(fixed_request(0))


def test_many_schemas_keep_few_compiled_grammars(model: Path) -> None:
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    loaded = llama_cpp.llama_model_load_from_file(str(model).encode(), params)
    grammars = Grammars(llama_cpp, llama_cpp.llama_model_get_vocab(loaded))
    for number in range(3 * MOST_GRAMMARS):
        schema = OutputSchema("named", {"enum": [f"n{number}", "other"]})
        llama_cpp.llama_sampler_free(grammars.copy_of(schema))
    assert len(grammars._compiled) == MOST_GRAMMARS
    grammars.close()
    llama_cpp.llama_model_free(loaded)
