"""A sweep as one picture, drawn by matplotlib (extra `report`): means with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

from swarm_integration.sweep.design import Point, short_names
from swarm_integration.sweep.results import SweepResults

SHOWN = ("toxicity_rate", "quality_gap", "welfare", "avg_payoff")
_MOST_LINES = 12
_COLOURS = 10
"""How many there are before they come again."""
_MOST_LETTERS = 40
_LONGEST_TICK = 20


def png_of(results: SweepResults) -> bytes | None:
    """Return the picture; None without matplotlib, or when no run has been completed."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    if not any(one.completed for one in results.runs):
        return None
    settings: Any = {"font.size": 8, "text.parse_math": False}
    with rc_context(settings):
        figure = Figure(figsize=(7.2, 5.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes: Any = figure.subplots(2, 2)
        for place, metric in zip(axes.flat, SHOWN, strict=True):
            _draw(place, results, metric)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        if len(labels) > 1:
            figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        title, lines = f"{results.name}: mean and 95 % confidence interval", _lines(results)
        if len(lines) > _MOST_LINES:
            title += f"\nthe first {_MOST_LINES} of {len(lines)} lines"
        figure.suptitle(title)
        out = BytesIO()
        figure.savefig(out, format="png", dpi=150, metadata={"Software": None})
    return out.getvalue()


def _draw(axes: Any, results: SweepResults, metric: str) -> None:
    axes.set_ylabel(metric)
    across = _across(results)
    if across is None:
        _draw_runs(axes, results, metric)
        return
    axes.set_xlabel(across)
    values = [point.values[across] for point in results.points]
    numeric = all(_is_number(value) for value in values)
    places = {
        repr(v): float(v) if numeric else n
        for n, v in enumerate(dict.fromkeys(map(_hashable, values)))
    }
    if not numeric:
        texts = [_plain(text) for text in places]
        turned = {"rotation": 30, "ha": "right"} if sum(map(len, texts)) > _MOST_LETTERS else {}
        axes.set_xticks(list(places.values()), [_shortened(text) for text in texts], **turned)
    for place, (label, points) in enumerate(list(_lines(results).items())[:_MOST_LINES]):
        drawn = [(p, found) for p in points if (found := results.estimate(p, metric)) is not None]
        xs = [places[repr(_hashable(p.values[across]))] for p, _ in drawn]
        half = [0.0 if found.high is None else found.high - found.mean for _, found in drawn]
        axes.errorbar(
            xs,
            [f.mean for _, f in drawn],
            yerr=half,
            marker="o",
            linestyle="-" if place < _COLOURS else "--",
            capsize=3,
            label=label or None,
        )


def _lines(results: SweepResults) -> dict[str, list[Point]]:
    """Return the points of each line, by its label; one line where nothing varies."""
    across, lines = _across(results), dict[str, list[Point]]()
    for point in results.points:
        lines.setdefault(_label(point.values, across or ""), []).append(point)
    return lines


def _draw_runs(axes: Any, results: SweepResults, metric: str) -> None:
    """A sweep over seeds alone: each run, and the mean with its interval across."""
    runs = [(one.run.seed, one.metric(metric)) for one in results.runs]
    known = [(seed, value) for seed, value in runs if value is not None]
    axes.set_xlabel("seed")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.plot([seed for seed, _ in known], [value for _, value in known], "o")
    found = results.estimate(results.points[0], metric)
    if found is not None:
        axes.axhline(found.mean, linewidth=1)
        if found.low is not None:
            axes.axhspan(found.low, found.high, alpha=0.2)


def _across(results: SweepResults) -> str | None:
    """Return the parameter of the x-axis: the first with numbers, else the first."""
    names = list(results.points[0].values)
    numeric = (n for n in names if all(_is_number(p.values[n]) for p in results.points))
    return next(numeric, names[0] if names else None)


def _label(values: Mapping[str, Any], across: str) -> str:
    named = zip(short_names(values), values.items(), strict=True)
    return ", ".join(f"{name}={value}" for name, (key, value) in named if key != across)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _hashable(value: Any) -> Any:
    return value if _is_number(value) else str(value)


def _plain(text: str) -> str:
    return text.strip("'\"")


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TICK else f"{text[: _LONGEST_TICK - 3]}..."
