"""A llama.cpp model in this process as a backend: one model, one or several answers at once.

The model is loaded once for everyone who asks this backend, and lives on a thread of its own,
which is also its lock. Make one backend per file, context and thread count; nothing is global.
An answer depends on the request, the seed and the model, never on what ran before or beside it.
The `locked` engine (`llama_native.py`) gives one answer after another, the `batched` one
(`llama_batched.py`) several at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from scheduler.backends.base import BackendInfo, RawAnswer
from scheduler.backends.llama_opening import Engine, Slots, Wanted, open_model
from scheduler.backends.native_model import (
    RANDOM_SEED,
    AnswerStopped,
    NativeModel,
    NativeSpec,
    load_native,
)
from scheduler.backends.native_thread import NativeThread, Stopped
from scheduler.errors import (
    AttemptTimeout,
    BackendUnavailable,
    ConfigError,
    ConnectionFailed,
    ContextExceeded,
    RequestRejected,
)
from scheduler.observe import EventLog
from scheduler.types import Message, Request

if TYPE_CHECKING:
    from scheduler.backends.batched_engine import BatchedEngine
    from scheduler.backends.llama_batched import BatchedAnswers

__all__ = ["Engine", "LlamaInprocBackend", "Slots"]

_OVERDUE_SHARE = 0.9
"""The part of its deadline that a request waits for a call that does not return.

Less than all of it, so that the error can say why, before the deadline's own says that it passed.
"""


class LlamaInprocBackend:
    """Answers with a llama.cpp model in this process; works on asyncio and on trio.

    A cancelled or timed-out answer ends within one node of llama.cpp's graph on a CPU, within one
    evaluation (a chunk of the prompt, or a token) on a GPU. A native call that does not end within
    `grace_s` keeps the model to itself: the next request waits for it, and its own deadline counts.

    Args:
        model_path: The GGUF file.
        n_ctx: Tokens of prompt and answer together.
        n_threads: CPU threads; by default one per CPU that this process may use. Bits depend on it.
        n_gpu_layers: Layers put on the GPU; -1 for all.
        grace_s: How long a cancelled request waits for the model to stop, in seconds.
        engine: `locked`, `batched`, or `auto`: batched where a calibration finds how answers do
            not depend on each other, else locked.
        flash_attention: Whether attention is computed in one pass; None leaves it to the build.
        slots: How many answers are written at once by the batched engine.
        log: Is told of memory and calibration.
        cache_folder: Where calibrations are kept; the user's cache directory if None.
        load: Loads the model for the locked engine; tests give another.

    Raises:
        ConfigError: A number is out of range.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        n_ctx: int = 4096,
        n_threads: int | None = None,
        n_gpu_layers: int = 0,
        grace_s: float = 2.0,
        engine: Engine = "locked",
        flash_attention: bool | None = None,
        slots: Slots = "auto",
        log: EventLog | None = None,
        cache_folder: Path | None = None,
        load: Callable[[NativeSpec], NativeModel] = load_native,
    ) -> None:
        if n_ctx < 1 or (n_threads is not None and n_threads < 1) or n_gpu_layers < -1:
            raise ConfigError(
                f"n_ctx ({n_ctx}) and n_threads ({n_threads}) must be 1 or more, "
                f"n_gpu_layers ({n_gpu_layers}) -1 or more"
            )
        threads = n_threads or _usable_cpus()
        if slots != "auto" and slots < 1:
            raise ConfigError(f"slots must be 1 or more, got {slots}")
        self._spec = NativeSpec(model_path, n_ctx, threads, n_gpu_layers, flash_attention)
        self._wanted = Wanted(self._spec, engine, slots, log, cache_folder, load)
        self._grace_s = grace_s
        self._thread = NativeThread(f"llama {model_path.name}", grace_s=grace_s)
        self._native: NativeModel | None = None
        self._batched: BatchedAnswers | None = None
        self._info: BackendInfo | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<LlamaInprocBackend {self._spec.path.name}, n_ctx {self._spec.n_ctx}>"

    async def start(self) -> BackendInfo:
        """Check the file and load the model, once; called again, say the same.

        Raises:
            ConfigError: The file, the memory or the library does not allow it.
            BackendUnavailable: The backend is closed.
        """
        self._check_open()
        return await self._thread.run(lambda _: self._get_ready(), label="loading the model")

    async def wait_ready(self) -> None:
        """Return at once: a model in this process is there, or it is closed.

        Raises:
            BackendUnavailable: The backend is closed.
        """
        await anyio.lowlevel.checkpoint()
        self._check_open()

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:  # noqa: ARG002 - part of the protocol
        """Answer `request` after the requests before it; cancelling stops the model.

        Raises:
            ContextExceeded: Prompt and answer do not fit `n_ctx`; nothing was evaluated.
            RequestRejected: The template, the grammar or the sampler refuses the request.
            AttemptTimeout: A call before it does not return.
            ConnectionFailed: The backend was closed.
            ServerFault: llama.cpp failed.
        """
        if self._closed or self._info is None:
            raise ConnectionFailed(f"{request.label}: {self._why_not()}")
        _check_sampling(request, seed)
        await self._wait_overdue(request)
        try:
            if self._batched is not None:
                return await self._batched.answer(request, seed)
            return await self._answer_alone(request, seed)
        except AnswerStopped as exc:
            raise ConnectionFailed(
                f"{request.label}: the backend was closed before the answer was complete"
            ) from exc

    async def _answer_alone(self, request: Request, seed: int) -> RawAnswer:
        native = self._native
        if native is None:
            raise AnswerStopped

        def answer(stopped: Stopped) -> RawAnswer:
            if self._closed:
                raise AnswerStopped
            prompt = native.prompt(request.messages, request.sampling.thinking)
            self._check_fits(request, len(prompt.tokens))
            return native.answer(prompt, request.sampling, seed, request.schema, stopped)

        return await self._thread.run(answer, label=request.label, interrupt=native.interrupt)

    async def count_prompt_tokens(self, messages: Sequence[Message]) -> int | None:
        """Return the exact number of tokens that `messages` are as a prompt.

        Returns:
            None before `start` and after `aclose`.

        Raises:
            RequestRejected: The model's chat template refuses the messages.
        """
        native = self._batched or self._native
        if self._closed or native is None:
            return None
        prompt = await self._thread.run(
            lambda _: native.prompt(messages, None), label="counting tokens"
        )
        return len(prompt.tokens)

    async def aclose(self) -> None:
        """Stop what runs and free model, context and thread; may be called twice."""
        self._closed = True
        if self._batched is not None:
            self._batched.stop()
        await self._thread.aclose(self._free)

    def _free(self) -> None:
        for native in (self._native, self._batched):
            if native is not None:
                native.close()
        self._native = self._batched = None

    def _get_ready(self) -> BackendInfo:
        """Open the model, on its thread."""
        if self._info is None:
            opened = open_model(self._wanted)
            self._native, engine = opened.native, opened.batched
            if engine is not None:
                self._batched = self._answers_of(engine)
                self._thread.do_between(engine.turn)
            self._info = opened.info
        return self._info

    def _answers_of(self, engine: BatchedEngine) -> BatchedAnswers:
        from scheduler.backends.llama_batched import (  # noqa: PLC0415 - needs the optional extra
            BatchedAnswers,
        )

        return BatchedAnswers(engine, self._thread, self._grace_s, self._check_fits)

    async def _wait_overdue(self, request: Request) -> None:
        """Wait until a call that was told to stop has returned."""
        overdue = self._thread.overdue or (self._batched.overdue if self._batched else None)
        if overdue is None:
            return
        with anyio.move_on_after(_OVERDUE_SHARE * request.timeout_s):
            await self._thread.run(lambda _: None, label="waiting")
            return
        raise AttemptTimeout(
            f"{request.label}: the model still works on {overdue}, which was told to stop, and is "
            "never used beside it; lower n_ctx, or take a smaller model or fewer threads"
        )

    def _check_fits(self, request: Request, prompt_tokens: int) -> None:
        most, n_ctx = request.sampling.max_tokens, self._spec.n_ctx
        if prompt_tokens + most > n_ctx:
            raise ContextExceeded(
                f"{request.agent_id}'s prompt has {prompt_tokens} tokens and its answer may have "
                f"{most}, n_ctx is {n_ctx}; raise n_ctx to {prompt_tokens + most} or more, or "
                "give the agent a shorter prompt or a smaller max_tokens"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise BackendUnavailable(f"{self._why_not()}; make a new one")

    def _why_not(self) -> str:
        state = "is closed" if self._closed else "has not been started"
        return f"the backend of {self._spec.path.name} {state}"


def _check_sampling(request: Request, seed: int) -> None:
    if not 0 <= seed < RANDOM_SEED:
        raise RequestRejected(
            f"{request.label}: seed {seed} is not in [0, {RANDOM_SEED}); derive it from the request"
        )
    if not request.sampling.repeat_penalty > 0:
        raise RequestRejected(
            f"{request.label}: repeat_penalty must be above 0, "
            f"got {request.sampling.repeat_penalty}; 1 is off"
        )


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
