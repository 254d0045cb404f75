"""One way to write data as text, so that equal data gives equal bytes.

Hashes, seeds and the transcript are made from this form: sorted keys, no
spaces, UTF-8 (RFC 8785 without its number formatting, which differs from
Python's only beyond 2**53 and for exponents).
"""

from __future__ import annotations

import json
from typing import Any

_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical_json(data: Any) -> str:
    """Return `data` as canonical JSON.

    Raises:
        ValueError: `data` holds NaN or an infinity, which JSON does not have.
    """
    return _ENCODER.encode(data)
