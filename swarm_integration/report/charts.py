"""The charts of a page beside the timeline: histograms, rates, shares, metrics. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from swarm_integration.report import svg, units
from swarm_integration.report.markup import Markup, element
from swarm_integration.report.statistics import Histogram, Rates, Spread

_SMALL = (340.0, 168.0)
_LEFT, _RIGHT = 40.0, 10.0


def figure(title: str, explanation: str, *parts: Markup, class_: str | None = None) -> Markup:
    """Return a picture with its title and one line that says how to read it."""
    caption = element("figcaption", element("strong", title), " ", explanation)
    return element("figure", caption, *parts, class_=class_)


def scrolled(name: str, *parts: Markup) -> Markup:
    """Return a box that scrolls sideways by itself, also by keyboard."""
    return element("div", *parts, class_="scroll", tabindex="0", role="region", aria_label=name)


def histogram(title: str, explanation: str, found: Histogram, spread: Spread) -> Markup:
    """Return a histogram of times with its percentiles."""
    width, height = _SMALL
    base, top = height - 22.0, 36.0
    across = width - _LEFT - _RIGHT
    grid, scale = svg.value_axis(_LEFT, width - _RIGHT, base, base - top, max(found.counts))
    span = found.width * len(found.counts)
    bar = across / len(found.counts)
    bars = [
        svg.rectangle(
            _LEFT + n * bar,
            base - count * scale,
            max(bar - 1.0, 0.5),
            count * scale,
            "bar",
            f"{units.duration(n * found.width)} to {units.duration((n + 1) * found.width)}: "
            f"{units.whole(count)}",
        )
        for n, count in enumerate(found.counts)
        if count
    ]
    marks = []
    for row, (name, value) in enumerate(
        (("p50", spread.p50), ("p95", spread.p95), ("p99", spread.p99))
    ):
        x = _LEFT + min(value / span, 1.0) * across if span else _LEFT
        y = 10.0 + 12.0 * row
        side = "end" if x > width / 2 else "start"
        marks.append(svg.line(x, y - 7, x, base, f"mark {name}"))
        shown = f"{name} {units.duration(value)}"
        marks.append(svg.label(x + (-4 if side == "end" else 4), y, shown, side, "marked"))
    axis = svg.time_axis(_LEFT, across, base, 0.0, span, top=base)
    told = (
        f"{title}: {units.whole(spread.count)} samples, median {units.duration(spread.p50)}, "
        f"p95 {units.duration(spread.p95)}, p99 {units.duration(spread.p99)}, "
        f"maximum {units.duration(spread.largest)}"
    )
    more = f" {units.whole(found.beyond)} beyond the picture." if found.beyond else ""
    note = element(
        "p",
        f"n = {units.whole(spread.count)}, mean {units.duration(spread.mean)}, "
        f"maximum {units.duration(spread.largest)}.{more}",
        class_="note",
    )
    return figure(
        title, explanation, svg.drawing(width, height, told, grid, bars, axis, marks), note
    )


def rates(found: Rates, duration_ms: float) -> Markup:
    """Return tokens per second over time: written above, read below."""
    width = 960.0
    panels = []
    for row, (name, title) in enumerate((("decode", "written"), ("prefill", "read"))):
        values = found.series[name]
        top = 18.0 + row * 100.0
        base = top + 70.0
        grid, scale = svg.value_axis(_LEFT, width - _RIGHT, base, 70.0, max(values))
        across = (width - _LEFT - _RIGHT) / len(values)
        panels += [
            *grid,
            svg.columns(values, _LEFT, across, base, scale, f"t-{name}"),
            svg.label(_LEFT, top - 6, f"tokens {title} per second", class_="marked"),
        ]
    axis = svg.time_axis(_LEFT, width - _LEFT - _RIGHT, 188.0, 0.0, duration_ms, top=188.0)
    told = ", ".join(
        f"at most {units.whole(max(values))} tokens a second of {name}"
        for name, values in found.series.items()
    )
    return scrolled(
        "Tokens per second over time",
        svg.drawing(width, 210.0, f"Tokens per second over time: {told}", panels, axis, fixed=True),
    )


def share_bar(parts: Sequence[tuple[str, float]], total: float, told: str) -> Markup:
    """Return a small bar whose pieces are shares of `total`; (class, amount) each."""
    x = 0.0
    pieces = [svg.rectangle(0, 1, 120, 10, "empty")]
    for class_, value in parts:
        width = 120.0 * value / total if total else 0.0
        pieces.append(svg.rectangle(x, 1, width, 10, class_))
        x += width
    return svg.drawing(120.0, 12.0, told, pieces, fixed=True)


def range_bar(spread: Spread, largest: float) -> Markup:
    """Return a small line from median to p99 with a mark at p95, on a scale to `largest`."""

    def x(value: float) -> float:
        return 2.0 + 116.0 * value / largest if largest else 2.0

    told = (
        f"median {units.duration(spread.p50)}, p95 {units.duration(spread.p95)}, "
        f"p99 {units.duration(spread.p99)}"
    )
    return svg.drawing(
        120.0,
        12.0,
        told,
        svg.line(x(0), 6, x(largest), 6, "grid"),
        svg.line(x(spread.p50), 6, x(spread.p99), 6, "range"),
        element("circle", cx=x(spread.p50), cy=6, r=3, class_="dot"),
        svg.line(x(spread.p95), 2, x(spread.p95), 10, "range"),
        fixed=True,
    )


def metric(name: str, series: Mapping[str, Sequence[tuple[int, float]]]) -> Markup:
    """Return one metric over the epochs; a line a run, at most eight."""
    width, height = _SMALL[0], 130.0
    left, base, top = 52.0, 108.0, 12.0
    values = [value for points in series.values() for _, value in points]
    epochs = [epoch for points in series.values() for epoch, _ in points]
    low, high = min(0.0, *values), max(values)
    span = (high - low) or 1.0
    last = max(*epochs, 1)

    def place(epoch: float, value: float) -> tuple[float, float]:
        x = left + (width - left - 14) * epoch / last
        return x, base - (base - top) * (value - low) / span

    lines: list[Markup] = [
        svg.line(left, base, width - 14, base, "grid"),
        svg.line(left, top, width - 14, top, "grid"),
        svg.label(left - 4, base + 3.5, svg.compact(low), "end"),
        svg.label(left - 4, top + 3.5, svg.compact(low + span), "end"),
        svg.label(left, base + 16, "epoch 0"),
        svg.label(width - 14, base + 16, f"{last}", "end"),
    ]
    for number, points in enumerate(series.values()):
        lines.append(svg.path((place(*point) for point in points), f"line run-{number}"))
        if len(points) <= 60:
            lines += [
                element("circle", cx=x, cy=y, r=2.5, class_=f"dot run-{number}")
                for x, y in (place(*point) for point in points)
            ]
    told = "; ".join(
        f"{run}: from {units.significant(points[0][1])} to {units.significant(points[-1][1])}"
        for run, points in series.items()
        if points
    )
    return figure(name, "", svg.drawing(width, height, f"{name} by epoch. {told}", lines))
