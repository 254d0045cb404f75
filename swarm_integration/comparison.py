"""What differs between a run and its replay: the first question, or the first metric.

Transcripts must be equal byte by byte, metrics number by number where numbers are
computed alike, elsewhere within a tolerance.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from swarm_integration.identity import differences, versions
from swarm_integration.manifest import platform_facts
from swarm_integration.rundir import MANIFEST, METRICS, TRANSCRIPT, file_sha256

METRICS_TOLERANCE = 1e-9
"""Largest relative difference of a metric on another platform, where sums of floating
point numbers may be formed otherwise."""

_KEY = ("epoch", "step", "kind", "agent_id", "ordinal", "reask")


def compare(
    directory: Path, again: Path, manifest: Mapping[str, Any], missing: str | None
) -> str | None:
    """Return the first difference between a run and its replay, or None.

    Args:
        directory: The run's directory.
        again: The replay's.
        manifest: The run's manifest.
        missing: What the replay could not be answered, or None.
    """
    before, now = lines(directory / TRANSCRIPT), lines(again / TRANSCRIPT)
    for number, (old, new) in enumerate(zip_longest(before, now), start=1):
        if old != new:
            return f"{TRANSCRIPT} line {number}: {_first_difference(old, new, missing)}"
    if missing is not None:
        return missing
    if file_sha256(directory / TRANSCRIPT) != manifest.get("trace_hash"):
        return f"{MANIFEST}: trace_hash is not the sha256 of {TRANSCRIPT}"
    return _metrics_problem(directory / METRICS, again / METRICS, exact=_same_platform(manifest))


def _same_platform(manifest: Mapping[str, Any]) -> bool:
    """Whether numbers are computed here as they were in the run."""
    same_python = manifest["identity"]["versions"].get("python") == versions()["python"]
    return same_python and manifest.get("platform") == platform_facts()


def _metrics_problem(before: Path, now: Path, *, exact: bool) -> str | None:
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in (before, now)]
    if texts[0] == texts[1]:
        return None
    try:
        then, fresh = map(json.loads, texts)
    except ValueError as exc:
        return f"{METRICS} is not JSON: {exc}"
    place = next(_metric_differences(then, fresh, "epoch", exact=exact), None)
    if place is None and exact:
        place = "the same numbers are written otherwise"
    return None if place is None else f"{METRICS}: {place}"


def _first_difference(old: str | None, new: str | None, missing: str | None) -> str:
    if old is None:
        return "the replay asks more questions than the run did"
    try:
        before = json.loads(old)
        name = " ".join(f"{key}={before[key]!r}" for key in _KEY)
    except (ValueError, KeyError, TypeError):
        return "is not a line of a transcript"
    if new is None:
        return f"{name}: {missing or 'the replay did not ask this question'}"
    found = next(differences(before, json.loads(new)), "the same content is written otherwise")
    return f"{name}: {found}"


def _metric_differences(before: Any, now: Any, place: str, *, exact: bool) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _metric_differences(
                before.get(key), now.get(key), f"{place}.{key}", exact=exact
            )
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _metric_differences(old, new, f"{place}[{index}]", exact=exact)
    elif before != now and (exact or not _close(before, now)) and not _both_nan(before, now):
        yield f"{place} was {before!r}, is {now!r}"


def _close(before: Any, now: Any) -> bool:
    numbers = isinstance(before, int | float) and isinstance(now, int | float)
    return numbers and math.isclose(before, now, rel_tol=METRICS_TOLERANCE)


def _both_nan(before: Any, now: Any) -> bool:
    numbers = isinstance(before, float) and isinstance(now, float)
    return numbers and math.isnan(before) and math.isnan(now)


def lines(path: Path) -> list[str]:
    """Return the lines of a transcript, without their line feeds."""
    # Not splitlines: answers may hold other separators than the line feed.
    return path.read_bytes().decode("utf-8", "replace").split("\n")[:-1]
