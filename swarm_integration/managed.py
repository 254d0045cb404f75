"""How many slots a managed server gets, and in how many of them one prompt prefix is held.

On a CPU a prompt is read by the same cores that write all answers, and a persona's prompt is
longer to read than an answer is to write. So there each prefix of the scenario gets slots of its
own, which keep it from one step to the next, and is not read once more by a slot that happens to
be free. On a GPU reading is cheap, and idle slots are what costs.
"""

from __future__ import annotations

from collections.abc import Callable

from scheduler.backends.llama_memory import available_bytes, memory_need
from scheduler.config import SchedulerConfig
from scheduler.errors import ConfigError
from scheduler.gguf_file import read_gguf_header
from scheduler.server import ManagedServer
from swarm_integration.config import InferenceConfig
from swarm_integration.scenario import Rehearsal

DEFAULT_MANAGED_SLOTS = 4
"""Slots of a managed server of which nothing else is known."""
MOST_SLOTS = 16


def prompt_prefixes(rehearsal: Rehearsal) -> int:
    """Return how many different prefixes the prompts of a scenario begin with."""
    return len({prompt.system for prompt in rehearsal.prompts})


def managed_slots(
    config: InferenceConfig,
    rehearsal: Rehearsal | None,
    context: int,
    available: Callable[[], int | None] = available_bytes,
) -> int:
    """Return how many slots a managed server has: as configured, or chosen.

    Chosen: on a CPU one for each prompt prefix, from 4 to 16, as far as the memory goes;
    with layers on a GPU 4.

    Args:
        config: The effective configuration.
        rehearsal: The scenario's prompts, None where there is no scenario.
        context: Tokens per slot.
        available: Says how many bytes of memory can still be taken, None if unknown.
    """
    slots = config.scheduler.slots
    if slots != "auto":
        return slots
    if config.backend.n_gpu_layers or rehearsal is None:
        return DEFAULT_MANAGED_SLOTS
    wanted = min(max(DEFAULT_MANAGED_SLOTS, prompt_prefixes(rehearsal)), MOST_SLOTS)
    return max(DEFAULT_MANAGED_SLOTS, min(wanted, _slots_that_fit(config, context, available())))


def with_prefix_copies(
    config: InferenceConfig, rehearsal: Rehearsal, server: ManagedServer | None
) -> SchedulerConfig:
    """Return the scheduler's settings, with `prefix_copies` chosen for a server on the CPU.

    Chosen: the slots divided by the prompt prefixes, so that no prefix drives out another.

    Args:
        config: The effective configuration.
        rehearsal: The scenario's prompts.
        server: The run's own server, if it has one.
    """
    settings = config.scheduler
    if server is None or config.backend.n_gpu_layers or settings.prefix_copies != "auto":
        return settings
    copies = max(1, server.spec.slots // max(1, prompt_prefixes(rehearsal)))
    return settings.model_copy(update={"prefix_copies": copies})


def _slots_that_fit(config: InferenceConfig, context: int, available: int | None) -> int:
    if available is None or config.backend.model_path is None:
        return MOST_SLOTS
    try:
        need = memory_need(
            read_gguf_header(config.backend.model_path), context, flash_attention=True
        )
    except ConfigError:
        return DEFAULT_MANAGED_SLOTS  # what is wrong with the file is told by whoever loads it
    return (available - need.weights - need.computing) // max(1, need.sequence)
