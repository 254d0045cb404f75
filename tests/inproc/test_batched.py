"""The batched engine with the real library: the same bits whatever shares the batch."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest

from scheduler.backends.base import BackendInfo, RawAnswer
from scheduler.backends.calibration_cache import CalibrationCache, identity
from scheduler.backends.llama_inproc import LlamaInprocBackend
from scheduler.backends.llama_memory import memory_need
from scheduler.certification import follows_plan
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import ConfigError, ConnectionFailed, ContextExceeded, RequestRejected
from scheduler.gguf_file import file_sha256, read_gguf_header
from scheduler.seeds import request_seed
from scheduler.types import FinishReason, Message, OutputSchema, Request, Sampling
from tests.inproc.conftest import TYPES
from tests.inproc.fixed_prompts import ACT, endless_request, fixed_request, mixed_request
from tests.mixture import write_mixture

if importlib.util.find_spec("llama_cpp") is None and os.environ.get("REQUIRE_LLAMA_CPP") != "1":
    pytest.skip("llama-cpp-python is not installed", allow_module_level=True)

import llama_cpp

from scheduler.backends.batched_calibration import Calibration
from scheduler.backends.batched_cuts import Grain
from scheduler.backends.batched_engine import BatchedEngine
from scheduler.backends.batched_job import Job
from scheduler.backends.llama_library import Context, LoadedModel
from scheduler.backends.native_model import NativeSpec, uses_flash_attention
from scheduler.backends.score_digest import score_digest

TURNED = not uses_flash_attention(llama_cpp, NativeSpec(Path(), 1, 1, 0))
NUMBERS = range(24)


def grain_of(calibration: dict[str, Any]) -> Grain | None:
    return None if calibration["grain"] is None else Grain(**calibration["grain"])


def told_random(what: str) -> random.Random:
    """A source of random numbers whose seed is printed, so that a failure can be repeated."""
    seed = random.randrange(10**6)
    print(f"{what} of random.Random({seed})")
    return random.Random(seed)


class Batched:
    """Starts and closes backends with the batched engine."""

    def __init__(self, kept: Path) -> None:
        self._kept = kept
        self._open: list[LlamaInprocBackend] = []

    async def __call__(self, model: Path, slots: int | str = 4, **options: Any) -> Any:
        options = {"engine": "batched", "n_ctx": 2048, "n_threads": 1, **options}
        options.setdefault("cache_folder", self._kept)
        backend = LlamaInprocBackend(model, slots=slots, **options)  # type: ignore[arg-type] # "auto"
        self._open.append(backend)
        await backend.start()
        return backend

    async def aclose(self) -> None:
        for backend in self._open:
            await backend.aclose()


@pytest.fixture
async def batched(kept: Path) -> AsyncIterator[Batched]:
    batched = Batched(kept)
    yield batched
    await batched.aclose()


@pytest.fixture
def model(models: dict[str, Path]) -> Path:
    return models["Q4_K_M"]


async def texts_of(
    backend: LlamaInprocBackend, numbers: Sequence[int], cancelled: Collection[int] = ()
) -> dict[int, str]:
    """Ask all at once, in this order; those in `cancelled` are cancelled on the way."""
    slots = anyio.CapacityLimiter((await backend.start()).slots)
    texts: dict[int, str] = {}

    async def ask(n: int) -> None:
        async with slots:
            if n in cancelled:
                with anyio.move_on_after(0.01 * (n % 4)):
                    await backend.generate(
                        endless_request(n, rounds=1 + 40 * (n % 3)), seed=n, slot=0
                    )
            request = mixed_request(n)
            answer = await backend.generate(request, seed=request_seed(request), slot=0)
            texts[n] = answer.text

    async with anyio.create_task_group() as tasks:
        for n in numbers:
            tasks.start_soon(ask, n)
    return texts


def asked_alone(
    models: dict[str, Path], kept: Path, flash: bool | None
) -> dict[str, dict[int, str]]:
    async def ask(weights: str) -> dict[int, str]:
        backend = LlamaInprocBackend(
            models[weights],
            n_ctx=2048,
            n_threads=1,
            engine="batched",
            flash_attention=flash,
            slots=1,
            cache_folder=kept,
        )
        await backend.start()
        texts = await texts_of(backend, NUMBERS)
        await backend.aclose()
        return texts

    with ThreadPoolExecutor(1) as thread:  # the test's own event loop runs on this one
        found = {weights: thread.submit(anyio.run, ask, weights).result() for weights in TYPES}
    for texts in found.values():
        assert len(set(texts.values())) > 20
    return found


@pytest.fixture(scope="module")
def alone(models: dict[str, Path], kept: Path) -> dict[str, dict[int, str]]:
    """What each request is answered with one slot, by the model's type."""
    return asked_alone(models, kept, None)


@pytest.fixture(scope="module")
def alone_turned(models: dict[str, Path], kept: Path) -> dict[str, dict[int, str]]:
    """The same with the way to attend that this build does not take by itself."""
    return asked_alone(models, kept, TURNED)


@pytest.mark.parametrize(
    ("weights", "slots"),
    [*(("Q4_K_M", slots) for slots in (2, 4, 7, 8, 12, 13, 16, 20)), ("Q8_0", 4), ("Q8_0", 13),
     ("F16", 7), ("F16", 16)],
)  # fmt: skip
async def test_answers_do_not_depend_on_slots_order_or_neighbours(
    batched: Batched,
    models: dict[str, Path],
    alone: dict[str, dict[int, str]],
    weights: str,
    slots: int,
) -> None:
    await check_shuffled(await batched(models[weights], slots), alone[weights])


@pytest.mark.parametrize(
    ("weights", "slots"), [("Q4_K_M", 7), ("Q4_K_M", 16), ("Q8_0", 13), ("F16", 8)]
)
async def test_nor_do_they_with_the_other_way_to_attend(
    batched: Batched,
    models: dict[str, Path],
    alone: dict[str, dict[int, str]],
    alone_turned: dict[str, dict[int, str]],
    weights: str,
    slots: int,
) -> None:
    backend = await batched(models[weights], slots, flash_attention=TURNED)
    assert (await backend.start()).facts["flash_attention"] is TURNED
    assert alone_turned[weights] != alone[weights]
    await check_shuffled(backend, alone_turned[weights])


async def check_shuffled(backend: LlamaInprocBackend, expected: dict[int, str]) -> None:
    number = random.randrange(10**6)
    print(f"shuffled with random.Random({number})")
    shuffled = random.Random(number)
    for _ in range(2):  # the second time what is kept of the first is warm
        order = shuffled.sample(NUMBERS, len(NUMBERS))
        cancelled = shuffled.sample(NUMBERS, 8)
        assert await texts_of(backend, order, cancelled) == expected


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("weights", TYPES)
async def test_rows_that_agree_do_so_for_any_tokens(
    batched: Batched, models: dict[str, Path], weights: str, flash: bool
) -> None:
    backend = await batched(models[weights], 1, flash_attention=flash)
    rows = (await backend.start()).facts["calibration"]["rows"]
    draw = told_random("tokens")
    loaded = LoadedModel(llama_cpp, NativeSpec(models[weights], 2048, 1, 0, flash))
    context = Context(loaded, sequences=16, n_ctx=600, most_rows=256)
    lengths = [draw.randrange(4, 590) for _ in range(16)]

    def token() -> int:
        return draw.randrange(loaded.vocabulary_size)

    for sequence, length in enumerate(lengths):
        for start in range(0, length, 256):
            chunk = [token() for _ in range(start, min(start + 256, length))]
            assert context.read(chunk, start, sequence) == 0

    def step(tokens: Sequence[int], first: int, count: int) -> dict[int, str]:
        window = range(first, first + count)
        context.evaluate([(tokens[n], lengths[n], n, True) for n in window])
        digests = {n: score_digest(loaded, context, row) for row, n in enumerate(window)}
        for n in window:
            context.keep(n, lengths[n])
        return digests

    for _ in range(40):
        tokens = [token() for _ in lengths]
        expected = step(tokens, 0, 16)
        for count in rows:
            first = draw.randrange(17 - count)
            assert all(expected[n] == d for n, d in step(tokens, first, count).items()), count
    context.close()
    loaded.close()


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("weights", TYPES)
async def test_cuts_of_the_grain_change_no_bits_of_any_prompt(
    batched: Batched, models: dict[str, Path], weights: str, flash: bool
) -> None:
    backend = await batched(models[weights], 1, flash_attention=flash)
    grain = grain_of((await backend.start()).facts["calibration"])
    assert grain is not None
    step, shortest = grain.step, grain.shortest
    draw = told_random("cuts")
    loaded = LoadedModel(llama_cpp, NativeSpec(models[weights], 2048, 1, 0, flash))
    context = Context(loaded, sequences=1, n_ctx=1024, most_rows=256)

    def some(count: int) -> list[int]:
        return [draw.randrange(loaded.vocabulary_size) for _ in range(count)]

    def read(tokens: Sequence[int], at: int = 0) -> str:
        """Read from `at` on in chunks of random sizes; the digest of the last one's scores."""
        context.keep(0, at)
        while at < len(tokens):
            size = len(tokens) - at
            last = size - shortest  # how far away the next cut may be
            if size > 256 or (last >= shortest and draw.random() < 0.8):
                sizes = range(-(-shortest // step) * step, min(256, last) + 1, step)
                size = draw.choice(sizes)
            assert context.read(tokens[at : at + size], at, 0) == 0
            at += size
        return score_digest(loaded, context, -1)

    for length in (*(draw.randrange(2 * shortest, 300) for _ in range(5)), 700):
        tokens = some(length)
        found = {read(tokens) for _ in range(12)}
        kept = (length - shortest) // step * step
        read([*tokens[:kept], *some(shortest + 3)])
        found.add(read(tokens, kept))  # behind what another prompt left
        assert len(found) == 1, (length, grain)
    context.close()
    loaded.close()


async def test_rows_that_do_not_agree_change_answers(
    batched: Batched, model: Path, alone: dict[str, dict[int, str]]
) -> None:
    info: BackendInfo = await (await batched(model, 8)).start()
    found = info.facts["calibration"]
    if found["rows"] == found["tried"]:
        pytest.skip("on this machine all row counts agree")
    # The same engine takes as many rows as there are answers.
    loaded = LoadedModel(llama_cpp, NativeSpec(model, 2048, 1, 0))
    engine = BatchedEngine(loaded, rows=(), grain=grain_of(found), slots=3, sequences=7)
    jobs = []
    for n in NUMBERS:
        request = mixed_request(n)
        job = Job(request, request_seed(request))
        job.prompt = engine.prompt(request.messages, None)
        engine.submit(job)
        jobs.append(job)
    while engine.turn():
        pass
    texts = {n: job.result().text for n, job in enumerate(jobs)}
    engine.close()
    assert texts != alone["Q4_K_M"]
    assert sum(texts[n] == alone["Q4_K_M"][n] for n in NUMBERS) > 0


async def test_rows_of_one_are_steps_of_their_own(
    batched: Batched, model: Path, tmp_path: Path
) -> None:
    prepare(model, tmp_path, Calibration("invariant", (1,), (1, 2), 1, None))
    texts = []
    for slots in (1, 6):
        backend = await batched(model, slots, cache_folder=tmp_path)
        texts.append(await texts_of(backend, NUMBERS[::2]))
    assert texts[0] == texts[1]


async def test_answers_reach_farther_than_the_rows_that_agree(
    batched: Batched, model: Path, alone: dict[str, dict[int, str]], tmp_path: Path
) -> None:
    found = (await (await batched(model, 8)).start()).facts["calibration"]
    fewest = next(rows for rows in found["rows"] if rows >= 8)
    prepare(model, tmp_path, Calibration("invariant", (fewest,), (fewest,), 1, grain_of(found)))
    backend = await batched(model, fewest + 3, cache_folder=tmp_path)
    assert await texts_of(backend, NUMBERS) == alone["Q4_K_M"]


async def test_fixed_cuts_are_invariant_too(batched: Batched, model: Path, tmp_path: Path) -> None:
    found = (await (await batched(model, 8)).start()).facts["calibration"]
    texts = []
    for slots in (1, 5):
        rows = tuple(found["rows"])
        prepare(model, tmp_path, Calibration("invariant", rows, tuple(found["tried"]), 1, None))
        backend = await batched(model, slots, cache_folder=tmp_path)
        facts = (await backend.start()).facts["calibration"]
        assert (facts["grain"], facts["border_step"]) == (None, 32)
        texts += [await texts_of(backend, NUMBERS[::3]), await texts_of(backend, NUMBERS[::3])]
    assert texts[0] == texts[1] == texts[2] == texts[3]


def prepare(model: Path, folder: Path, found: Calibration) -> None:
    """Put a calibration where the next start finds it."""
    spec = NativeSpec(model, 2048, 1, 0)
    CalibrationCache(identity(llama_cpp, spec, file_sha256(model)), folder).write(found)


async def test_evicted_prefixes_change_nothing(batched: Batched, model: Path) -> None:
    def request(n: int) -> Request:
        system = f"You are trader {n % 9}. " + "Trade honestly and be brief. " * (20 + n % 9)
        messages = (Message("system", system), Message("user", f"Round {n}: what now?"))
        return Request(f"a{n}", messages, sampling=Sampling(0.8, 6), timeout_s=300)

    backend = await batched(model, 2)
    cold, cached = {}, 0
    for n in range(27):
        fresh = n < 9
        answer = await backend.generate(request(n), seed=n, slot=0)
        cached += 0 if fresh else answer.usage.cached_tokens
        cold[n] = answer.text
    again = await batched(model, 8)
    for n in reversed(range(27)):
        assert (await again.generate(request(n), seed=n, slot=0)).text == cold[n]
    assert cached < 18 * 100, "nine prefixes of two sequences' room were never evicted"


@pytest.mark.parametrize("flash", [False, True])
async def test_a_short_prompt_changes_no_longer_one_that_begins_with_it(
    batched: Batched, model: Path, flash: bool
) -> None:
    long = "It is round 3, and the market is calm. What do you do now? " * 12

    async def asked(first: int | None) -> list[str]:
        backend = await batched(model, 1, flash_attention=flash)
        texts = []
        for seed in range(4):
            for words in (long,) if first is None else (long[: first + seed], long):
                request = Request(
                    "a", (Message("user", words),), sampling=Sampling(1.0, 60), timeout_s=300
                )
                answer = await backend.generate(request, seed=seed, slot=0)
            texts.append(answer.text)
        return texts

    alone = await asked(None)
    for first in (40, 60, 90):
        assert await asked(first) == alone


async def test_a_shared_prefix_is_read_once(batched: Batched, model: Path) -> None:
    backend = await batched(model, 4)
    answers: dict[int, RawAnswer] = {}

    async def ask(n: int) -> None:
        answers[n] = await backend.generate(fixed_request(n), seed=1, slot=0)

    async with anyio.create_task_group() as tasks:
        for n in (2, 5, 8, 11):
            tasks.start_soon(ask, n)
    cached = sorted(answer.usage.cached_tokens for answer in answers.values())
    assert cached[0] == 0
    assert min(cached[1:]) > 100
    for answer in answers.values():
        assert answer.usage.cached_tokens < answer.usage.prompt_tokens
        assert answer.prefill_ms is not None
        assert answer.decode_ms is not None
        assert min(answer.prefill_ms, answer.decode_ms) > 0


async def test_what_questions_share_is_reused_from_one_that_is_being_answered(
    batched: Batched, model: Path
) -> None:
    backend = await batched(model, 4)
    grain = grain_of((await backend.start()).facts["calibration"])
    if grain is None:
        pytest.skip("on this machine every cut changes bits")
    world = "It is round 3, and the market is calm. " * 12
    answers: dict[int, RawAnswer] = {}

    async def ask(n: int) -> None:
        messages = (Message("user", f"{world}You are agent_{n}: what now?"),)
        request = Request(f"a{n}", messages, sampling=Sampling(0.8, 20), timeout_s=300)
        answers[n] = await backend.generate(request, seed=n, slot=0)

    async with anyio.create_task_group() as tasks:
        for n in range(4):
            tasks.start_soon(ask, n)
    first, *others = sorted(answer.usage.cached_tokens for answer in answers.values())
    prompt_tokens = answers[0].usage.prompt_tokens
    assert first == 0
    fewest = prompt_tokens - 24 - grain.step - grain.shortest
    assert all(fewest < cached < prompt_tokens for cached in others)


def of_one_world(n: int) -> Request:
    """A request whose user message begins as that of the others, and says so."""
    world = "".join(f"- agent_{one}: rep=0.{one}, resources=100.0\n" for one in range(46))
    own = f"You are agent_{n} and have {n * n} credits. " * (1 + n % 3)
    system = Message("system", "You are a trader. " * 40)
    user = Message("user", world + own, len(world))
    return Request(f"a{n}", (system, user), sampling=Sampling(0.8, 8), timeout_s=300)


@pytest.mark.parametrize("engine", ["batched", "locked"])
async def test_a_world_that_prompts_share_is_read_once(
    batched: Batched, model: Path, engine: str
) -> None:
    backend, texts = await batched(model, 4, engine=engine), []
    for n in range(6):
        answer = await backend.generate(of_one_world(n), seed=n, slot=0)
        texts.append(answer.text)
        computed = answer.usage.prompt_tokens - answer.usage.cached_tokens
        assert answer.usage.prompt_tokens > 700
        assert computed < 120 or n == 0
    fresh = await batched(model, 1, engine=engine)
    for n in reversed(range(6)):
        assert (await fresh.generate(of_one_world(n), seed=n, slot=0)).text == texts[n]


def fresh_process(model: Path, kept: Path, slots: int) -> dict[str, Any]:
    script = Path(__file__).with_name("fixed_prompts.py")
    command = [sys.executable, str(script), str(model), "12", "batched", str(slots), str(kept)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert done.stderr == ""
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource module")
async def test_a_new_process_answers_the_same(batched: Batched, model: Path, kept: Path) -> None:
    first, second = fresh_process(model, kept, 3), fresh_process(model, kept, 12)
    assert first["texts"] == second["texts"]
    assert first["fingerprint"] == second["fingerprint"]
    async with Scheduler(await batched(model, 5)) as scheduler:
        done = await scheduler.run_step([fixed_request(n) for n in range(12)])
    assert first["texts"] == {str(n): done[n].answers[0].text for n in range(12)}


async def test_finished_answers_hold_their_schema(batched: Batched, model: Path) -> None:
    backend = await batched(model, 8)

    async def ask(seed: int) -> None:
        # More tokens than a text has bytes that holds the schema.
        request = replace(fixed_request(1), sampling=Sampling(1.0, 800))
        answer = await backend.generate(request, seed=seed, slot=0)
        assert answer.finish_reason is FinishReason.STOP
        jsonschema.validate(json.loads(answer.text), ACT.schema)

    async with anyio.create_task_group() as tasks:
        for seed in range(12):
            tasks.start_soon(ask, seed)


# What it says it is


async def test_facts_do_not_depend_on_slots_or_on_what_is_kept(
    batched: Batched, model: Path, tmp_path: Path
) -> None:
    infos: list[BackendInfo] = []
    for slots in (1, 16):
        backend = await batched(model, slots, cache_folder=tmp_path / str(slots))
        infos.append(await backend.start())
    kept: BackendInfo = await (await batched(model, 4, cache_folder=tmp_path / "1")).start()
    infos.append(kept)
    assert [info.slots for info in infos] == [1, 16, 4]
    assert len({info.fingerprint for info in infos}) == 1
    facts = infos[0].facts
    assert (facts["engine"], infos[0].serial) == ("batched", False)
    calibration = facts["calibration"]
    assert calibration["level"] == "invariant"
    assert max(calibration["rows"]) >= 8
    assert calibration["comparisons"] > 100


async def test_auto_takes_the_batched_engine_and_a_moderate_number_of_slots(
    batched: Batched, model: Path
) -> None:
    info: BackendInfo = await (await batched(model, "auto", engine="auto")).start()
    assert (info.facts["engine"], info.slots) == ("batched", 16)


async def test_auto_takes_the_locked_engine_where_nothing_agrees(
    batched: Batched, model: Path, tmp_path: Path
) -> None:
    prepare(model, tmp_path, Calibration("repeatable", (), (1, 2), 1))
    log = Log()
    backend = await batched(model, 4, engine="auto", cache_folder=tmp_path, log=log)
    info = await backend.start()
    assert (info.facts["engine"], info.slots, info.serial) == ("locked", 1, True)
    assert [event for event, _ in log.events] == ["engine.locked"]
    locked = await batched(model, 4, engine="locked")
    assert (await locked.start()).fingerprint == info.fingerprint
    assert (await backend.generate(fixed_request(1), seed=1, slot=0)).text


async def test_a_mixture_of_experts_answers_one_after_the_other(
    batched: Batched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which kernel an expert takes depends on how many rows of a step ask it."""
    model, log = write_mixture(tmp_path / "m.gguf"), Log()
    backend = await batched(model, 4, engine="auto", log=log)
    info = await backend.start()
    assert (info.facts["engine"], info.slots, info.serial) == ("locked", 1, True)
    [(event, fields)] = log.events
    assert event == "engine.locked"
    assert "experts" in fields["why"]
    assert (await backend.generate(fixed_request(1), seed=1, slot=0)).text
    with pytest.raises(ConfigError, match="can't be batched: which kernel its experts take"):
        await batched(model, 4)
    monkeypatch.setattr("scheduler.backends.llama_opening.available_bytes", lambda: 1 << 20)
    with pytest.raises(ConfigError, match=r"needs about .*lower n_ctx"):
        await batched(model, 4, engine="auto")


async def test_where_nothing_agrees_one_is_answered_after_the_other(
    batched: Batched, model: Path, tmp_path: Path
) -> None:
    prepare(model, tmp_path, Calibration("repeatable", (), (1, 2), 1))
    backend = await batched(model, 4, cache_folder=tmp_path)
    info = await backend.start()
    assert (info.facts["engine"], info.slots, info.serial) == ("batched", 1, True)
    assert info.facts["calibration"]["level"] == "repeatable"
    assert follows_plan(info, slots=4)
    texts = []
    for _ in range(2):
        async with Scheduler(backend, SchedulerConfig(slots=4)) as scheduler:
            done = await scheduler.run_step([fixed_request(n) for n in range(8)])
            assert scheduler.stats.max_in_flight == 1
        texts.append([one.answers[0].text for one in done])
    assert texts[0] == texts[1]


class Log:
    """Keeps events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    warning = error = info


async def test_memory_and_calibration_are_logged(
    batched: Batched, model: Path, tmp_path: Path
) -> None:
    log = Log()
    await batched(model, 6, cache_folder=tmp_path, log=log)
    (calibrated, found), (stated, memory) = log.events
    assert (calibrated, stated) == ("engine.calibrated", "memory.stated")
    assert found["seconds"] > 0
    assert (memory["slots"], memory["sequences"]) == (6, 10)
    assert memory["bytes"] > 10 * 1024 * 3 * 256 * 2


@pytest.mark.parametrize("engine", ["auto", "batched"])
async def test_slots_that_do_not_fit_into_memory_are_refused_before_loading(
    batched: Batched, model: Path, engine: str
) -> None:
    with pytest.raises(
        ConfigError, match=r"MiB for|for each of 1000\d+ seq.*lower scheduler.slots"
    ):
        await batched(model, 10**6, engine=engine, n_ctx=8192)


async def test_more_slots_than_llama_cpp_keeps_apart_are_refused(
    batched: Batched, model: Path
) -> None:
    with pytest.raises(ConfigError, match=r"scheduler.slots is 253, .* at most 252"):
        await batched(model, 253, n_ctx=256)


async def test_a_calibration_that_does_not_fit_into_memory_is_left_out(
    batched: Batched, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its probes take more than one slot with a short context does."""
    header, log = read_gguf_header(model), Log()
    needs = (
        memory_need(header, 512, sequences=5).total,
        memory_need(header, 554, sequences=18).total,
    )
    assert needs[0] < needs[1]
    monkeypatch.setattr("scheduler.backends.llama_opening.available_bytes", lambda: sum(needs) // 2)
    backend = await batched(model, 1, engine="auto", n_ctx=512, cache_folder=tmp_path, log=log)
    assert (await backend.start()).facts["engine"] == "locked"
    assert log.events == [
        ("engine.locked", {"model": model.name, "why": "there is no memory to calibrate it"})
    ]


async def test_larger_steps_are_looked_for_once(
    batched: Batched, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = await batched(model, 20, n_ctx=512, cache_folder=tmp_path)
    facts = (await backend.start()).facts
    monkeypatch.delattr("scheduler.backends.llama_batched.extend")
    for slots in (20, 18, 4):
        again = await batched(model, slots, n_ctx=512, cache_folder=tmp_path)
        assert (await again.start()).facts["calibration"] == facts["calibration"]
    with pytest.raises(NameError):
        await batched(model, 21, n_ctx=512, cache_folder=tmp_path)


# What goes wrong


async def test_a_question_that_can_not_begin_does_not_touch_its_neighbours(
    batched: Batched, model: Path, alone: dict[str, dict[int, str]]
) -> None:
    backend = await batched(model, 4)
    wrong = replace(fixed_request(1), sampling=replace(Sampling(0.8, 8), top_k=1.5))  # type: ignore[arg-type]

    async def fails() -> None:
        with anyio.fail_after(30), pytest.raises(ctypes.ArgumentError):
            await backend.generate(wrong, seed=1, slot=0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fails)
        assert await texts_of(backend, range(3)) == {n: alone["Q4_K_M"][n] for n in range(3)}


async def test_a_refused_question_does_not_touch_its_neighbours(
    batched: Batched, model: Path, alone: dict[str, dict[int, str]]
) -> None:
    backend = await batched(model, 4)
    odd = OutputSchema("odd", {"not": {"type": "string"}})

    async def refused() -> None:
        with pytest.raises(RequestRejected, match="'odd'"):
            await backend.generate(replace(fixed_request(1), schema=odd), seed=1, slot=0)
        long = replace(endless_request(rounds=50), sampling=Sampling(0.8, 2000))
        with pytest.raises(ContextExceeded, match=r"agent_0's prompt has \d+ tokens"):
            await backend.generate(long, seed=1, slot=0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(refused)
        assert await texts_of(backend, range(3)) == {n: alone["Q4_K_M"][n] for n in range(3)}


async def test_prompt_and_answer_that_just_fit_are_answered(batched: Batched, model: Path) -> None:
    backend = await batched(model, 2, n_ctx=512)
    request = endless_request(rounds=60)
    count = await backend.count_prompt_tokens(request.messages) or 0
    most = replace(request, sampling=Sampling(0.8, 512 - count))
    answers: list[RawAnswer] = []

    async def ask() -> None:
        answers.append(await backend.generate(most, seed=1, slot=0))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        tasks.start_soon(ask)
    assert [answer.usage.completion_tokens for answer in answers] == [512 - count] * 2
    assert answers[0].text == answers[1].text


@pytest.mark.parametrize(
    ("rounds", "tokens", "after_s"), [(1, 1900, 0.05), (300, 400, 0.005), (300, 400, 0.03)]
)
async def test_a_cancelled_question_frees_its_sequence(
    batched: Batched, model: Path, rounds: int, tokens: int, after_s: float
) -> None:
    backend = await batched(model, 1)
    with anyio.move_on_after(after_s) as scope:
        await backend.generate(endless_request(rounds=rounds, max_tokens=tokens), seed=1, slot=0)
    assert scope.cancelled_caught
    with anyio.fail_after(60):
        assert (await backend.generate(fixed_request(0), seed=1, slot=0)).text


async def test_close_while_answers_are_written_tells_all_of_them(
    batched: Batched, model: Path
) -> None:
    backend = await batched(model, 2)
    told: list[int] = []

    async def ask(n: int) -> None:
        with pytest.raises(ConnectionFailed, match="closed before the answer"):
            await backend.generate(endless_request(n), seed=1, slot=0)
        told.append(n)

    async with anyio.create_task_group() as tasks:
        for n in range(5):  # two are written, three wait
            tasks.start_soon(ask, n)
        await anyio.sleep(0.01)
        await backend.aclose()
    assert sorted(told) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("anyio_backend", [("trio", {})], ids=["trio"])  # its real clock
async def test_it_runs_on_trio(
    batched: Batched, model: Path, alone: dict[str, dict[int, str]]
) -> None:
    backend = await batched(model, 4)
    assert await texts_of(backend, range(8), [3, 5]) == {n: alone["Q4_K_M"][n] for n in range(8)}
