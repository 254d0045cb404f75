"""The parts of a timeline: a try, a wait, the queue above, the steps behind. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from swarm_integration.report import svg, units
from swarm_integration.report.markup import Markup, element
from swarm_integration.report.records import End, RunRecord, Try
from swarm_integration.report.statistics import depth_steps, phases_of, thinned

BAR = 14.0
"""Height of a bar in pixels."""
DEPTH = 46.0
"""Height of the queue above the rows, in pixels."""
MOST_STAGES = 400


@dataclass(frozen=True, slots=True)
class Frame:
    """The stretch of time that a picture shows, and how wide."""

    start_ms: float
    end_ms: float
    width: float

    def x(self, at_ms: float) -> float:
        """Return where a time is, or the nearer edge for one outside."""
        share = (at_ms - self.start_ms) / max(self.end_ms - self.start_ms, 1e-6)
        return min(max(share, 0.0), 1.0) * self.width


def bar(one: Try, frame: Frame, y: float) -> Markup:
    """Return a try as its phases, with a text that a pointer shows."""
    pieces = [
        svg.rectangle(frame.x(start), y, max(frame.x(end) - frame.x(start), 0.6), BAR, f"t-{name}")
        for name, start, end in phases_of(one)
    ]
    return element("g", element("title", told_of(one)), pieces)


def told_of(one: Try) -> str:
    """Return what a pointer on a try shows."""
    parts = [
        f"{one.key.label}: attempt {one.number}, {one.end.value}",
        f"slot {one.slot} of {one.backend}, dispatched at {units.duration(one.start_ms)}",
    ]
    if one.number == 1:
        parts.append(f"waited {units.duration(max(0.0, one.start_ms - one.queued_ms))}")
    parts.append(f"took {units.duration(one.service_ms)}")
    if one.answered:
        if one.prefill_ms or one.decode_ms:
            parts.append(
                f"prefill {units.duration(one.prefill_ms)}, decode {units.duration(one.decode_ms)}"
            )
        parts.append(
            f"{one.prompt_tokens} tokens in ({one.cached_tokens} from cache), "
            f"{one.completion_tokens} out"
        )
    if one.error:
        parts.append(one.error[:160])
    return "; ".join(parts)


def wait(one: Try, frame: Frame, y: float) -> Markup:
    """Return the wait of a try for its slot."""
    x = frame.x(one.queued_ms)
    return svg.rectangle(x, y + 4, max(frame.x(one.start_ms) - x, 0.0), BAR - 8, "t-queue")


def pauses(tries: Sequence[Try], frame: Frame, y: float) -> list[Markup]:
    """Return a thin line from each failed try to the one that follows it."""
    return [
        svg.line(frame.x(one.end_ms), y + 7, frame.x(two.start_ms), y + 7, "pause")
        for one, two in pairwise(tries)
        if one.key == two.key and one.end is End.RETRIED
    ]


def queue_area(run: RunRecord, frame: Frame) -> tuple[Markup, int]:
    """Return the length of all queues over the frame, and its maximum there."""
    bins = int(frame.width / 2)
    steps = [
        (at - frame.start_ms, length)
        for at, length in depth_steps(run.log.depths)
        if at <= frame.end_ms
    ]
    before = [length for at, length in steps if at < 0]
    inside = [(0.0, before[-1] if before else 0), *(step for step in steps if step[0] >= 0)]
    lengths = thinned(inside, frame.end_ms - frame.start_ms, bins)
    deepest = max(lengths)
    scale = (DEPTH - 8) / deepest if deepest else 0.0
    area = svg.columns(lengths, 0.0, frame.width / bins, DEPTH - 4, scale, "t-queue")
    return area, math.ceil(deepest)


def stages(run: RunRecord, frame: Frame, base: float) -> list[Markup]:
    """Return a line where a step begins, a stronger one for an epoch and for a resume."""
    inside = [one for one in run.log.stages if frame.start_ms <= one.at_ms <= frame.end_ms]
    if len(inside) > MOST_STAGES:
        inside = [one for one in inside if one.step == 0]
    lines = [
        element(
            "g",
            element("title", f"epoch {one.epoch}, step {one.step}"),
            svg.line(x, 0, x, base, "epoch" if one.step == 0 else "step"),
        )
        for one in islice(inside, MOST_STAGES)
        for x in [frame.x(one.at_ms)]
    ]
    for at_ms in run.log.parts_ms[1:MOST_STAGES]:
        if frame.start_ms <= at_ms <= frame.end_ms:
            x = frame.x(at_ms)
            line = svg.line(x, 0, x, base, "resumed")
            lines.append(element("g", element("title", "the run was resumed here"), line))
    return lines
