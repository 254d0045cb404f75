"""Numbers as readers want them: with a unit and three digits."""

from __future__ import annotations

import re

NONE = "\N{EN DASH}"
"""Stands where there is no number."""

_DIGITS = re.compile(r"(\d+)")


def duration(ms: float | None) -> str:
    """Return a time such as `0.42 ms`, `12.3 ms`, `1.24 s`, `3 min 20 s`, `2 h 05 min`."""
    if ms is None:
        return NONE
    if ms < 999.5:
        return f"{significant(ms)} ms"
    if ms < 99_950:
        return f"{significant(ms / 1000)} s"
    if ms < 3_599_500:
        return f"{int(ms / 1000 + 0.5) // 60} min {int(ms / 1000 + 0.5) % 60:02d} s"
    minutes = int(ms / 60_000 + 0.5)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def significant(value: float) -> str:
    """Return `value` with three digits, or all of its whole ones."""
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    if size >= 0.00995 or size == 0:
        return f"{value:.2f}" if size else "0"
    return f"{value:.2g}"


def whole(value: float) -> str:
    """Return a count with its thousands set apart."""
    return f"{value:,.0f}"


def share(part: float, total: float) -> str:
    """Return a part as a percentage, without hiding what is nearly none or nearly all."""
    if not total:
        return NONE
    percent = 100 * part / total
    if 0 < percent < 0.05:
        return "<0.1 %"
    if 99.95 <= percent < 100:
        return ">99.9 %"
    return f"{percent:.1f} %"


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return a sorting key by which `llm_2` comes before `llm_10`."""
    return [
        (0, int(part[:18]), "") if part.isascii() and part.isdigit() else (1, 0, part)
        for part in _DIGITS.split(name)
        if part
    ]


def plural(number: int, noun: str) -> str:
    """Return `1 slot`, `2 slots`."""
    return f"{whole(number)} {noun}" if number == 1 else f"{whole(number)} {noun}s"


def tick(ms: float, step_ms: float) -> str:
    """Return an axis's label, in the unit that the ticks' distance asks for."""
    if step_ms < 1000:
        return f"{_shortest(ms)} ms" if ms < 1000 else f"{_shortest(ms / 1000)} s"
    if step_ms < 60_000:
        minutes, seconds = divmod(round(ms / 1000), 60)
        return f"{seconds} s" if not minutes else f"{minutes}:{seconds:02d} min"
    if step_ms < 3_600_000:
        return f"{_shortest(ms / 60_000)} min"
    return f"{_shortest(ms / 3_600_000)} h"


def _shortest(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")
