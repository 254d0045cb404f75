"""Values out of a run directory that may come from a stranger.

Whatever a file holds becomes a number in a sane range, a clean short text, or the
given default. Control characters would act on a terminal and directional ones would
turn a line of text round, so neither is let through.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from typing import Any

NAME_CHARS = 120
TEXT_CHARS = 600
LARGEST = 1e12
"""Numbers beyond are taken for damage; in milliseconds it is thirty years."""

_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def text(value: object, default: str = "", *, limit: int = NAME_CHARS) -> str:
    """Return `value` as one clean line of at most `limit` characters."""
    if value is None:
        return default
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, str | int | float):
        return default
    # An integer with thousands of digits can't be written by Python.
    raw = value if isinstance(value, str) else f"{value:g}" if _finite(value) else "not a number"
    if isinstance(value, int) and abs(value) < LARGEST:
        raw = str(value)
    spaced = " ".join(raw[: 4 * limit].split())
    clean = "".join("\ufffd" if unicodedata.category(c) in _UNSAFE else c for c in spaced)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def number(value: object) -> float | None:
    """Return `value` if it is a finite number in range, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        return None
    return float(value)


def amount(value: object) -> float:
    """Return `value` if it is a number that is not negative, else 0."""
    found = number(value)
    return found if found is not None and found > 0 else 0.0


def count(value: object) -> int:
    """Return `value` as a whole number that is not negative, else 0."""
    return int(amount(value))


def mapping(value: object) -> Mapping[str, Any]:
    """Return `value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: object) -> list[Any]:
    """Return `value` if it is a JSON array, else an empty one."""
    return value if isinstance(value, list) else []


def wall_ms(value: object) -> float | None:
    """Return an ISO time as milliseconds since 1970, or None."""
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value).timestamp() * 1000.0
    except (ValueError, OverflowError, OSError):
        return None


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value) and abs(value) <= LARGEST
    except OverflowError:
        return False
