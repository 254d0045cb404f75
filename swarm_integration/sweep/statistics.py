"""Means of runs and how sure they are. Pure.

Student's t is computed here: for whole degrees of freedom its distribution is a finite
sum (Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4), and
SWARM does not bring scipy.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its uncertainty.

    Attributes:
        n: How many samples there are, at least one.
        mean: Their mean.
        std: Their standard deviation with n - 1 in the denominator; None for one sample.
        low: Where the 95 % confidence interval of the mean begins; None for one sample.
        high: Where it ends.
    """

    n: int
    mean: float
    std: float | None = None
    low: float | None = None
    high: float | None = None


def estimate(samples: Sequence[float]) -> Estimate | None:
    """Return the mean of `samples` and its 95 % confidence interval by Student's t."""
    n = len(samples)
    if n == 0:
        return None
    mean = math.fsum(samples) / n
    if n == 1:
        return Estimate(1, mean)
    std = statistics.stdev(samples)
    half = t_quantile(0.975, n - 1) * std / math.sqrt(n)
    return Estimate(n, mean, std, mean - half, mean + half)


@cache
def t_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution, by bisection.

    Args:
        probability: Above 0.5 and below 1.
        degrees: Of freedom, 1 or more.
    """
    inside = 2 * probability - 1
    low, high = 0.0, 1.0
    while _within(high, degrees) < inside:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if _within(middle, degrees) < inside:
            low = middle
        else:
            high = middle
    return high


def _within(t: float, degrees: int) -> float:
    """Return the probability of a value between -t and t."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(degrees // 2):
        total += term
        term *= (
            (2 * k + 2) / (2 * k + 3) * cosine**2 if odd else (2 * k + 1) / (2 * k + 2) * cosine**2
        )
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
