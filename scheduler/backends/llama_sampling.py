"""How a token is drawn in process: llama.cpp's samplers, new for each answer.

The same samplers in the same order as those that a llama-server is told to use, so that one
seed means one thing. Nothing of a sampler outlives its answer: no random state, no window of
penalties, no place in a grammar. Only compiled grammars are kept, by their schema.
"""

from __future__ import annotations

import ctypes
import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from scheduler.backends.gbnf import UnknownKeywordError, grammar_of
from scheduler.backends.llama_masking import Beginnings
from scheduler.backends.native_model import PENALTY_TOKENS
from scheduler.errors import RequestRejected
from scheduler.types import OutputSchema, Sampling

MOST_GRAMMARS = 64
"""How many compiled grammars are kept."""

NO_PENALTIES = (1.0, 0.0, 0.0)
"""Penalties for repeating, by frequency and by presence, that change no score."""


class Grammars:
    """Compiled grammars by their schema's fingerprint.

    Args:
        lib: The module `llama_cpp`.
        vocab: The model's vocabulary.
    """

    def __init__(self, lib: Any, vocab: Any) -> None:
        self._lib = lib
        self._vocab = vocab
        self._compiled: OrderedDict[str, Any] = OrderedDict()

    def copy_of(self, schema: OutputSchema) -> Any:
        """Return a sampler at the beginning of the grammar of `schema`; the caller frees it.

        Raises:
            RequestRejected: llama.cpp can't hold the schema.
        """
        key = schema.fingerprint
        if key not in self._compiled:
            self._compiled[key] = self._compile(schema)
            if len(self._compiled) > MOST_GRAMMARS:
                self._lib.llama_sampler_free(self._compiled.popitem(last=False)[1])
        self._compiled.move_to_end(key)
        return self._lib.llama_sampler_clone(self._compiled[key])

    def close(self) -> None:
        """Free them all."""
        while self._compiled:
            self._lib.llama_sampler_free(self._compiled.popitem()[1])

    def _compile(self, schema: OutputSchema) -> Any:
        try:
            text = self._text(schema)
        except Exception as exc:  # the library's converter fails with whatever it met
            raise RequestRejected(
                f"output schema {schema.name!r} can't be turned into a grammar: {exc}; "
                "use simpler keywords, or set scheduler.structured_output to false"
            ) from exc
        grammar = self._lib.llama_sampler_init_grammar(self._vocab, text.encode(), b"root")
        if not grammar:
            raise RequestRejected(
                f"llama.cpp refuses the grammar of output schema {schema.name!r}; "
                "shorten its bounds (1,999 at most), or use simpler keywords"
            )
        return grammar

    def _text(self, schema: OutputSchema) -> str:
        try:
            return grammar_of(schema.schema)
        except UnknownKeywordError:
            from llama_cpp.llama_grammar import (  # noqa: PLC0415 - an optional extra
                json_schema_to_gbnf,
            )

            return str(json_schema_to_gbnf(json.dumps(dict(schema.schema))))


class Scores:
    """Room for the scores of one row, which the samplers of all answers share in turn.

    Args:
        lib: The module `llama_cpp`.
        vocab: The model's vocabulary.
        vocabulary_size: How many scores a row has.
    """

    def __init__(self, lib: Any, vocab: Any, vocabulary_size: int) -> None:
        self._lib = lib
        self._beginnings = Beginnings(lib, vocab, vocabulary_size)
        kind = [("id", np.int32), ("logit", np.float32), ("p", np.float32)]
        self._entries = np.zeros(vocabulary_size, dtype=kind)
        self._alone = np.zeros(1, dtype=kind)
        self._ids = np.arange(vocabulary_size, dtype=np.int32)

    @property
    def count(self) -> int:
        """How many scores a row has."""
        return len(self._ids)

    def draw(self, context: Any, row: int, samplers: Sequence[Any]) -> int:
        """Return the token that `samplers`, one after the other, choose from a row's scores."""
        logits = self._lib.llama_get_logits_ith(context, row)
        self._entries["id"] = self._ids
        self._entries["logit"] = np.ctypeslib.as_array(logits, self._ids.shape)
        array = self._array(self._entries)
        for sampler in samplers:
            self._lib.llama_sampler_apply(sampler, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def draw_held(self, context: Any, row: int, grammar: Any, chain: Any) -> int:
        """Return the token that `chain` chooses among those that `grammar` allows.

        As `draw` with both, which asks the grammar about every token and takes longer.

        Returns:
            The token, or -1 if none is allowed.
        """
        logits = self._lib.llama_get_logits_ith(context, row)
        ids = self._beginnings.possible(grammar)
        if not len(ids):
            return -1
        entries = self._entries[: len(ids)]
        entries["id"] = ids
        entries["logit"] = np.ctypeslib.as_array(logits, self._ids.shape)[ids]
        array = self._array(entries)
        self._lib.llama_sampler_apply(grammar, ctypes.byref(array))
        if not np.isfinite(entries["logit"]).any():
            return -1
        self._lib.llama_sampler_apply(chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def allows(self, grammar: Any, token: int) -> bool:
        """Whether `grammar` lets `token` come next."""
        alone = self._alone
        alone["id"], alone["logit"] = token, 1.0
        array = self._array(alone)
        self._lib.llama_sampler_apply(grammar, ctypes.byref(array))
        return bool(alone["logit"][0] == 1.0)

    def _array(self, entries: np.ndarray[Any, Any]) -> Any:
        pointer = entries.ctypes.data_as(self._lib.llama_token_data_p)
        return self._lib.llama_token_data_array(
            data=pointer, size=len(entries), selected=-1, sorted=False
        )


class TokenPicker:
    """Draws the tokens of one answer.

    Args:
        lib: The module `llama_cpp`.
        scores: Where rows of scores are looked at.
        sampling: How a token is drawn.
        seed: Seed in [0, 2**32 - 1).
        grammar: A grammar's sampler, freed with this, or None.
        prompt: The prompt's tokens, the last of which the penalties look back on.
    """

    def __init__(
        self,
        lib: Any,
        scores: Scores,
        sampling: Sampling,
        seed: int,
        grammar: Any,
        prompt: Sequence[int],
    ) -> None:
        self._lib = lib
        self._scores = scores
        self._grammar = grammar
        self._chain = _chain(lib, scores.count, sampling, seed)
        self._remembers = _penalties(sampling) != NO_PENALTIES
        for token in prompt[-PENALTY_TOKENS:]:
            lib.llama_sampler_accept(self._chain, token)

    def pick(self, context: Any, row: int, *, held: bool) -> int:
        """Draw a token from the scores of an evaluated row; it counts as drawn.

        Args:
            context: The llama.cpp context.
            row: The row's place in what was evaluated last; -1 is its last one.
            held: Whether the grammar, if there is one, holds for this token.

        Returns:
            The token, or -1 if the grammar allows none.
        """
        if self._grammar is None or not held:
            return int(self._lib.llama_sampler_sample(self._chain, context, row))
        # Masking the whole vocabulary is slow, and mostly the first draw is allowed.
        token = self._first(context, row)
        if not self._scores.allows(self._grammar, token):
            token = self._scores.draw_held(context, row, self._grammar, self._chain)
            if token < 0:
                return -1
        self._lib.llama_sampler_accept(self._grammar, token)
        self._lib.llama_sampler_accept(self._chain, token)
        return token

    def _first(self, context: Any, row: int) -> int:
        """Draw a token that the grammar has not seen; it does not count as drawn yet."""
        if self._remembers:
            return self._scores.draw(context, row, [self._chain])
        # In C throughout. It counts the token as drawn, which only penalties would notice.
        return int(self._lib.llama_sampler_sample(self._chain, context, row))

    def close(self) -> None:
        """Free the samplers; may be called twice."""
        chain, grammar = self._chain, self._grammar
        self._chain = self._grammar = None
        for sampler in (chain, grammar):
            if sampler is not None:
                self._lib.llama_sampler_free(sampler)


def _penalties(sampling: Sampling) -> tuple[float, float, float]:
    return (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)


def _chain(lib: Any, vocabulary_size: int, sampling: Sampling, seed: int) -> Any:
    params = lib.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = lib.llama_sampler_chain_init(params)
    penalties = _penalties(sampling)
    samplers = []
    if penalties != NO_PENALTIES:
        samplers.append(
            lib.llama_sampler_init_penalties(vocabulary_size, PENALTY_TOKENS, *penalties)
        )
    if sampling.temperature <= 0:
        samplers.append(lib.llama_sampler_init_greedy())
    else:
        samplers += [
            lib.llama_sampler_init_top_k(sampling.top_k),
            lib.llama_sampler_init_top_p(sampling.top_p, 0),
            lib.llama_sampler_init_min_p(sampling.min_p, 0),
            lib.llama_sampler_init_temp(sampling.temperature),
            lib.llama_sampler_init_dist(seed),
        ]
    for sampler in samplers:
        lib.llama_sampler_chain_add(chain, sampler)
    return chain
