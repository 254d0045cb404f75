"""A run as one picture for papers, drawn by matplotlib (extra `report`)."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from scheduler.errors import ConfigError
from swarm_integration.report import units
from swarm_integration.report.statistics import phases_of, spread_over, token_rates
from swarm_integration.report.summary import Summary, tracks_of, waits_of

_COLOURS = {
    "other": "#b4bcc4",
    "prefill": "#3f7fbf",
    "decode": "#3da17e",
    "failed": "#d1495b",
}
_MOST_BARS = 20_000
_MOST_ROWS = 48
_BINS = 30


def png_of(summary: Summary) -> bytes:
    """Return timeline, token rates and latency histograms as a PNG of 200 dots an inch.

    Raises:
        ConfigError: matplotlib is not installed, or there is nothing to draw.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ConfigError(
            "--png needs matplotlib, which is not installed. "
            'Install it with: pip install "swarm-inference-scheduler[report]"'
        ) from exc
    if not summary.run.log.tries:
        raise ConfigError(f"--png: the log of {summary.name} has no requests to draw")
    settings: Any = {"font.size": 8, "text.parse_math": False, "svg.fonttype": "none"}
    with rc_context(settings):
        tracks = list(tracks_of(summary.run).items())[:_MOST_ROWS]
        rows = max(1.2, 0.14 * len(tracks))
        figure = Figure(figsize=(7.2, 4.6 + rows), layout="constrained")
        FigureCanvasAgg(figure)
        parts: Any = figure.subfigures(3, 1, height_ratios=[rows + 0.7, 1.7, 2.0])
        top, middle, bottom = parts
        _timeline(top.subplots(), summary, tracks)
        _rates(middle.subplots(2, 1, sharex=True), summary)
        _histograms(bottom.subplots(1, 2), summary)
        figure.suptitle(summary.name)
        out = BytesIO()
        figure.savefig(out, format="png", dpi=200, metadata={"Software": None})
    return out.getvalue()


def _timeline(axes: Any, summary: Summary, tracks: list[Any]) -> None:
    bars: dict[tuple[int, str], list[tuple[float, float]]] = {}
    drawn = 0
    for row, (_, tries) in enumerate(tracks):
        for one in tries:
            drawn += 1
            for phase, start, end in phases_of(one) if drawn <= _MOST_BARS else ():
                bars.setdefault((row, phase), []).append((start / 1000, (end - start) / 1000))
    for (row, phase), found in bars.items():
        axes.broken_barh(found, (row - 0.4, 0.8), color=_COLOURS[phase], linewidth=0)
    several = len({backend for (backend, _), _ in tracks}) > 1
    names = [f"{backend} {slot}" if several else f"slot {slot}" for (backend, slot), _ in tracks]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, summary.duration_ms / 1000)
    axes.set_xlabel("time (s)")
    left_out = max(0, drawn - _MOST_BARS)
    note = f"; {units.whole(left_out)} attempts not drawn" if left_out else ""
    axes.set_title(f"Attempts by slot{note}", fontsize=8, loc="left")
    from matplotlib.patches import Patch

    used = [phase for phase in _COLOURS if any(phase == found for _, found in bars)]
    patches = [Patch(color=_COLOURS[phase], label=phase) for phase in used]
    axes.legend(
        handles=patches,
        ncols=4,
        fontsize=7,
        frameon=False,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
    )


def _rates(panels: Any, summary: Summary) -> None:
    found = token_rates(summary.run.log.tries, summary.duration_ms)
    edges = [found.width_ms * n / 1000 for n in range(len(found.series["decode"]) + 1)]
    for axes, (name, verb) in zip(
        panels, (("decode", "written"), ("prefill", "read")), strict=True
    ):
        axes.stairs(found.series[name], edges, fill=True, color=_COLOURS[name])
        axes.set_ylabel(f"{verb}\n(tokens/s)")
        axes.set_xlim(0, summary.duration_ms / 1000)
    panels[-1].set_xlabel("time (s)")


def _histograms(panels: Any, summary: Summary) -> None:
    answered = [one.service_ms for one in summary.run.log.tries if one.answered]
    samples = [
        ("Queue", waits_of(summary.run.log.asked.values()), summary.queue),
        ("Service", answered, summary.service),
    ]
    for axes, (name, times, spread) in zip(panels, samples, strict=True):
        if spread is None:
            axes.set_axis_off()
            continue
        width = (spread.largest or 1.0) / _BINS
        counts = spread_over([(time, time, 1.0) for time in times], width, _BINS)
        axes.stairs(counts, [width * n for n in range(_BINS + 1)], fill=True, color="#3f7fbf")
        marks = ((spread.p50, "-"), (spread.p95, "--"), (spread.p99, ":"))
        for value, style in marks:
            axes.axvline(value, color="black", linewidth=0.8, linestyle=style)
        axes.set_xlabel("time (ms)")
        axes.set_ylabel("count")
        axes.set_title(
            f"{name}: p50 {units.duration(spread.p50)}, p95 {units.duration(spread.p95)}, "
            f"p99 {units.duration(spread.p99)}",
            fontsize=8,
            loc="left",
        )
