"""The environment of a process that coverage is not to measure.

A process that may write no more to a file can't write what coverage found either: it says so on
stderr, and leaves a broken file behind.
"""

from __future__ import annotations

import os


def unmeasured(**variables: str) -> dict[str, str]:
    """Return this process's environment, without what starts coverage, and with `variables`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_PROCESS_")}
    return {**kept, **variables}
