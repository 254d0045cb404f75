"""Numbers from records: spreads, histograms, rates over time. Pure.

The median is the usual one; p95 and p99 are nearest ranks, as in the run's summary.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from swarm_integration.report.records import Depth, End, Try

PHASES = ("other", "prefill", "decode", "failed")
"""What a slot's time goes into; `other` is waiting in the server and transport."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How samples (milliseconds) are spread."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    largest: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts in bins of one width, from 0.

    Attributes:
        width: Of a bin.
        counts: One a bin.
        beyond: Samples above the last bin, which a few outliers would stretch.
    """

    width: float
    counts: tuple[int, ...]
    beyond: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Something per second over time, in bins of one width (milliseconds)."""

    width_ms: float
    series: Mapping[str, tuple[float, ...]]


def nearest_rank(ordered: Sequence[float], percent: int) -> float:
    """Return the smallest sample that `percent` of the samples do not exceed."""
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]


def spread_of(samples: Iterable[float]) -> Spread | None:
    """Return count, mean, p50, p95, p99 and maximum; None without samples."""
    ordered = sorted(samples)
    if not ordered:
        return None
    return Spread(
        len(ordered),
        statistics.fmean(ordered),
        statistics.median(ordered),
        nearest_rank(ordered, 95),
        nearest_rank(ordered, 99),
        ordered[-1],
    )


def nice_width(span: float, most_bins: int) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that needs at most `most_bins`."""
    if not span > 1e-300:  # none at all, and for smaller ones no power of ten is left
        return 1.0
    rough = span / most_bins
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1, 2, 5, 10):
        if factor * power * most_bins >= span * (1 - 1e-9):
            return factor * power
    return 10 * power


def histogram_of(samples: Sequence[float], most_bins: int = 32) -> Histogram | None:
    """Return the samples in bins; those far above the 99th percentile are only counted."""
    ordered = sorted(samples)
    if not ordered:
        return None
    p99 = nearest_rank(ordered, 99)
    top = ordered[-1] if ordered[-1] <= 2 * p99 else p99
    width = nice_width(top, most_bins)
    bins = max(1, math.ceil(top / width * (1 - 1e-9)))
    counts = [0] * bins
    beyond = 0
    for sample in ordered:
        if sample > bins * width * (1 + 1e-9):
            beyond += 1
        else:
            counts[min(bins - 1, int(sample / width))] += 1
    return Histogram(width, tuple(counts), beyond)


def phases_of(one: Try) -> list[tuple[str, float, float]]:
    """Return the parts of a try as (phase, start, end), in order.

    What the backend did not account for comes first, where a request waits in the
    server; decode ends with the answer. A try without an answer is one piece.
    """
    if not one.answered:
        phase = "other" if one.end is End.STOPPED else "failed"
        return [(phase, one.start_ms, one.end_ms)]
    decode = min(one.decode_ms or 0.0, one.service_ms)
    prefill = min(one.prefill_ms or 0.0, one.service_ms - decode)
    reads, writes = one.end_ms - decode - prefill, one.end_ms - decode
    pieces = [
        ("other", one.start_ms, reads),
        ("prefill", reads, writes),
        ("decode", writes, one.end_ms),
    ]
    return [piece for piece in pieces if piece[2] > piece[1]]


def spread_over(
    pieces: Iterable[tuple[float, float, float]], width_ms: float, bins: int
) -> list[float]:
    """Share amounts out over bins, evenly over the time that each took.

    Args:
        pieces: (start, end, amount).
        width_ms: Of a bin.
        bins: How many there are; what lies beyond goes into the last.
    """
    totals = [0.0] * bins
    for start, end, amount in pieces:
        first = min(bins - 1, max(0, int(start / width_ms)))
        last = min(bins - 1, max(first, int(end / width_ms)))
        if first == last or end <= start:
            totals[first] += amount
            continue
        for index in range(first, last + 1):
            left = start if index == first else index * width_ms
            right = end if index == last else (index + 1) * width_ms
            totals[index] += amount * (right - left) / (end - start)
    return totals


def token_rates(tries: Sequence[Try], duration_ms: float, bins: int = 120) -> Rates:
    """Return tokens per second, read (`prefill`) and written (`decode`), over time.

    Tokens from the cache are not read. Where the backend reports no phase, tokens are
    shared out over the whole try.
    """
    bins = bins if duration_ms > 0 else 1
    width = duration_ms / bins or 1.0
    read, written = [], []
    for one in tries:
        if not one.answered:
            continue
        pieces = {name: (start, end) for name, start, end in phases_of(one)}
        whole = (one.start_ms, one.end_ms)
        read.append((*pieces.get("prefill", whole), float(one.prompt_tokens - one.cached_tokens)))
        written.append((*pieces.get("decode", whole), float(one.completion_tokens)))
    per_second = 1000.0 / width
    return Rates(
        width,
        {
            "prefill": tuple(per_second * n for n in spread_over(read, width, bins)),
            "decode": tuple(per_second * n for n in spread_over(written, width, bins)),
        },
    )


def busy_shares(tries: Sequence[Try], width_ms: float, bins: int) -> dict[str, list[float]]:
    """Return, for one slot, the share of each bin that each phase took."""
    pieces: dict[str, list[tuple[float, float, float]]] = {phase: [] for phase in PHASES}
    for one in tries:
        for phase, start, end in phases_of(one):
            pieces[phase].append((start, end, (end - start) / width_ms))
    return {phase: spread_over(found, width_ms, bins) for phase, found in pieces.items()}


def depth_steps(depths: Sequence[Depth], backend: str | None = None) -> list[tuple[float, int]]:
    """Return a queue's length after each change, or that of all queues together."""
    changes: dict[float, int] = {}
    for one in depths:
        if backend is None or one.backend == backend:
            changes[one.at_ms] = changes.get(one.at_ms, 0) + one.change
    length = 0
    steps = []
    for at_ms in sorted(changes):
        length += changes[at_ms]
        steps.append((at_ms, length))
    return steps


def thinned(steps: Sequence[tuple[float, int]], duration_ms: float, bins: int) -> list[float]:
    """Return the greatest length within each bin of the time."""
    if not duration_ms > 0:
        return [float(max((length for _, length in steps), default=0))]
    width = duration_ms / bins
    greatest = [0.0] * bins
    for (start, length), (end, _) in pairwise([*steps, (duration_ms, 0)]):
        first = min(bins - 1, int(start / width))
        last = min(bins - 1, max(first, math.ceil(end / width) - 1))
        for index in range(first, last + 1):
            greatest[index] = max(greatest[index], float(length))
    return greatest
