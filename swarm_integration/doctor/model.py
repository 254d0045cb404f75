"""What a model file is, and whether it fits this machine. Reads its header alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scheduler.backends.llama_memory import available_bytes, memory_need
from scheduler.errors import ConfigError
from scheduler.gguf_file import GgufHeader, read_gguf_header
from scheduler.server_command import unproven
from swarm_integration.doctor.findings import Finding

GET_MODEL = "./scripts/llama-server-setup.sh download; or swarm-inference make-model"

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A model file and what it shall do.

    Attributes:
        path: The file.
        slots: How many slots it gets, 1 for one answer at a time in this process.
        context: Tokens that each slot holds, None where that is not known.
        n_gpu_layers: Layers on the GPU.
        invariant: Whether a server is to run it with the profile `invariant`.
        sequences: How many sequences there are in memory; None for one for each slot.
        flash_attention: Whether attention is computed in one pass over keys and values.
        at_least: Whether a run takes more slots where there is room for them.
    """

    path: Path
    slots: int = 1
    context: int | None = None
    n_gpu_layers: int = 0
    invariant: bool = False
    sequences: int | None = None
    flash_attention: bool = False
    at_least: bool = False


def check_model(use: ModelUse) -> Iterator[Finding]:
    """Yield what the file is, and whether what it shall do fits it and the memory."""
    check = f"model {use.path}"
    try:
        header = read_gguf_header(use.path)
    except ConfigError as exc:
        says = str(exc).removeprefix(f"model {use.path} ")
        yield Finding(check, "error", says, GET_MODEL, {"path": str(use.path.absolute())})
        return
    yield _about(check, header)
    yield from _template(check, header)
    yield from _context(check, header, use)
    if use.context is not None:
        yield _memory(check, header, use, use.context)
    if use.invariant and (found := unproven(header)):
        yield Finding(
            check,
            "error",
            f"server_profile invariant was measured not to hold for {found}",
            "take a Q8_0 or Q4_K_M file without experts; or set determinism.server_profile to fast",
        )


def _about(check: str, header: GgufHeader) -> Finding:
    facts = {
        "path": str(header.path.absolute()),
        "bytes": header.bytes,
        "architecture": header.architecture,
        "quantization": header.quantization,
        "trained_context": header.dimension("context_length"),
        "layers": header.dimension("block_count"),
        "chat_template": bool(header.chat_template),
        "name": str(header.metadata.get("general.name", "")),
    }
    says = (
        f"{facts['architecture'] or 'unknown architecture'}, "
        f"{facts['quantization'] or 'unknown quantization'}, {header.bytes / 1e6:,.1f} MB, "
        f"trained for {facts['trained_context']:,} tokens"
    )
    return Finding(check, "ok", says, facts=facts)


def _template(check: str, header: GgufHeader) -> Iterator[Finding]:
    if not header.chat_template:
        says = "has no chat template, so messages can't be turned into a prompt; a base model?"
        yield Finding(check, "error", says, "take an instruct model, whose name says Instruct")


def _context(check: str, header: GgufHeader, use: ModelUse) -> Iterator[Finding]:
    trained = header.dimension("context_length")
    if use.context is not None and 0 < trained < use.context:
        says = f"was trained for {trained:,} tokens, and a slot gets {use.context:,}"
        mend = f"set backend.context_per_slot to {trained}, or lower max_tokens"
        yield Finding(check, "warning", says, mend)


def _memory(check: str, header: GgufHeader, use: ModelUse, context: int) -> Finding:
    needed = memory_need(
        header,
        context,
        use.n_gpu_layers,
        sequences=use.sequences or use.slots,
        flash_attention=use.flash_attention,
    ).total
    free = available_bytes()
    facts = {"needed_bytes": needed, "available_bytes": free, "slots": use.slots}
    slots = f"{use.slots} slot{'' if use.slots == 1 else 's'} of {context:,} tokens"
    least = "at least" if use.at_least else "about"
    says = f"takes {least} {needed // _MIB:,} MiB of memory with {slots}"
    if use.at_least:
        says += ", more with the slots that a run adds where they fit"
    if free is None:
        return Finding(check, "ok", says, facts=facts)
    says += f"; {free // _MIB:,} MiB are free"
    if needed <= free:
        return Finding(check, "ok", says, facts=facts)
    mend = "fewer slots, a smaller model or another quantization; or free memory"
    return Finding(check, "error", says, mend, facts)
