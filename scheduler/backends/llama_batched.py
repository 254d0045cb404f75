"""The batched engine as a backend sees it: opening it, and waiting for one answer of many.

Between `llama_inproc.py`, which users see, and `batched_engine.py`, which runs on the model's
thread. Here it is decided whether a model can be batched at all, how many sequences it gets and
whether they fit into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio

from scheduler.backends.base import RawAnswer
from scheduler.backends.batched_calibration import Calibration, calibrate, extend, probes_need
from scheduler.backends.batched_engine import BatchedEngine
from scheduler.backends.batched_job import Job
from scheduler.backends.calibration_cache import CalibrationCache, identity, processor
from scheduler.backends.llama_library import LoadedModel
from scheduler.backends.llama_memory import (
    SPARE_SEQUENCES,
    USUAL_ROWS,
    MemoryNeed,
    check_memory,
    memory_need,
    sequences_for,
    too_large,
)
from scheduler.backends.llama_native import LlamaModel
from scheduler.backends.llama_opening import Slots
from scheduler.backends.llama_prompt import Prompt
from scheduler.backends.native_model import (
    NativeModel,
    NativeSpec,
    import_llama_cpp,
    uses_flash_attention,
)
from scheduler.backends.native_thread import NativeThread
from scheduler.errors import ConfigError, ServerFault
from scheduler.gguf_file import GgufHeader
from scheduler.observe import EventLog
from scheduler.types import Message, Request

AUTO_SLOTS = (16, 8, 4, 2, 1)
"""What `slots: auto` tries, until it fits: beyond 16 rows a CPU gains little."""

MODEST_SLOTS = 8
"""More than these are taken by themselves only if half of the memory is left to others."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What is to be opened.

    Attributes:
        spec: File, context, threads and layers on the GPU.
        header: The file's header.
        model_sha256: The file's sha256 (hexadecimal).
        must: Whether a model that can't be batched is an error.
        slots: How many answers are written at once.
        available: Returns how many bytes of memory can be taken; None if the system says nothing.
        log: Is told of memory and calibration.
        cache_folder: Where calibrations are kept; the user's cache directory if None.
    """

    spec: NativeSpec
    header: GgufHeader
    model_sha256: str
    must: bool
    slots: Slots
    available: Callable[[], int | None]
    log: EventLog | None = None
    cache_folder: Path | None = None

    def need(self, slots: int, rows: Collection[int]) -> MemoryNeed:
        """Return the memory that `slots` answers at once take."""
        return self.need_of(sequences_for(slots, rows))

    def need_of(self, sequences: int) -> MemoryNeed:
        """Return the memory that so many sequences take."""
        return memory_need(
            self.header,
            self.spec.n_ctx,
            self.spec.n_gpu_layers,
            sequences=sequences,
            flash_attention=uses_flash_attention(import_llama_cpp(), self.spec),
        )

    def tell(self, event: str, **fields: Any) -> None:
        """Log what was decided."""
        if self.log is not None:
            self.log.info(event, model=self.spec.path.name, **fields)


@dataclass(frozen=True, slots=True)
class Opened:
    """What was opened.

    Attributes:
        engine: The batched engine, or None where batching is not possible.
        locked: The locked one instead.
        slots: How many answers are written at once.
        serial: Whether that is one, whatever is configured.
        facts: What the backend says about it.
    """

    engine: BatchedEngine | None
    locked: NativeModel | None
    slots: int
    serial: bool
    facts: Mapping[str, Any]


def open_batched(opening: Opening) -> Opened:
    """Load a model, calibrate it and open an engine; on the thread that will own it.

    Raises:
        ConfigError: The model can't be loaded, does not fit, or can't be batched and must be.
    """
    lib = import_llama_cpp()
    spec = opening.spec
    cache = CalibrationCache(identity(lib, spec, opening.model_sha256), opening.cache_folder)
    found = cache.read()
    if opening.header.has_experts:
        why = "which kernel its experts take depends on what else is in a step"
        return _locked_from_file(opening, why)
    if found is None and not _can_calibrate(opening):
        return _locked_from_file(opening, "there is no memory to calibrate it")
    # Before anything is loaded: with the row counts that are known, or those that are usual.
    if _slots_that_fit(opening, found.rows if found else USUAL_ROWS, loaded=False) is None:
        return _locked_from_file(opening, "there is no memory for more sequences")
    most = lib.llama_max_parallel_sequences() - SPARE_SEQUENCES
    if opening.slots != "auto" and opening.slots > most:
        raise ConfigError(
            f"scheduler.slots is {opening.slots}, but llama.cpp keeps at most {most} answers "
            "apart; lower scheduler.slots"
        )
    model = LoadedModel(lib, spec)
    try:
        if not model.is_plain:
            return _locked(opening, model, "it keeps more than keys and values of all its tokens")
        if found is None:
            found = _calibrated(opening, model)
            cache.write(found)
        if max(found.rows, default=1) == 1 and not opening.must:
            return _locked(opening, model, "no steps of several rows agree on this machine")
        if opening.slots != "auto" and found.rows_for(opening.slots) is None:
            found = extend(model, opening.header.bytes, found, opening.slots)
            cache.write(found)
        return _batched(opening, model, found)
    except BaseException:
        model.close()
        raise


def _batched(opening: Opening, model: LoadedModel, found: Calibration) -> Opened:
    rows: tuple[int, ...] = found.rows
    if not rows:
        # One at a time follows from the plan; who shares a step follows from the clock as well.
        opening = replace(opening, slots=1)
    elif opening.slots != "auto":
        rows = found.rows_for(opening.slots) or rows
    slots = _slots_that_fit(opening, rows, loaded=True)
    if slots is None:
        return _locked(opening, model, "there is no memory for more sequences")
    need = opening.need(slots, rows)
    opening.tell("memory.stated", slots=slots, sequences=need.sequences, bytes=need.total)
    engine = BatchedEngine(
        model, rows=rows, grain=found.grain, slots=slots, sequences=need.sequences
    )
    facts = {
        **model.facts,
        "engine": "batched",
        "calibration": {**found.facts(), "processor": processor()},
        "sequence_bytes": need.sequence,
    }
    return Opened(engine, None, slots, not rows, facts)


def _locked_from_file(opening: Opening, why: str) -> Opened:
    """Load the model for the locked engine, which takes less memory than the batched one.

    Raises:
        ConfigError: It does not fit either, or it must be the batched one.
    """
    lib, spec = import_llama_cpp(), opening.spec
    if not opening.must:
        flash = uses_flash_attention(lib, spec)
        check_memory(
            opening.header,
            spec.n_ctx,
            spec.n_gpu_layers,
            opening.available(),
            flash_attention=flash,
        )
    return _locked(opening, LoadedModel(lib, spec), why)


def _locked(opening: Opening, model: LoadedModel, why: str) -> Opened:
    """Open the locked engine instead, or say why that is not what was asked for.

    Raises:
        ConfigError: It must be the batched one.
    """
    if opening.must:
        model.close()
        raise ConfigError(
            f"model {opening.spec.path} can't be batched: {why}; set backend.engine to auto or "
            "locked"
        )
    opening.tell("engine.locked", why=why)
    locked = LlamaModel(model)
    spec, flash = opening.spec, model.flash_attention
    memory = memory_need(opening.header, spec.n_ctx, spec.n_gpu_layers, flash_attention=flash)
    facts = {**locked.facts, "engine": "locked", "memory_bytes": memory.total}
    return Opened(None, locked, 1, True, facts)


def _slots_that_fit(opening: Opening, rows: Collection[int], *, loaded: bool) -> int | None:
    """Return how many answers are written at once, or None if not even one fits.

    Raises:
        ConfigError: The configured number does not fit, or the engine must be this one.
    """
    candidates: tuple[int, ...] = AUTO_SLOTS if opening.slots == "auto" else (opening.slots,)
    available = opening.available()
    for slots in candidates:
        need = opening.need(slots, rows)
        taken = need.total - (need.weights if loaded else 0)
        spared = opening.slots == "auto" and slots > MODEST_SLOTS
        if available is None or taken <= available // (2 if spared else 1):
            return slots
    if opening.slots == "auto" and not opening.must:
        return None
    raise too_large(
        opening.header.path,
        opening.need(candidates[-1], rows),
        available or 0,
        "lower scheduler.slots or n_ctx, take a smaller model or quantization, set "
        "backend.engine to locked, or free memory",
    )


def _can_calibrate(opening: Opening) -> bool:
    """Whether there is memory for the sequences that a calibration compares."""
    sequences, tokens = probes_need(opening.header.bytes)
    need = replace(opening, spec=replace(opening.spec, n_ctx=tokens)).need_of(sequences)
    available = opening.available()
    return available is None or need.total <= available


def _calibrated(opening: Opening, model: LoadedModel) -> Calibration:
    began = perf_counter()
    try:
        found = calibrate(model, opening.header.bytes)
    except ServerFault as exc:
        raise ConfigError(f"model {opening.spec.path} can't be calibrated: {exc}") from exc
    opening.tell(
        "engine.calibrated",
        level=found.level,
        rows=list(found.rows),
        grain=found.facts()["grain"],
        seconds=round(perf_counter() - began, 3),
    )
    return found


class BatchedAnswers:
    """Puts questions to a batched engine and waits for the answers, on the event loop.

    Args:
        engine: The engine.
        thread: The thread that owns it.
        grace_s: How long a cancelled question waits for its sequence to be free, in seconds.
        check: Refuses a question whose prompt has so many tokens.
    """

    def __init__(
        self,
        engine: BatchedEngine,
        thread: NativeThread,
        grace_s: float,
        check: Callable[[Request, int], None],
    ) -> None:
        self._engine = engine
        self._thread = thread
        self._grace_s = grace_s
        self._check = check

    @property
    def overdue(self) -> str | None:
        """The label of a question that was told to stop and has not, if there is one."""
        return self._engine.overdue

    async def answer(self, request: Request, seed: int) -> RawAnswer:
        """Return the answer; cancelling frees its sequence at the next step.

        Raises:
            ContextExceeded: Prompt and answer do not fit; nothing was evaluated.
            RequestRejected: The template, the grammar or the sampler refuses the question.
            AnswerStopped: The engine was closed.
            ServerFault: llama.cpp failed.
        """
        job = Job(request, seed)
        submitted = False

        def submit(_: object) -> None:
            nonlocal submitted
            job.prompt = self._engine.prompt(request.messages, request.sampling.thinking)
            self._check(request, len(job.prompt.tokens))
            self._engine.submit(job)
            submitted = True

        try:
            await self._thread.run(submit, label=request.label)
            await job.done.wait()
        except BaseException:
            self._engine.stop(job)
            if submitted and not job.settled:
                with anyio.move_on_after(self._grace_s, shield=True):
                    await job.done.wait()
                if not job.settled:
                    self._engine.abandon(job)
            raise
        return job.result()

    def prompt(self, messages: Sequence[Message], thinking: bool | None) -> Prompt:
        """Return `messages` as tokens; on the thread that owns the engine.

        Raises:
            RequestRejected: The model's chat template refuses them.
        """
        return self._engine.prompt(messages, thinking)

    def stop(self) -> None:
        """Give up all questions."""
        self._engine.stop_all()

    def close(self) -> None:
        """Free everything; on the thread that owns the engine."""
        self._engine.close()
