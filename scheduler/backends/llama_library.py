"""What every engine in this process needs of llama.cpp: a loaded model, a context, an evaluation.

On llama-cpp-python's low-level API. It knows neither requests nor which sequence does what: that
is `llama_native.py` (one sequence) and `batched_engine.py` (many). Not thread-safe, except
`Context.interrupt`.
"""

from __future__ import annotations

import ctypes
import functools
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from scheduler.backends.llama_prefix import CHUNK_TOKENS
from scheduler.backends.llama_prompt import PromptReader
from scheduler.backends.llama_rows import Row, RowArrays, Tokens
from scheduler.backends.llama_sampling import Grammars, Scores
from scheduler.backends.native_model import NativeSpec, uses_flash_attention, uses_repacking
from scheduler.errors import ConfigError
from scheduler.gguf_file import read_gguf_header

ABORTED = 2
"""What llama_decode returns after its abort callback said so; the sequences are as before."""

_LOG_LEVEL_ERROR = 4  # `enum ggml_log_level`


class LoadedModel:
    """A model's weights, vocabulary, chat template and grammars.

    Args:
        lib: The module `llama_cpp`.
        spec: What to load.

    Raises:
        ConfigError: llama.cpp can't load it, or it has no chat template.
    """

    def __init__(self, lib: Any, spec: NativeSpec) -> None:
        self.lib = lib
        self.spec = spec
        self.flash_attention = uses_flash_attention(lib, spec)
        self.repacking = uses_repacking(lib, spec, read_gguf_header(spec.path).quantization)
        self._pointer: Any = None
        self._grammars: Grammars | None = None
        try:
            with saying_why(lib, spec):
                self._load(spec)
        except ConfigError:
            self.close()
            raise

    @property
    def pointer(self) -> Any:
        """llama.cpp's own model."""
        return self._pointer

    @property
    def grammars(self) -> Grammars:
        """Compiled grammars, kept by their schema."""
        assert self._grammars is not None, "used after close"  # noqa: S101 - a programming error
        return self._grammars

    @property
    def description(self) -> str:
        """What llama.cpp says that it is, such as `llama 1B Q4_K - Medium`."""
        buffer = ctypes.create_string_buffer(256)
        self.lib.llama_model_desc(self._pointer, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def is_plain(self) -> bool:
        """Whether it keeps keys and values of all its tokens, and nothing else."""
        lib, pointer = self.lib, self._pointer
        return not (
            lib.llama_model_is_recurrent(pointer)
            or lib.llama_model_is_hybrid(pointer)
            or lib.llama_model_is_diffusion(pointer)
            or lib.llama_model_has_encoder(pointer)
            or lib.llama_model_n_swa(pointer) > 0
        )

    @property
    def facts(self) -> dict[str, Any]:
        """What a run's manifest says about it, whatever engine it runs in."""
        return {
            "llama_cpp_python": self.lib.__version__,
            "description": self.description,
            "n_ctx_train": self.lib.llama_model_n_ctx_train(self._pointer),
            "chunk_tokens": CHUNK_TOKENS,
            "flash_attention": self.flash_attention,
            "repacking": self.repacking,
        }

    def ends(self, token: int) -> bool:
        """Whether `token` ends an answer."""
        return bool(self.lib.llama_vocab_is_eog(self._vocab, token))

    def piece(self, token: int) -> bytes:
        """Return the bytes that `token` stands for."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            used = self.lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if used >= 0:
                return buffer.raw[:used]
            size = -used

    def close(self) -> None:
        """Free everything; may be called twice."""
        if self._grammars is not None:
            self._grammars.close()
        if self._pointer is not None:
            self.lib.llama_model_free(self._pointer)
        self._grammars = self._pointer = None

    def _load(self, spec: NativeSpec) -> None:
        lib = self.lib
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = spec.n_gpu_layers
        # A mapped file stays resident beside the copies that llama.cpp arranges for its kernels.
        params.use_extra_bufts = self.repacking
        params.load_mode = lib.LLAMA_LOAD_MODE_NONE
        self._pointer = lib.llama_model_load_from_file(str(spec.path).encode(), params)
        if not self._pointer:
            raise ConfigError("can't be loaded; it may be damaged, or newer than llama-cpp-python")
        self._vocab = lib.llama_model_get_vocab(self._pointer)
        self.vocabulary_size = int(lib.llama_vocab_n_tokens(self._vocab))
        self.reader = PromptReader(lib, self._pointer, self._vocab)
        self._grammars = Grammars(lib, self._vocab)
        self.scores = Scores(lib, self._vocab, self.vocabulary_size)


class Context:
    """Keys and values of one or more sequences, each with `n_ctx` tokens of its own.

    Args:
        model: The loaded model; it outlives this.
        sequences: How many sequences there are.
        n_ctx: Tokens of each.
        most_rows: Most tokens evaluated at once.

    Raises:
        ConfigError: There is no room for it.
    """

    def __init__(self, model: LoadedModel, *, sequences: int, n_ctx: int, most_rows: int) -> None:
        lib, spec = model.lib, model.spec
        self._lib = lib
        self._model = model
        self._flag = ctypes.create_string_buffer(2)
        self._batch = RowArrays(lib, most_rows)
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx * sequences
        params.n_batch = params.n_ubatch = most_rows
        params.n_seq_max = params.n_outputs_max = sequences
        params.kv_unified = False
        params.n_threads = params.n_threads_batch = spec.n_threads
        params.flash_attn_type = (
            lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if model.flash_attention
            else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.no_perf = True
        # A callback in C: one in Python would wait for the interpreter at every node of the graph.
        params.abort_callback = _flag_is_raised(lib)
        params.abort_callback_data = ctypes.addressof(self._flag)
        with saying_why(lib, spec):
            self._pointer = lib.llama_init_from_model(model.pointer, params)
            if not self._pointer:
                raise ConfigError(
                    f"has no room for {sequences} x {n_ctx} tokens of context; lower n_ctx"
                )
        self._memory = lib.llama_get_memory(self._pointer)

    @property
    def pointer(self) -> Any:
        """llama.cpp's own context."""
        return self._pointer

    def evaluate(self, rows: Sequence[Row]) -> int:
        """Evaluate `rows` at once; return llama_decode's code, 0 for success."""
        return self._decode(self._batch.of(rows))

    def read(self, tokens: Tokens, position: int, sequence: int) -> int:
        """Evaluate `tokens` of one sequence from `position` on; the last one's scores are wanted.

        Returns:
            llama_decode's code, 0 for success.
        """
        return self._decode(self._batch.of_neighbours(tokens, position, sequence))

    def _decode(self, batch: Any) -> int:
        return int(self._lib.llama_decode(self._pointer, batch))

    def keep(self, sequence: int, tokens: int) -> bool:
        """Drop all of `sequence` but its first `tokens`; False where a model can't."""
        return bool(self._lib.llama_memory_seq_rm(self._memory, sequence, tokens, -1))

    def copy(self, source: int, target: int) -> None:
        """Make the sequence `target` what `source` is."""
        self._lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def clear(self) -> None:
        """Drop all of all sequences."""
        self._lib.llama_memory_clear(self._memory, False)

    def interrupt(self) -> None:
        """Make llama.cpp leave the running evaluation; from any thread."""
        self._flag[0] = b"\1"

    def allow(self) -> None:
        """Take back an interruption that came too late."""
        self._flag[0] = b"\0"

    def close(self) -> None:
        """Free everything; may be called twice."""
        if self._pointer is not None:
            self._lib.llama_free(self._pointer)
        self._pointer = None


@contextmanager
def saying_why(lib: Any, spec: NativeSpec) -> Iterator[None]:
    """Put the model's name and llama.cpp's last complaints into a `ConfigError` raised inside."""
    complaints, callback = _captured_log(lib)
    lib.llama_log_set(callback, None)  # the library has one log for the whole process
    complaints.clear()
    try:
        yield
    except ConfigError as exc:
        said = f" (llama.cpp says: {' '.join(complaints)})" if complaints else ""
        raise ConfigError(f"model {spec.path} {exc}{said}") from exc


def _flag_is_raised(lib: Any) -> Any:
    """Return C's `strlen` as an abort callback: true unless the flag is an empty string."""
    library = ctypes.cdll.msvcrt if hasattr(ctypes, "windll") else ctypes.CDLL(None)
    return ctypes.cast(library.strlen, lib.ggml_abort_callback)


@functools.cache
def _captured_log(lib: Any) -> tuple[deque[str], Any]:
    """Return llama.cpp's last errors and the callback that keeps them, and it from stderr.

    Cached, since the library must never call what is gone.
    """
    errors: deque[str] = deque(maxlen=4)

    def keep(level: int, text: bytes, _: Any) -> None:
        if level == _LOG_LEVEL_ERROR:
            errors.append(text.decode("utf-8", "replace").strip())

    return errors, lib.llama_log_callback(keep)
