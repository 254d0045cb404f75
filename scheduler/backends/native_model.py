"""What the in-process backend asks of a loaded model.

Between the backend, which knows requests, threads and cancellation, and `llama_native.py`, which
knows llama.cpp; a test puts a model that misbehaves in its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from scheduler.backends.base import RawAnswer
from scheduler.backends.llama_prompt import Prompt
from scheduler.errors import ConfigError
from scheduler.types import Message, OutputSchema, Sampling

PENALTY_TOKENS = 64
"""How many tokens back the penalties look, llama.cpp's own default."""

ARITHMETIC_VARIABLES = ("GGML_", "OMP_", "CUDA_", "HIP_", "HSA_")
"""How the names of variables begin that change how llama.cpp computes."""

RANDOM_SEED = 0xFFFF_FFFF
"""The seed that means "choose one" to llama.cpp."""


class AnswerStopped(Exception):
    """The answer was told to stop before its end."""


class NativeModel(Protocol):
    """What the backend asks of a loaded model."""

    facts: Mapping[str, Any]

    def prompt(self, messages: Sequence[Message], thinking: bool | None) -> Prompt:
        """Return `messages` through the chat template, as tokens."""
        ...

    def answer(
        self,
        prompt: Prompt,
        sampling: Sampling,
        seed: int,
        schema: OutputSchema | None,
        stopped: Callable[[], bool],
    ) -> RawAnswer:
        """Answer `prompt`.

        Raises:
            AnswerStopped: `stopped` has become true.
        """
        ...

    def interrupt(self) -> None:
        """Make the running answer look at `stopped` soon; from any thread."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


@dataclass(frozen=True, slots=True)
class NativeSpec:
    """What to load, and how it computes.

    Attributes:
        path: The GGUF file.
        n_ctx: Tokens of context of each sequence.
        n_threads: CPU threads.
        n_gpu_layers: Layers put on the GPU.
        flash_attention: Whether attention is computed in one pass over keys and values; None
            leaves it to the build (`uses_flash_attention`).
        repacking: Whether weights are arranged anew for kernels that take them so; None leaves
            it to the build and the file (`uses_repacking`).
    """

    path: Path
    n_ctx: int
    n_threads: int
    n_gpu_layers: int
    flash_attention: bool | None = None
    repacking: bool | None = None


def load_native(spec: NativeSpec) -> NativeModel:
    """Load a model with llama.cpp; this takes as long as reading its file.

    Raises:
        ConfigError: llama-cpp-python is missing, or llama.cpp can't load the file.
    """
    lib = import_llama_cpp()
    from scheduler.backends.llama_library import LoadedModel  # noqa: PLC0415 - needs it too
    from scheduler.backends.llama_native import LlamaModel  # noqa: PLC0415 - needs it too

    return LlamaModel(LoadedModel(lib, spec))


def arithmetic_variables() -> dict[str, str]:
    """Return the environment's variables that may choose kernels, threads or devices."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(ARITHMETIC_VARIABLES)
    }


def uses_flash_attention(lib: Any, spec: NativeSpec) -> bool:
    """Return whether attention is computed in one pass over keys and values.

    If nobody says: on a CPU, with a build that has AVX-512. There it was measured to be faster for
    prompts and for steps (docs/performance.md); with AVX2 alone steps were slower. It follows
    from the build and never from a measurement, since bits depend on it.

    Args:
        lib: The module `llama_cpp`.
        spec: What is loaded.
    """
    if spec.flash_attention is not None:
        return spec.flash_attention
    return spec.n_gpu_layers == 0 and _has_avx512(lib)


def uses_repacking(lib: Any, spec: NativeSpec, quantization: str) -> bool:
    """Return whether weights are arranged anew for kernels that take them so.

    If nobody says: everywhere, except for Q4_K weights with a build that has AVX-512, whose
    other kernels were measured to read prompts faster (docs/performance.md).

    Args:
        lib: The module `llama_cpp`.
        spec: What is loaded.
        quantization: The file's, as its header says it.
    """
    if spec.repacking is not None:
        return spec.repacking
    amx = b"AMX_INT8 = 1" in lib.llama_print_system_info()  # takes repacked weights alone
    return not (quantization.startswith("Q4_K") and _has_avx512(lib) and not amx)


def _has_avx512(lib: Any) -> bool:
    sets: bytes = lib.llama_print_system_info()
    return b"AVX512 = 1" in sets


def import_llama_cpp() -> Any:
    """Return the module `llama_cpp`.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import llama_cpp  # noqa: PLC0415 - an optional extra
        import numpy  # noqa: F401, PLC0415 - comes with it
    except ImportError as exc:
        raise ConfigError(
            "running a model in process needs llama-cpp-python; install it with: "
            'pip install "swarm-inference-scheduler[llama-cpp]" (it is compiled on your machine, '
            "which takes minutes and needs a C and C++ compiler), or use a llama-server"
        ) from exc
    return llama_cpp
