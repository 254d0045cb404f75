"""When a rate limit that is used up will be lifted, as the answer's headers say.

OpenAI, Groq and others tell how much of each limit is left (`x-ratelimit-remaining-requests`,
`-tokens`) and when it starts anew (`x-ratelimit-reset-...`), as a duration in the manner of
Go: `120ms`, `7.66s`, `6m0s`, `1h2m3s`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_LIMITS = ("requests", "tokens")
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|[dhms])"


def limit_reset_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds until every limit that is used up starts anew; None if unknown.

    Args:
        headers: The response's headers, found by lower-case name.
    """
    waits = [
        duration_s(headers.get(f"x-ratelimit-reset-{limit}", ""))
        for limit in _LIMITS
        if headers.get(f"x-ratelimit-remaining-{limit}", "").strip() == "0"
    ]
    return max((wait for wait in waits if wait is not None), default=None)


def duration_s(text: str) -> float | None:
    """Return the seconds of a duration such as `6m0s`; None if it is none."""
    text = text.strip()
    if not re.fullmatch(f"(?:{_PART})+", text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, text))
