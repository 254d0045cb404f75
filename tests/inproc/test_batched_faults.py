"""The batched engine when llama.cpp fails, hangs or leaves an evaluation."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from scheduler.backends.batched_rows import rows_for
from scheduler.backends.llama_inproc import LlamaInprocBackend
from scheduler.errors import AttemptTimeout, ConfigError, ServerFault
from scheduler.types import Request, Sampling
from tests.inproc.fixed_prompts import endless_request, fixed_request

if importlib.util.find_spec("llama_cpp") is None and os.environ.get("REQUIRE_LLAMA_CPP") != "1":
    pytest.skip("llama-cpp-python is not installed", allow_module_level=True)

import llama_cpp


class Troubled:
    """The library `llama_cpp`, whose evaluations can be made to fail.

    Attributes:
        rows: How many rows each evaluation had since `codes` was last set.
        codes: What the next evaluations return instead of being done; None lets one pass.
        hang: Set while evaluations must not return.
    """

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.codes: list[int | None] = []
        self.hang = threading.Event()
        self.hanging = threading.Event()
        self.recurrent = False

    def __getattr__(self, name: str) -> Any:
        return getattr(llama_cpp, name)

    def llama_decode(self, context: Any, batch: Any) -> int:
        self.rows.append(batch.n_tokens)
        while self.hang.is_set():
            self.hanging.set()
            threading.Event().wait(0.002)
        code = self.codes.pop(0) if self.codes else None
        return int(llama_cpp.llama_decode(context, batch)) if code is None else code

    def llama_model_is_recurrent(self, model: Any) -> bool:
        return self.recurrent


@pytest.fixture
def troubled(monkeypatch: pytest.MonkeyPatch) -> Troubled:
    troubled = Troubled()
    monkeypatch.setitem(sys.modules, "llama_cpp", troubled)
    return troubled


@pytest.fixture
async def backend(
    troubled: Troubled, models: dict[str, Path], kept: Path
) -> AsyncIterator[LlamaInprocBackend]:
    backend = LlamaInprocBackend(
        models["Q8_0"],
        n_ctx=2048,
        n_threads=1,
        engine="batched",
        slots=3,
        cache_folder=kept,
        grace_s=0.05,
    )
    await backend.start()
    troubled.rows.clear()
    yield backend
    troubled.hang.clear()
    await backend.aclose()


async def ask_all(
    backend: LlamaInprocBackend, request: Callable[[int], Request] = fixed_request
) -> list[str | Exception]:
    """Ask three questions at once; return texts, or what came instead."""
    found: dict[int, str | Exception] = {}

    async def ask(n: int) -> None:
        try:
            found[n] = (await backend.generate(request(n), seed=n, slot=0)).text
        except Exception as exc:  # noqa: BLE001 - whatever comes is looked at
            found[n] = exc

    async with anyio.create_task_group() as tasks:
        for n in range(3):
            tasks.start_soon(ask, n)
    return [found[n] for n in range(3)]


async def test_a_prompt_that_fails_does_not_touch_its_neighbours(
    backend: LlamaInprocBackend, troubled: Troubled
) -> None:
    expected = await ask_all(backend)
    troubled.codes = [1]
    found = await ask_all(backend)
    failed = [n for n in range(3) if isinstance(found[n], ServerFault)]
    assert len(failed) == 1
    assert "llama_decode returned 1" in str(found[failed[0]])
    assert [found[n] == expected[n] for n in range(3) if n not in failed] == [True, True]
    assert await ask_all(backend) == expected


@pytest.mark.parametrize("code", [1, -1, -3])
async def test_a_step_that_fails_is_told_to_its_answers_and_nothing_is_left(
    backend: LlamaInprocBackend, troubled: Troubled, code: int
) -> None:
    long = partial(endless_request, max_tokens=24)  # none ends before the step that fails
    expected = await ask_all(backend, long)
    troubled.rows.clear()
    await ask_all(backend, long)
    width = rows_for(3, (await backend.start()).facts["calibration"]["rows"])
    steps = [width] * 3
    prefill = next(i for i in range(len(troubled.rows)) if troubled.rows[i : i + 3] == steps)
    troubled.codes = [*([None] * (prefill + 4)), code]
    assert all(isinstance(each, ServerFault) for each in await ask_all(backend, long))
    assert await ask_all(backend, long) == expected


async def test_an_evaluation_that_was_left_for_another_is_done_again(
    backend: LlamaInprocBackend, troubled: Troubled
) -> None:
    expected = await ask_all(backend)
    troubled.codes = [2, None, None, 2, None, 2, 2]
    assert await ask_all(backend) == expected


async def test_a_call_that_does_not_return_is_never_joined_by_another(
    backend: LlamaInprocBackend, troubled: Troubled
) -> None:
    expected = await ask_all(backend)
    troubled.hang.set()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask_all, backend)
        while not troubled.hanging.is_set():  # noqa: ASYNC110 - another thread sets it
            await anyio.sleep(0.002)
        tasks.cancel_scope.cancel()
    request = replace(fixed_request(1), timeout_s=0.2, sampling=Sampling(0.8, 4))
    with pytest.raises(AttemptTimeout, match="still works on agent_"):
        await backend.generate(request, seed=1, slot=0)
    troubled.hang.clear()
    with anyio.fail_after(60):
        assert await ask_all(backend) == expected


async def test_close_does_not_wait_for_ever_for_a_hung_call(
    backend: LlamaInprocBackend, troubled: Troubled
) -> None:
    troubled.hang.set()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask_all, backend)
        while not troubled.hanging.is_set():  # noqa: ASYNC110 - another thread sets it
            await anyio.sleep(0.002)
        with anyio.fail_after(30):
            await backend.aclose()
        troubled.hang.clear()


@pytest.mark.parametrize("engine", ["auto", "batched"])
async def test_a_model_with_a_state_of_its_own_is_not_batched(
    troubled: Troubled, models: dict[str, Path], kept: Path, engine: Any
) -> None:
    troubled.recurrent = True
    backend = LlamaInprocBackend(
        models["Q8_0"], n_ctx=2048, n_threads=1, engine=engine, slots=3, cache_folder=kept
    )
    if engine == "batched":
        with pytest.raises(ConfigError, match=r"can't be batched: it keeps more .* locked"):
            await backend.start()
    else:
        info = await backend.start()
        assert (info.facts["engine"], info.slots) == ("locked", 1)
        assert (await backend.generate(fixed_request(0), seed=1, slot=0)).text
    await backend.aclose()
