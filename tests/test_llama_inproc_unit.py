"""The in-process backend without llama.cpp: files, chunks, grammars, a model that hangs."""

from __future__ import annotations

import itertools
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from scheduler.backends.base import RawAnswer
from scheduler.backends.gbnf import UnknownKeywordError, grammar_of
from scheduler.backends.llama_inproc import LlamaInprocBackend
from scheduler.backends.llama_memory import check_memory, memory_need, needed_bytes
from scheduler.backends.llama_prefix import BORDER_STEP, CHUNK_TOKENS, count_kept, cut
from scheduler.backends.llama_prompt import Prompt, split_thought
from scheduler.backends.native_model import (
    AnswerStopped,
    NativeSpec,
    load_native,
    uses_flash_attention,
    uses_repacking,
)
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import (
    AttemptTimeout,
    BackendUnavailable,
    ConfigError,
    ConnectionFailed,
    ContextExceeded,
    RequestRejected,
)
from scheduler.gguf_file import file_sha256, read_gguf_header
from scheduler.gguf_models import ModelShape, ensure_model, write_model
from scheduler.types import FinishReason, Sampling
from tests.questions import SCHEMA, question

SHAPE = ModelShape("unit", layers=1, width=64, heads=2, kv_heads=1, ff_width=64)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, {}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "unit.gguf"
    write_model(path, SHAPE)
    return path


class FakeModel:
    """Answers with what it was asked; the prompt `hang` does not return until released."""

    def __init__(self) -> None:
        self.facts = {"llama_cpp_python": "0.0"}
        self.released = threading.Event()
        self.entered = threading.Event()
        self.deaf = False
        self.running = 0
        self.most_running = 0
        self.threads: set[int] = set()
        self.interrupts = 0
        self.closed = 0

    def prompt(self, messages: Any, thinking: bool | None) -> Prompt:
        return Prompt(tuple(range(sum(len(m.content) for m in messages))))

    def answer(
        self, prompt: Prompt, sampling: Any, seed: int, schema: Any, stopped: Callable[[], bool]
    ) -> RawAnswer:
        self.threads.add(threading.get_ident())
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if seed == 13:
                self.entered.set()
                while not self.released.wait(0.005):
                    if stopped() and not self.deaf:
                        raise AnswerStopped
            return RawAnswer(f"seed {seed}", FinishReason.STOP)
        finally:
            self.running -= 1

    def interrupt(self) -> None:
        self.interrupts += 1

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.closed += 1


@pytest.fixture
def fake() -> Iterator[FakeModel]:
    fake = FakeModel()
    yield fake
    fake.released.set()


def backend_of(model: Path, fake: FakeModel, **changes: Any) -> LlamaInprocBackend:
    options = {"n_ctx": 200, "grace_s": 0.05, "load": lambda _: fake, **changes}
    return LlamaInprocBackend(model, **options)


async def happened(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - another thread makes it true
        await anyio.sleep(0.002)


async def entered(fake: FakeModel) -> None:
    await happened(fake.entered.is_set)


# Files


def test_header_says_what_the_file_holds(model: Path) -> None:
    header = read_gguf_header(model)
    assert (header.architecture, header.quantization) == ("llama", "Q8_0")
    assert header.dimension("context_length") == 8192
    assert "<|start_header_id|>" in header.chat_template
    assert len(file_sha256(model)) == 64


@pytest.mark.parametrize("missing", [1, 1000, -4, -40, -400])
def test_truncated_file_is_refused_wherever_it_is_cut(
    model: Path, tmp_path: Path, missing: int
) -> None:
    data = model.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[:-missing])
    with pytest.raises(ConfigError, match=r"cut\.gguf is (cut off|not a GGUF)"):
        read_gguf_header(path)


def test_every_cut_within_the_header_is_a_config_error(model: Path, tmp_path: Path) -> None:
    data = model.read_bytes()[:3000]
    path = tmp_path / "cut.gguf"
    for length in [*range(64), *range(64, 3000, 97)]:
        path.write_bytes(data[:length])
        with pytest.raises(ConfigError):
            read_gguf_header(path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("page.gguf", b"<html>not found</html>", "not a GGUF file"),
        ("empty.gguf", b"", "not a GGUF file"),
        ("old.gguf", b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        ("huge.gguf", b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60), "cut off or damaged"),
        ("kind.gguf", b"GGUF" + struct.pack("<IQQQcI", 3, 0, 1, 1, b"k", 99), "unknown type 99"),
        ("model.bin", b"GGUF", r"does not end in \.gguf"),
    ],
)
def test_file_that_is_no_model_is_refused(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        read_gguf_header(tmp_path / name)


def test_paths_that_name_no_file_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_gguf_header(tmp_path / "none.gguf")
    with pytest.raises(ConfigError, match="is a directory"):
        read_gguf_header(tmp_path)
    with pytest.raises(ConfigError, match=r"'\.\.'"):
        read_gguf_header(model.parent / ".." / model.parent.name / model.name)


def test_model_that_does_not_fit_is_refused_with_both_numbers(model: Path) -> None:
    header = read_gguf_header(model)
    check_memory(header, 4096, 0, None)
    check_memory(header, 4096, 0, needed_bytes(header, 4096))
    with pytest.raises(ConfigError, match=r"needs about \d+ MiB .* 1 MiB are available"):
        check_memory(header, 4096, 0, 1 << 20)


def test_longer_context_needs_more_memory(model: Path) -> None:
    header = read_gguf_header(model)
    # One layer, one key head of 32 numbers, F16, for keys and for values; scores of two heads
    # and a mask.
    more = 4096 * (2 * 64 + 3 * 4 * 256)
    assert needed_bytes(header, 8192) - needed_bytes(header, 4096) == more
    assert needed_bytes(header, 4097) == needed_bytes(header, 4096 + 256)


def test_the_header_tells_how_many_tokens_there_are(model: Path) -> None:
    header = read_gguf_header(model)
    assert header.vocabulary == ensure_model(model, SHAPE).vocabulary_size > 256


# Chunks


def test_chunks_are_the_prompt_and_none_is_too_long() -> None:
    tokens = list(range(1203))
    ends = (0, 1, 31, 32, 33, 255, 256, 257, 501, 640, 1202, 1203, 5000)
    for system, *shared in [*((end,) for end in ends), *itertools.permutations(ends, 3)]:
        chunks = cut(tokens, system, shared)
        assert [token for chunk in chunks for token in chunk] == tokens
        assert max(map(len, chunks)) <= CHUNK_TOKENS
        assert min(map(len, chunks)) > 0
        found = {sum(map(len, chunks[:n])) for n in range(len(chunks))}
        for end in (system, *shared):
            assert min(end, len(tokens) - 1) // BORDER_STEP * BORDER_STEP in found


def test_chunks_before_a_border_do_not_depend_on_what_comes_after() -> None:
    tokens = list(range(900))
    for border in (96, 256, 320, 736):
        chunks = cut(tokens, 64, (border,))
        other = cut([*tokens[: border + 9], *range(5000, 5400)], 64, (border,))
        count = next(n for n in range(9) if sum(map(len, chunks[:n])) == border)
        assert chunks[:count] == other[:count]
        assert chunks[count:] != other[count:]


def test_one_token_is_one_chunk() -> None:
    assert cut([7], 1) == ((7,),)


def test_only_whole_equal_chunks_are_kept_and_never_the_last() -> None:
    wanted = ((1, 2), (3, 4), (5,))
    assert count_kept((), wanted) == 0
    assert count_kept(wanted, wanted) == 2
    assert count_kept(((1, 2), (3,), (4, 5)), wanted) == 1
    assert count_kept(((1,), (2,), (3, 4)), wanted) == 0
    assert count_kept((*wanted, (6,)), wanted) == 2


# Grammars


def test_grammar_keeps_order_and_bounds() -> None:
    text = grammar_of(SCHEMA.schema)
    assert text.splitlines()[0].startswith('root ::= "{" space "\\"action\\"" space ":" space r0')
    assert 'r0 ::= "\\"trade\\"" | "\\"wait\\""' in text
    assert r'root ::= "\"" char{1,5} "\""' in grammar_of(
        {"type": "string", "minLength": 1, "maxLength": 5}
    )
    assert "char{0,}" in grammar_of({"type": "string", "maxLength": 5000})


def test_grammar_escapes_what_a_constant_holds() -> None:
    assert grammar_of({"const": 'a"b\\c\n'}).startswith(r'root ::= "\"a\\\"b\\\\c\\n\""')


@pytest.mark.parametrize(
    "schema", [{"not": {}}, {"type": "string", "pattern": "^a$"}, {"$ref": "#"}]
)
def test_grammar_does_not_guess_what_it_does_not_know(schema: dict[str, Any]) -> None:
    with pytest.raises(UnknownKeywordError):
        grammar_of(schema)


def test_thought_comes_apart_from_the_answer() -> None:
    assert split_thought("<think>\nhm </think>\n\n{}") == ("hm", "{}")
    assert split_thought("<think>no end") == ("no end", "")
    assert split_thought(" plain </think>") == ("", " plain </think>")


# The backend around a model


def test_missing_library_is_named_with_its_extra(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ConfigError, match=r"swarm-inference-scheduler\[llama-cpp\].*compiler"):
        load_native(NativeSpec(model, 512, 1, 0))


async def test_start_says_what_it_is_once(model: Path, fake: FakeModel) -> None:
    loads: list[NativeSpec] = []

    def load(spec: NativeSpec) -> FakeModel:
        loads.append(spec)
        return fake

    backend = backend_of(model, fake, n_ctx=9000, n_threads=3, load=load)
    info = await backend.start()
    assert await backend.start() == info
    await backend.wait_ready()
    assert [(spec.n_ctx, spec.n_threads) for spec in loads] == [(9000, 3)]
    assert (info.kind, info.slots, info.context_per_slot) == ("llama_inproc", 1, 9000)
    assert info.facts["engine"] == "locked"
    assert info.facts["model_sha256"] == file_sha256(model)
    assert "8192" in info.facts["warning"]
    await backend.aclose()


async def test_missing_model_is_found_at_the_start(tmp_path: Path, fake: FakeModel) -> None:
    backend = backend_of(tmp_path / "none.gguf", fake)
    with pytest.raises(ConfigError, match=r"none\.gguf does not exist"):
        await backend.start()
    with pytest.raises(ConnectionFailed, match="has not been started"):
        await backend.generate(question(), seed=1, slot=0)
    assert await backend.count_prompt_tokens(question().messages) is None
    await backend.aclose()


@pytest.mark.parametrize("wrong", ["n_ctx", "n_threads", "n_gpu_layers"])
def test_impossible_numbers_are_refused(model: Path, wrong: str) -> None:
    numbers = {"n_ctx": 64, "n_threads": 1, "n_gpu_layers": 0, wrong: -2}
    with pytest.raises(ConfigError, match=wrong):
        LlamaInprocBackend(
            model,
            n_ctx=numbers["n_ctx"],
            n_threads=numbers["n_threads"],
            n_gpu_layers=numbers["n_gpu_layers"],
        )


async def test_too_long_a_prompt_is_refused_unread(model: Path, fake: FakeModel) -> None:
    backend = backend_of(model, fake)
    await backend.start()
    asked = question("ada", sampling=Sampling(max_tokens=190))
    count = await backend.count_prompt_tokens(asked.messages)
    with pytest.raises(ContextExceeded, match=rf"ada's prompt has {count} .* n_ctx is 200"):
        await backend.generate(asked, seed=1, slot=0)
    assert fake.most_running == 0
    await backend.aclose()


@pytest.mark.parametrize(
    ("seed", "penalty"), [(-1, 1.0), (2**32 - 1, 1.0), (1, 0.0), (1, float("nan"))]
)
async def test_what_the_sampler_would_misread_is_refused(
    model: Path, fake: FakeModel, seed: int, penalty: float
) -> None:
    backend = backend_of(model, fake)
    await backend.start()
    asked = question(sampling=Sampling(max_tokens=5, repeat_penalty=penalty))
    with pytest.raises(RequestRejected):
        await backend.generate(asked, seed=seed, slot=0)
    await backend.aclose()


SHORT = Sampling(max_tokens=5)


async def test_answers_come_one_after_another_from_one_thread(model: Path, fake: FakeModel) -> None:
    backend = backend_of(model, fake)
    await backend.start()
    texts: dict[int, str] = {}

    async def ask(seed: int) -> None:
        asked = question(seed, sampling=SHORT)
        texts[seed] = (await backend.generate(asked, seed=seed, slot=0)).text

    async with anyio.create_task_group() as tasks:
        for seed in range(8):
            tasks.start_soon(ask, seed)
    assert texts == {seed: f"seed {seed}" for seed in range(8)}
    await backend.aclose()
    assert fake.most_running == 1
    assert len(fake.threads) == 1
    assert threading.get_ident() not in fake.threads


async def test_cancelled_answer_stops_the_model_before_it_is_used_again(
    model: Path, fake: FakeModel
) -> None:
    backend = backend_of(model, fake, grace_s=5.0)
    await backend.start()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend_ask, backend, 13)
        await entered(fake)
        tasks.cancel_scope.cancel()
    assert (fake.running, fake.interrupts) == (0, 1)
    assert (await backend_ask(backend, 2)).text == "seed 2"
    await backend.aclose()


async def backend_ask(backend: LlamaInprocBackend, seed: int, timeout_s: float = 5) -> RawAnswer:
    asked = question(f"agent-{seed}", sampling=SHORT, timeout_s=timeout_s)
    return await backend.generate(asked, seed=seed, slot=0)


async def test_model_that_does_not_return_is_never_used_beside_its_call(
    model: Path, fake: FakeModel
) -> None:
    fake.deaf = True
    backend = backend_of(model, fake)
    await backend.start()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend_ask, backend, 13)
        await entered(fake)
        tasks.cancel_scope.cancel()
    with pytest.raises(AttemptTimeout, match=r"agent-2 .* still works on agent-13"):
        await backend_ask(backend, 2, timeout_s=0.1)
    assert fake.running == 1
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend_ask, backend, 3)
        await anyio.sleep(0.01)
        fake.released.set()
    assert fake.most_running == 1
    await backend.aclose()
    assert fake.closed == 1


async def test_engine_settles_a_request_behind_a_hung_call(model: Path, fake: FakeModel) -> None:
    fake.deaf = True
    backend = backend_of(model, fake)
    config = SchedulerConfig(on_failure="noop")
    async with Scheduler(backend, config) as scheduler:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend_ask, backend, 13)
            await entered(fake)
            tasks.cancel_scope.cancel()
        asked = question(sampling=SHORT, timeout_s=0.1, max_retries=0)
        completion = await scheduler.submit(asked)
        assert isinstance(completion.error and completion.error.__cause__, AttemptTimeout)
        fake.released.set()
        assert (await scheduler.submit(question(sampling=SHORT))).ok
    await backend.aclose()


async def test_close_ends_a_running_answer_with_an_error_and_may_be_repeated(
    model: Path, fake: FakeModel
) -> None:
    backend = backend_of(model, fake, grace_s=5.0)
    await backend.start()
    errors: list[Exception] = []

    async def ask(seed: int) -> None:
        try:
            await backend_ask(backend, seed)
        except ConnectionFailed as exc:
            errors.append(exc)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, 13)
        await entered(fake)
        tasks.start_soon(ask, 4)
        await anyio.sleep(0.005)
        await backend.aclose()
    await backend.aclose()
    assert len(errors) == 2
    assert fake.closed == 1
    with pytest.raises(BackendUnavailable):
        await backend.start()
    with pytest.raises(BackendUnavailable):
        await backend.wait_ready()
    with pytest.raises(ConnectionFailed):
        await backend_ask(backend, 1)


async def test_close_does_not_wait_for_ever_for_a_hung_call(model: Path, fake: FakeModel) -> None:
    fake.deaf = True
    backend = backend_of(model, fake)
    await backend.start()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend_ask, backend, 13)
        await entered(fake)
        tasks.cancel_scope.cancel()
    with anyio.fail_after(60):
        await backend.aclose()
    assert fake.closed == 0
    fake.released.set()
    with anyio.fail_after(60):
        await happened(lambda: fake.closed == 1)


async def test_close_before_start_is_fine(model: Path) -> None:
    backend = LlamaInprocBackend(model)
    await backend.aclose()
    await backend.aclose()


class Build:
    """As much of the module `llama_cpp` as tells what it was compiled for."""

    def __init__(self, sets: str) -> None:
        self._sets = sets.encode()

    def llama_print_system_info(self) -> bytes:
        return self._sets


@pytest.mark.parametrize(
    ("sets", "layers", "wanted", "flash"),
    [
        ("CPU : AVX2 = 1 | AVX512 = 1 | AVX512_VNNI = 1 | ", 0, None, True),
        ("CPU : AVX2 = 1 | FMA = 1 | ", 0, None, False),
        ("CPU : AVX2 = 1 | AVX512_VNNI = 1 | ", 0, None, False),
        ("CPU : AVX512 = 1 | ", 8, None, False),
        ("CPU : AVX512 = 1 | ", 0, False, False),
        ("CPU : AVX2 = 1 | ", 0, True, True),
    ],
)
def test_the_way_to_attend_follows_from_the_build_unless_it_is_said(
    sets: str, layers: int, wanted: bool | None, flash: bool
) -> None:
    spec = NativeSpec(Path("model.gguf"), 2048, 2, layers, wanted)
    assert uses_flash_attention(Build(sets), spec) is flash


@pytest.mark.parametrize(
    ("sets", "quantization", "wanted", "repacking"),
    [
        ("AVX512 = 1 | ", "Q4_K_M", None, False),
        ("AVX512 = 1 | ", "Q4_0", None, True),
        ("AVX2 = 1 | ", "Q4_K_M", None, True),
        ("AVX512 = 1 | ", "Q4_K_M", True, True),
        ("AVX2 = 1 | ", "Q8_0", False, False),
    ],
)
def test_the_arrangement_of_weights_follows_from_build_and_file_unless_it_is_said(
    sets: str, quantization: str, wanted: bool | None, repacking: bool
) -> None:
    spec = NativeSpec(Path("model.gguf"), 2048, 2, 0, repacking=wanted)
    assert uses_repacking(Build(sets), spec, quantization) is repacking


def test_without_all_scores_at_once_less_memory_is_stated(model: Path) -> None:
    header = read_gguf_header(model)
    whole, flash = (memory_need(header, 4096, flash_attention=one) for one in (False, True))
    assert flash.computing < whole.computing
    assert flash.total - flash.computing == whole.total - whole.computing
