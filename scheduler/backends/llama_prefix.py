"""Where a prompt is cut into chunks, and which chunks of the one before still hold.

llama.cpp's kernels choose by the number of rows, so the bits of a prompt's keys and values
depend on where its prefill was cut. Here the cuts follow from the prompt's own tokens alone,
and what stays in the KV cache stays by whole chunks: token for token and cut for cut those of
the new prompt. A warm prefill then gives the bits of a cold one, whatever the kernels do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

CHUNK_TOKENS = 256
"""Most tokens evaluated at once; also how finely a prefix is reused."""

BORDER_STEP = 32
"""A cut at the end of what prompts share is rounded down to a multiple of this.

For speed alone: kernels work on groups of up to 32 rows. Bits do not need it.
"""

Chunk = tuple[int, ...]


def cut(
    tokens: Sequence[int], system_tokens: int = 0, shared: Sequence[int] = ()
) -> tuple[Chunk, ...]:
    """Return `tokens` in the chunks in which they are always evaluated.

    Args:
        tokens: The whole prompt, one token or more.
        system_tokens: How many tokens at its start belong to the system message, which other
            prompts may share.
        shared: Where other beginnings end that prompts may share, in tokens from its start.
    """
    borders = sorted({0, *(border_of(tokens, end) for end in (system_tokens, *shared))})
    return tuple(
        tuple(tokens[i : min(i + CHUNK_TOKENS, end)])
        for start, end in pairwise((*borders, len(tokens)))
        for i in range(start, end, CHUNK_TOKENS)
    )


def border_of(tokens: Sequence[int], shared_tokens: int) -> int:
    """Return where `tokens` are cut for the sake of a beginning that prompts share."""
    return min(shared_tokens, len(tokens) - 1) // BORDER_STEP * BORDER_STEP


def count_kept(resident: Sequence[Chunk], wanted: Sequence[Chunk]) -> int:
    """Return how many leading chunks of `wanted` are those of `resident`.

    Never all of `wanted`: its last chunk is evaluated again, since the first token of the
    answer is drawn from the scores that this gives.
    """
    kept = 0
    for have, want in zip(resident, wanted[:-1], strict=False):
        if have != want:
            break
        kept += 1
    return kept


def shared_length(some: Sequence[int], others: Sequence[int]) -> int:
    """Return how many leading tokens the two have in common."""
    for index, (one, other) in enumerate(zip(some, others, strict=False)):
        if one != other:
            return index
    return min(len(some), len(others))
