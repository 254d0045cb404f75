"""One loaded llama.cpp model: a prompt in, an answer out, on the thread that calls.

On llama-cpp-python's low-level API, because `llama_cpp.Llama` decides by itself how much of the
last prompt to reuse, which changes answers. Here an answer is a function of prompt, sampling,
seed and schema: chunks follow from the prompt (`llama_prefix.py`), samplers are new each time.
Not thread-safe, except `interrupt`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

from scheduler.backends.answer_writer import AnswerWriter
from scheduler.backends.base import RawAnswer
from scheduler.backends.llama_library import ABORTED, Context, LoadedModel
from scheduler.backends.llama_prefix import CHUNK_TOKENS, Chunk, count_kept, cut
from scheduler.backends.llama_prompt import Prompt
from scheduler.backends.native_model import AnswerStopped
from scheduler.errors import ServerFault
from scheduler.types import Message, OutputSchema, Sampling


class LlamaModel:
    """A model and one context with one sequence.

    Args:
        model: The loaded model, closed with this.

    Raises:
        ConfigError: There is no room for the context.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        try:
            self._context = Context(
                model, sequences=1, n_ctx=model.spec.n_ctx, most_rows=CHUNK_TOKENS
            )
        except BaseException:
            model.close()
            raise
        self._resident: list[Chunk] = []
        self.facts: Mapping[str, Any] = model.facts

    def prompt(self, messages: Sequence[Message], thinking: bool | None) -> Prompt:
        """Return `messages` as tokens.

        Raises:
            RequestRejected: The model's chat template refuses them.
        """
        return self._model.reader.read(messages, thinking)

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
        self._context.allow()
        writer = AnswerWriter(self._model, prompt, sampling, seed, schema)
        try:
            began = perf_counter()
            cached = self._prefill(prompt, stopped)
            prefilled = perf_counter()
            self._write(prompt, writer, stopped)
            ended = perf_counter()
        finally:
            writer.close()
        return writer.answer(
            cached_tokens=cached, prefill_s=prefilled - began, decode_s=ended - prefilled
        )

    def interrupt(self) -> None:
        """Make llama.cpp leave the running evaluation; from any thread."""
        self._context.interrupt()

    def close(self) -> None:
        """Free everything; may be called twice."""
        self._context.close()
        self._model.close()

    def _prefill(self, prompt: Prompt, stopped: Callable[[], bool]) -> int:
        """Evaluate `prompt`; return how many of its tokens were there already."""
        chunks = cut(prompt.tokens, prompt.system_tokens, prompt.shared)
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
        if not tokens or not self._context.keep(0, tokens):
            self._context.clear()
            count = 0
        del self._resident[count:]
        return count

    def _write(self, prompt: Prompt, writer: AnswerWriter, stopped: Callable[[], bool]) -> None:
        position = len(prompt.tokens)
        while True:
            token = writer.write(self._context.pointer, -1)
            if writer.finished:
                return
            self._decode((token,), position, stopped)
            position += 1

    def _decode(self, tokens: Sequence[int], position: int, stopped: Callable[[], bool]) -> None:
        """Evaluate `tokens` after `position` others."""
        if stopped():
            raise AnswerStopped
        code = self._context.read(tokens, position, 0)
        if code == ABORTED:
            raise AnswerStopped
        if code != 0:
            self._keep(0)
            raise ServerFault(
                f"llama.cpp could not evaluate {len(tokens)} tokens at position {position} "
                f"(llama_decode returned {code}); if this happens again, restart the run"
            )
