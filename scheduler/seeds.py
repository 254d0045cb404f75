"""The seed of a request, a function of what it is and of nothing else.

It stands apart because it is a promise to other programs: the formula below
and the test vectors in `tests/test_seeds.py` are enough to compute it anywhere.

    text = canonical JSON of ["request-seed/1", base_seed, agent_id, epoch,
                              step, kind, ordinal, reask]
    seed = first 4 bytes of sha256(text), big-endian, without the highest bit
"""

from __future__ import annotations

from hashlib import sha256

from scheduler.canonical import canonical_json
from scheduler.types import Request

_FORMULA = "request-seed/1"
_MAX_SEED = 0x7FFF_FFFF


def derive_seed(*parts: str | int) -> int:
    """Return a seed in [0, 2**31) made from `parts`, the same on every machine."""
    digest = sha256(canonical_json(list(parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") & _MAX_SEED


def request_seed(request: Request, reask: int = 0) -> int:
    """Return the seed in [0, 2**31) with which `request` is sampled.

    The range avoids llama-server's 4294967295, which means "random" there.

    Args:
        request: What is asked.
        reask: 0 for the first question, n for the n-th re-ask.
    """
    return derive_seed(
        _FORMULA,
        request.base_seed,
        request.agent_id,
        request.epoch,
        request.step,
        request.kind,
        request.ordinal,
        reask,
    )
