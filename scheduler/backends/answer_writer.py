"""One answer while it is written: which token comes next, its text so far, and why it ends.

The same for an answer that has the model to itself and for one among many: it is given rows of
scores and knows nothing of the other rows.
"""

from __future__ import annotations

from typing import Any

from scheduler.backends.base import RawAnswer
from scheduler.backends.llama_library import LoadedModel
from scheduler.backends.llama_prompt import THOUGHT_BEGIN, THOUGHT_END, Prompt, split_thought
from scheduler.backends.llama_sampling import TokenPicker
from scheduler.types import FinishReason, OutputSchema, Sampling, Usage


class AnswerWriter:
    """Draws an answer token by token.

    Args:
        model: The loaded model.
        prompt: What is answered.
        sampling: How tokens are drawn.
        seed: Seed in [0, 2**32 - 1).
        schema: What the answer must hold, or None.

    Raises:
        RequestRejected: The schema can't be held.
    """

    def __init__(
        self,
        model: LoadedModel,
        prompt: Prompt,
        sampling: Sampling,
        seed: int,
        schema: OutputSchema | None,
    ) -> None:
        self._model = model
        self._prompt = prompt
        self._most = sampling.max_tokens
        grammar = model.grammars.copy_of(schema) if schema is not None else None
        self._picker = TokenPicker(model.lib, model.scores, sampling, seed, grammar, prompt.tokens)
        self._written = bytearray(THOUGHT_BEGIN.encode() if prompt.thinks else b"")
        self._thinks = prompt.thinks
        self._tokens: list[int] = []
        self._reason: FinishReason | None = None

    @property
    def finished(self) -> bool:
        """Whether the answer is complete."""
        return self._reason is not None

    def write(self, context: Any, row: int) -> int:
        """Draw the next token from a row of what was evaluated last, and return it.

        Args:
            context: llama.cpp's context.
            row: The row's place in what was evaluated; -1 is its last one.
        """
        # Thoughts are not held to the schema, the answer after them is.
        token = self._picker.pick(context, row, held=not self._thinks)
        self._tokens.append(token)
        if token < 0:
            self._reason = FinishReason.OTHER
        elif self._model.ends(token):
            self._reason = FinishReason.STOP
        else:
            self._written += self._model.piece(token)
            self._thinks = self._thinks and THOUGHT_END.encode() not in self._written
            if len(self._tokens) == self._most:
                self._reason = FinishReason.LENGTH
        return token

    def answer(self, *, cached_tokens: int, prefill_s: float, decode_s: float) -> RawAnswer:
        """Return what was written."""
        reasoning, text = split_thought(self._written.decode("utf-8", "replace"))
        return RawAnswer(
            text=text,
            finish_reason=self._reason or FinishReason.OTHER,
            usage=Usage(len(self._prompt.tokens), len(self._tokens), cached_tokens),
            prefill_ms=prefill_s * 1000,
            decode_ms=decode_s * 1000,
            reasoning=reasoning,
            token_ids=tuple(self._tokens),
        )

    def close(self) -> None:
        """Free the samplers; may be called twice."""
        self._picker.close()
