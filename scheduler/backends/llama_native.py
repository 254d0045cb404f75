"""One loaded llama.cpp model: a prompt in, an answer out, on the thread that calls.

On llama-cpp-python's low-level API, because `llama_cpp.Llama` decides by itself how much of the
last prompt to reuse, which changes answers. Here an answer is a function of prompt, sampling,
seed and schema: chunks follow from the prompt (`llama_prefix.py`), samplers are new each time.
Not thread-safe, except `interrupt`.
"""

from __future__ import annotations

import ctypes
import functools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

from scheduler.backends.base import RawAnswer
from scheduler.backends.llama_prefix import CHUNK_TOKENS, Chunk, count_kept, cut
from scheduler.backends.llama_prompt import (
    THOUGHT_BEGIN,
    THOUGHT_END,
    Prompt,
    PromptReader,
    split_thought,
)
from scheduler.backends.llama_sampling import Grammars, TokenPicker
from scheduler.backends.native_model import AnswerStopped, NativeSpec
from scheduler.errors import ConfigError, ServerFault
from scheduler.types import FinishReason, Message, OutputSchema, Sampling, Usage

_LOG_LEVEL_ERROR = 4  # `enum ggml_log_level`
_ABORTED = 2  # what llama_decode returns after its abort callback said so


class LlamaModel:
    """A model and one context with one sequence.

    Args:
        lib: The module `llama_cpp`.
        spec: What to load.

    Raises:
        ConfigError: llama.cpp can't load it, or it has no chat template.
    """

    def __init__(self, lib: Any, spec: NativeSpec) -> None:
        self._lib = lib
        complaints, _ = _captured_log(lib)
        complaints.clear()
        self._flag = ctypes.create_string_buffer(2)
        self._model: Any = None
        self._context: Any = None
        self._batch: Any = None
        self._grammars: Any = None
        try:
            self._load(spec)
            self._reader = PromptReader(lib, self._model, self._vocab)
            self._grammars = Grammars(lib, self._vocab)
        except ConfigError as exc:
            self.close()
            said = f" (llama.cpp says: {' '.join(complaints)})" if complaints else ""
            raise ConfigError(f"model {spec.path} {exc}{said}") from exc
        self._resident: list[Chunk] = []
        self.facts: Mapping[str, Any] = {
            "llama_cpp_python": lib.__version__,
            "description": _text_of(lib.llama_model_desc, self._model),
            "n_ctx_train": lib.llama_model_n_ctx_train(self._model),
            "chunk_tokens": CHUNK_TOKENS,
            "flash_attention": False,
        }

    def prompt(self, messages: Sequence[Message], thinking: bool | None) -> Prompt:
        """Return `messages` as tokens.

        Raises:
            RequestRejected: The model's chat template refuses them.
        """
        return self._reader.read(messages, thinking)

    def answer(
        self,
        prompt: Prompt,
        sampling: Sampling,
        seed: int,
        schema: OutputSchema | None,
        stopped: Callable[[], bool],
    ) -> RawAnswer:
        """Answer `prompt`; the same arguments give the same bytes, whatever ran before.

        Raises:
            AnswerStopped: `stopped` has become true.
            RequestRejected: The schema can't be held.
            ServerFault: llama.cpp failed.
        """
        self._flag[0] = b"\0"
        grammar = self._grammars.copy_of(schema) if schema is not None else None
        size = self._lib.llama_vocab_n_tokens(self._vocab)
        picker = TokenPicker(self._lib, size, sampling, seed, grammar, prompt.tokens)
        try:
            began = perf_counter()
            cached = self._prefill(prompt, stopped)
            prefilled = perf_counter()
            tokens, text, reason = self._write(prompt, picker, sampling.max_tokens, stopped)
            ended = perf_counter()
        finally:
            picker.close()
        reasoning, text = split_thought(text)
        return RawAnswer(
            text=text,
            finish_reason=reason,
            usage=Usage(len(prompt.tokens), len(tokens), cached),
            prefill_ms=(prefilled - began) * 1000,
            decode_ms=(ended - prefilled) * 1000,
            reasoning=reasoning,
            token_ids=tuple(tokens),
        )

    def interrupt(self) -> None:
        """Make llama.cpp leave the running evaluation; from any thread."""
        self._flag[0] = b"\1"

    def close(self) -> None:
        """Free everything; may be called twice."""
        if self._grammars is not None:
            self._grammars.close()
        if self._context is not None:
            self._lib.llama_free(self._context)
        if self._batch is not None:
            self._lib.llama_batch_free(self._batch)
        if self._model is not None:
            self._lib.llama_model_free(self._model)
        self._grammars = self._context = self._batch = self._model = None

    def _load(self, spec: NativeSpec) -> None:
        lib = self._lib
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = spec.n_gpu_layers
        self._model = lib.llama_model_load_from_file(str(spec.path).encode(), params)
        if not self._model:
            raise ConfigError("can't be loaded; it may be damaged, or newer than llama-cpp-python")
        self._vocab = lib.llama_model_get_vocab(self._model)
        params = lib.llama_context_default_params()
        params.n_ctx = spec.n_ctx
        params.n_batch = params.n_ubatch = CHUNK_TOKENS
        params.n_seq_max = 1
        params.n_threads = params.n_threads_batch = spec.n_threads
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.no_perf = True
        # A callback in C: one in Python would wait for the interpreter at every node of the graph.
        params.abort_callback = _flag_is_raised(lib)
        params.abort_callback_data = ctypes.addressof(self._flag)
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise ConfigError(f"has no room for a context of {spec.n_ctx} tokens; lower n_ctx")
        self._memory = lib.llama_get_memory(self._context)
        self._batch = lib.llama_batch_init(CHUNK_TOKENS, 0, 1)

    def _prefill(self, prompt: Prompt, stopped: Callable[[], bool]) -> int:
        """Evaluate `prompt`; return how many of its tokens were there already."""
        chunks = cut(prompt.tokens, prompt.system_tokens)
        kept = self._keep(count_kept(self._resident, chunks))
        cached = position = sum(len(chunk) for chunk in chunks[:kept])
        for chunk in chunks[kept:]:
            self._decode(chunk, position, stopped)
            self._resident.append(chunk)
            position += len(chunk)
        return cached

    def _keep(self, count: int) -> int:
        """Drop all but `count` chunks from the KV cache; return how many are left."""
        tokens = sum(len(chunk) for chunk in self._resident[:count])
        # Recurrent models can't go back to a position, and say so: they start anew.
        if not tokens or not self._lib.llama_memory_seq_rm(self._memory, 0, tokens, -1):
            self._lib.llama_memory_clear(self._memory, False)
            count = 0
        del self._resident[count:]
        return count

    def _write(
        self, prompt: Prompt, picker: TokenPicker, most: int, stopped: Callable[[], bool]
    ) -> tuple[list[int], str, FinishReason]:
        """Return the answer's tokens, its text and why it ended."""
        written = bytearray(THOUGHT_BEGIN.encode() if prompt.thinks else b"")
        thinks, reason = prompt.thinks, FinishReason.LENGTH
        tokens: list[int] = []
        while len(tokens) < most:
            # Thoughts are not held to the schema, the answer after them is.
            token = picker.pick(self._context, held=not thinks)
            tokens.append(token)
            if token < 0:
                reason = FinishReason.OTHER
                break
            if self._lib.llama_vocab_is_eog(self._vocab, token):
                reason = FinishReason.STOP
                break
            written += self._piece(token)
            thinks = thinks and THOUGHT_END.encode() not in written
            if len(tokens) < most:
                self._decode((token,), len(prompt.tokens) + len(tokens) - 1, stopped)
        return tokens, written.decode("utf-8", "replace"), reason

    def _decode(self, tokens: Sequence[int], position: int, stopped: Callable[[], bool]) -> None:
        """Evaluate `tokens` after `position` others."""
        if stopped():
            raise AnswerStopped
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = 0
        batch.logits[len(tokens) - 1] = 1
        code = self._lib.llama_decode(self._context, batch)
        if code == _ABORTED:
            raise AnswerStopped
        if code != 0:
            self._keep(0)
            raise ServerFault(
                f"llama.cpp could not evaluate {len(tokens)} tokens at position {position} "
                f"(llama_decode returned {code}); if this happens again, restart the run"
            )

    def _piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            used = self._lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if used >= 0:
                return buffer.raw[:used]
            size = -used


def _flag_is_raised(lib: Any) -> Any:
    """Return C's `strlen` as an abort callback: true unless the flag is an empty string."""
    library = ctypes.cdll.msvcrt if hasattr(ctypes, "windll") else ctypes.CDLL(None)
    return ctypes.cast(library.strlen, lib.ggml_abort_callback)


@functools.cache
def _captured_log(lib: Any) -> tuple[deque[str], Any]:
    """Silence llama.cpp, which writes to stderr; return its last errors and the callback.

    The library has one log for the whole process, and it must never call what is gone.
    """
    errors: deque[str] = deque(maxlen=4)

    def keep(level: int, text: bytes, _: Any) -> None:
        if level == _LOG_LEVEL_ERROR:
            errors.append(text.decode("utf-8", "replace").strip())

    callback = lib.llama_log_callback(keep)
    lib.llama_log_set(callback, None)
    return errors, callback


def _text_of(function: Callable[..., int], model: Any) -> str:
    buffer = ctypes.create_string_buffer(256)
    function(model, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")
