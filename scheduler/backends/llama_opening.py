"""Opening a model in this process: its file is checked, and an engine chosen and filled.

Apart from the backend, because it happens once, on the model's thread, and knows files, memory
and engines, but no request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scheduler.backends.base import BackendInfo
from scheduler.backends.llama_memory import available_bytes, check_memory, memory_need
from scheduler.backends.native_model import (
    PENALTY_TOKENS,
    NativeModel,
    NativeSpec,
    import_llama_cpp,
    uses_flash_attention,
)
from scheduler.gguf_file import GgufHeader, file_sha256, read_gguf_header
from scheduler.observe import EventLog

if TYPE_CHECKING:
    from scheduler.backends.batched_engine import BatchedEngine

Engine = Literal["auto", "locked", "batched"]
Slots = int | Literal["auto"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be opened.

    Attributes:
        spec: File, context, threads and layers on the GPU.
        engine: Which engine; `auto` takes what the model and the machine allow.
        slots: How many answers are written at once by the batched engine.
        log: Is told of memory and calibration.
        cache_folder: Where calibrations are kept; the user's cache directory if None.
        load: Loads the model for the locked engine.
    """

    spec: NativeSpec
    engine: Engine
    slots: Slots
    log: EventLog | None
    cache_folder: Path | None
    load: Callable[[NativeSpec], NativeModel]


@dataclass(frozen=True, slots=True)
class Opened:
    """What was opened: one of two engines.

    Attributes:
        info: What the backend is now.
        native: The model for one answer after another, or None.
        batched: The engine for several at once, or None.
    """

    info: BackendInfo
    native: NativeModel | None = None
    batched: BatchedEngine | None = None


def open_model(wanted: Wanted) -> Opened:
    """Check the file and load it into its engine, on the thread that will own it.

    Raises:
        ConfigError: The file, the memory or the library does not allow it.
    """
    spec = wanted.spec
    header = read_gguf_header(spec.path)
    if wanted.engine == "locked":
        flash = bool(find_spec("llama_cpp")) and uses_flash_attention(import_llama_cpp(), spec)
        available = available_bytes()
        check_memory(header, spec.n_ctx, spec.n_gpu_layers, available, flash_attention=flash)
    digest = file_sha256(spec.path)
    if wanted.engine == "locked":
        native = wanted.load(spec)
        flash = bool(native.facts.get("flash_attention"))
        memory = memory_need(header, spec.n_ctx, spec.n_gpu_layers, flash_attention=flash)
        facts = {**native.facts, "engine": "locked", "memory_bytes": memory.total}
        return Opened(_info(header, spec, digest, facts), native)
    return _open_batched(wanted, header, digest)


def _open_batched(wanted: Wanted, header: GgufHeader, digest: str) -> Opened:
    import_llama_cpp()
    from scheduler.backends.llama_batched import (  # noqa: PLC0415 - needs the optional extra
        Opening,
        open_batched,
    )

    opening = Opening(
        spec=wanted.spec,
        header=header,
        model_sha256=digest,
        must=wanted.engine == "batched",
        slots=wanted.slots,
        available=available_bytes,
        log=wanted.log,
        cache_folder=wanted.cache_folder,
    )
    opened = open_batched(opening)
    info = _info(
        header, wanted.spec, digest, opened.facts, slots=opened.slots, serial=opened.serial
    )
    return Opened(info, opened.locked, opened.engine)


def _info(
    header: GgufHeader,
    spec: NativeSpec,
    digest: str,
    facts: Mapping[str, Any],
    *,
    slots: int = 1,
    serial: bool = True,
) -> BackendInfo:
    return BackendInfo(
        kind="llama_inproc",
        slots=slots,
        context_per_slot=spec.n_ctx,
        model=spec.path.name,
        build=f"llama-cpp-python {facts.get('llama_cpp_python', '')}".strip(),
        facts={**_facts(header, spec), "model_sha256": digest, **facts},
        serial=serial,
    )


def _facts(header: GgufHeader, spec: NativeSpec) -> dict[str, Any]:
    template, trained = header.chat_template, header.dimension("context_length")
    facts: dict[str, Any] = {
        "model_file": header.path.name,
        "model_bytes": header.bytes,
        "architecture": header.architecture,
        "model_ftype": header.quantization,
        "chat_template_sha256": sha256(template.encode()).hexdigest() if template else "",
        "n_ctx": spec.n_ctx,
        "n_threads": spec.n_threads,
        "n_gpu_layers": spec.n_gpu_layers,
        "penalty_tokens": PENALTY_TOKENS,
    }
    if trained and spec.n_ctx > trained:
        facts["warning"] = (
            f"n_ctx {spec.n_ctx} is more than the {trained} tokens that the model was trained for"
        )
    return facts
