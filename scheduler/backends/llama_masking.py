"""Which tokens a grammar may allow next, found without asking it about the whole vocabulary.

llama.cpp looks at a grammar character by character and at every token from its beginning, which
takes a millisecond or more. A grammar that refuses a character refuses all tokens that begin
with it, so it is asked about the tokens of one byte first. What is left is asked about in full:
the tokens found here are all that are allowed, and some more.
"""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import Any

import numpy as np

Ids = np.ndarray[Any, np.dtype[np.int32]]

MANY = 256
"""Of more tokens with the same first byte the second byte is looked at, too."""

_ASCII = 128


class Beginnings:
    """The tokens of a vocabulary by the bytes that they begin with.

    Args:
        lib: The module `llama_cpp`.
        vocab: The model's vocabulary.
        size: How many tokens it has.
    """

    def __init__(self, lib: Any, vocab: Any, size: int) -> None:
        self._lib = lib
        self._vocab = vocab
        self._size = size

    def possible(self, grammar: Any) -> Ids:
        """Return all tokens that `grammar` allows next, among others, in ascending order."""
        found = [self._ends]
        for byte in self._allowed(grammar):
            group = self._by_first[byte]
            if len(group) > MANY and byte in self._single and byte < _ASCII:
                found.append(self._below(grammar, byte))
            else:
                found.append(group)
        return np.sort(np.concatenate(found))

    def _below(self, grammar: Any, byte: int) -> Ids:
        """Return the tokens that begin with `byte` and with what may follow it."""
        after = self._lib.llama_sampler_clone(grammar)
        try:
            self._lib.llama_sampler_accept(after, self._single[byte])
            allowed = self._allowed(after)
        finally:
            self._lib.llama_sampler_free(after)
        seconds = self._second[byte]
        wanted = np.zeros(257, dtype=bool)
        wanted[[*allowed, 256]] = True  # 256: nothing follows
        return self._by_first[byte][wanted[seconds]]

    def _allowed(self, grammar: Any) -> list[int]:
        """Return the bytes with which a token may begin."""
        probes = self._probes.copy()
        array = self._lib.llama_token_data_array(
            data=probes.ctypes.data_as(self._lib.llama_token_data_p),
            size=len(probes),
            selected=-1,
            sorted=False,
        )
        self._lib.llama_sampler_apply(grammar, ctypes.byref(array))
        allowed = self._probed[probes["logit"] == 1.0].tolist()
        return [*allowed, *self._unknown]

    @cached_property
    def _pieces(self) -> list[bytes]:
        size = 256
        buffer = ctypes.create_string_buffer(size)
        pieces = []
        for token in range(self._size):
            # With the text of special tokens, which is what a grammar looks at.
            used = self._lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, True)
            # Of a longer one only the beginning is needed, but llama.cpp gives all or nothing.
            pieces.append(buffer.raw[:used] if used >= 0 else self._long_piece(token, -used))
        return pieces

    def _long_piece(self, token: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        self._lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, True)
        return buffer.raw

    @cached_property
    def _ends(self) -> Ids:
        """The tokens that end an answer, which stand for no characters."""
        eog = self._lib.llama_vocab_is_eog
        return np.array([n for n in range(self._size) if eog(self._vocab, n)], dtype=np.int32)

    @cached_property
    def _by_first(self) -> dict[int, Ids]:
        ends = set(self._ends.tolist())
        groups: dict[int, list[int]] = {}
        for token, piece in enumerate(self._pieces):
            if piece and token not in ends:
                groups.setdefault(piece[0], []).append(token)
        return {byte: np.array(tokens, dtype=np.int32) for byte, tokens in groups.items()}

    @cached_property
    def _second(self) -> dict[int, Ids]:
        """The second bytes of the tokens of `_by_first`, 256 where there is none."""
        return {
            byte: np.array(
                [piece[1] if len(piece := self._pieces[token]) > 1 else 256 for token in tokens],
                dtype=np.int32,
            )
            for byte, tokens in self._by_first.items()
        }

    @cached_property
    def _single(self) -> dict[int, int]:
        """The tokens of one byte."""
        return {
            piece[0]: int(token)
            for tokens in self._by_first.values()
            for token in tokens
            if len(piece := self._pieces[token]) == 1
        }

    @cached_property
    def _probed(self) -> Ids:
        return np.array(sorted(self._single), dtype=np.int32)

    @cached_property
    def _unknown(self) -> list[int]:
        """First bytes of tokens for which there is no token of one byte to ask about."""
        return sorted(self._by_first.keys() - self._single.keys())

    @cached_property
    def _probes(self) -> np.ndarray[Any, Any]:
        kind = [("id", np.int32), ("logit", np.float32), ("p", np.float32)]
        probes = np.zeros(len(self._probed), dtype=kind)
        probes["id"] = [self._single[byte] for byte in self._probed.tolist()]
        probes["logit"] = 1.0
        return probes
