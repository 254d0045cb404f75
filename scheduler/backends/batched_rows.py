"""How many rows a decode step has, and which sequences they are: the pure decisions.

llama.cpp's kernels choose by the number of rows, so an answer's bits depend on it. Steps here
have one of the row counts that were seen to agree bit for bit (`batched_calibration.py`); rows
that no answer needs are padding. llama.cpp evaluates separate sequences together only where
their numbers are neighbours, so a step is a window of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum, auto

Signature = Mapping[int, frozenset[str]]
"""By the number of a probe: the digests of all the scores that it got."""

USEFUL_ROWS = 8
"""From here on more rows make a step no better for the choice among sets that agree."""


class Turn(Enum):
    """What is evaluated next."""

    NOTHING = auto()
    PREFILL = auto()
    DECODE = auto()


def next_turn(*, reads: bool, writes: bool, prompts_since_step: int, slots: int) -> Turn:
    """Return what is evaluated next.

    A step costs nearly the same for one answer as for all of them, so prompts are read until
    the slots are full; but whoever writes does not wait for more prompts than there are slots,
    however short the answers are.

    Args:
        reads: Whether a prompt is being read.
        writes: Whether an answer is being written.
        prompts_since_step: Prompts whose reading ended since the last decode step.
        slots: How many answers are written at once.
    """
    if reads and (not writes or prompts_since_step < slots):
        return Turn.PREFILL
    return Turn.DECODE if writes else Turn.NOTHING


def rows_for(count: int, rows: Collection[int]) -> int | None:
    """Return the fewest rows that hold `count` sequences, or None.

    Args:
        count: How many sequences there are.
        rows: The row counts that agree; empty where none is known to: then any will do.
    """
    if not rows:
        return count
    return min((each for each in rows if each >= count), default=None)


def window(busy: Collection[int], rows: Collection[int], sequences: int) -> range:
    """Return the sequences of a decode step: all that are busy, and padding.

    Args:
        busy: The sequences with an answer to go on with, one or more.
        rows: The row counts that agree.
        sequences: How many sequences there are.

    Raises:
        ValueError: No row count that agrees holds them.
    """
    first, last = min(busy), max(busy)
    size = rows_for(last - first + 1, rows)
    if size is None or size > sequences:
        raise ValueError(f"no window of {rows} rows holds {sorted(busy)} of {sequences}")
    start = max(0, min(first, sequences - size))
    return range(start, start + size)


def groups(busy: Collection[int], rows: Collection[int]) -> list[list[int]]:
    """Return the sequences of the steps that take every answer one token further.

    Mostly that is one step; more where the answers reach farther than the most rows that agree.

    Args:
        busy: The sequences with an answer to go on with.
        rows: The row counts that agree.
    """
    found: list[list[int]] = []
    for number in sorted(busy):
        if found and (not rows or number < found[-1][0] + max(rows)):
            found[-1].append(number)
        else:
            found.append([number])
    return found


def agreeing(signatures: Mapping[int, Signature]) -> tuple[int, ...]:
    """Return the row counts that may stand for one another.

    A row count must give each probe one digest, wherever it is in the batch and whoever is
    beside it. Among the sets that agree, one that has `USEFUL_ROWS` or more is best, then the
    one with the most members, then the one that reaches farthest.

    Args:
        signatures: What each row count gave.

    Returns:
        The row counts, ascending; empty if none agrees even with itself.
    """
    steady = [
        rows
        for rows, signature in sorted(signatures.items(), reverse=True)
        if all(len(digests) == 1 for digests in signature.values())
    ]
    groups: list[list[int]] = []
    for rows in steady:
        for group in groups:
            if _agree(signatures[rows], signatures[group[0]]):
                group.append(rows)
                break
        else:
            groups.append([rows])
    best = max(groups, key=lambda g: (min(max(g), USEFUL_ROWS), len(g), max(g)), default=[])
    return tuple(sorted(best))


def _agree(one: Signature, other: Signature) -> bool:
    shared = one.keys() & other.keys()
    return bool(shared) and all(one[probe] == other[probe] for probe in shared)
