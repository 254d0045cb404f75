"""The parts that charts share: a drawing, its axes, its lines. Pure.

Colours are classes of the page's style sheet, so that a chart follows light and dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from swarm_integration.report import units
from swarm_integration.report.markup import Child, Markup, element
from swarm_integration.report.statistics import nice_width

_TIME_STEPS_MS = (
    *(n * 10.0**power for power in range(-2, 3) for n in (1, 2, 5)),
    *(n * 1e3 for n in (1, 2, 5, 10, 15, 30)),
    *(n * 6e4 for n in (1, 2, 5, 10, 15, 30)),
    *(n * 3.6e6 for n in (1, 2, 6, 12, 24, 48, 120, 240)),
)


def drawing(
    width: float, height: float, title: str, *children: Child, fixed: bool = False
) -> Markup:
    """Return an `svg` with a text alternative; a fixed one does not shrink to its box."""
    return element(
        "svg",
        element("title", title),
        *children,
        role="img",
        viewBox=f"0 0 {width:g} {height:g}",
        width=width if fixed else None,
        height=height if fixed else None,
        class_=None if fixed else "fit",
    )


def rectangle(
    x: float, y: float, width: float, height: float, class_: str, title: str | None = None
) -> Markup:
    """Return a rectangle, with a text that a pointer shows."""
    children = () if title is None else (element("title", title),)
    return element(
        "rect",
        *children,
        x=float(x),
        y=float(y),
        width=float(width),
        height=float(height),
        class_=class_,
    )


def label(
    x: float, y: float, text: str, anchor: str = "start", class_: str | None = None
) -> Markup:
    """Return a text."""
    return element("text", text, x=float(x), y=float(y), text_anchor=anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Return a straight line."""
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    """Return a line through points."""
    d = " ".join(f"{'M' if not n else 'L'}{x:.1f} {y:.1f}" for n, (x, y) in enumerate(points))
    return element("path", d=d, class_=class_)


def columns(
    values: Sequence[float], x: float, width: float, base: float, scale: float, class_: str
) -> Markup:
    """Return bars as one path: each `width` wide, from `base` upwards; equal ones merge."""
    d = []
    index = 0
    while index < len(values):
        last = index
        height = round(values[index] * scale, 1)
        while last + 1 < len(values) and round(values[last + 1] * scale, 1) == height:
            last += 1
        if height > 0:
            across = (last + 1 - index) * width
            d.append(f"M{x + index * width:.1f} {base:.1f}v-{height:g}h{across:.2f}v{height:g}z")
        index = last + 1
    return element("path", d="".join(d), class_=class_)


def time_step(span_ms: float, most: int) -> float:
    """Return the distance of ticks on a time axis."""
    for step in _TIME_STEPS_MS:
        if step * most >= span_ms:
            return step
    return nice_width(span_ms, most)


def time_axis(
    left: float, width: float, y: float, start_ms: float, end_ms: float, *, top: float
) -> list[Markup]:
    """Return the ticks of a time axis, with lines up to `top`."""
    span = max(end_ms - start_ms, 1e-6)
    step = time_step(span, max(2, int(width / 90)))
    parts = []
    tick = -(-start_ms // step) * step
    while tick <= end_ms + step * 1e-6:
        x = left + (tick - start_ms) / span * width
        parts.append(line(x, top, x, y + 4, "grid"))
        anchor = (
            "middle" if left + 20 < x < left + width - 20 else "start" if x < left + 21 else "end"
        )
        parts.append(label(x, y + 15, units.tick(tick, step), anchor))
        tick += step
    return parts


def value_axis(
    left: float, right: float, base: float, height: float, largest: float, unit: str = ""
) -> tuple[list[Markup], float]:
    """Return the ticks of a vertical axis from 0, and the scale (pixels a unit)."""
    step = nice_width(largest, 3) if largest > 0 else 1.0
    top = max(step, -(-largest * (1 - 1e-9) // step) * step)
    scale = height / top
    parts = []
    tick = 0.0
    while tick <= top * (1 + 1e-9):
        y = base - tick * scale
        parts.append(line(left, y, right, y, "grid"))
        parts.append(label(left - 4, y + 3.5, f"{compact(tick)}{unit}", "end"))
        tick += step
    return parts, scale


def compact(value: float) -> str:
    """Return a short number for an axis: `1.5k`, `200`, `0.02`."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value / 1000:.4g}k" if abs(value) >= 1000 else f"{value:.3g}"
