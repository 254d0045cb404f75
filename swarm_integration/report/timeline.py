"""The timeline of a run: a row for each slot, or for each agent. Pure.

A run of up to `MOST_BARS` tries is drawn try by try. A longer one is drawn as the
share of each stretch of time that a slot spent on each phase, and the picture says so;
around its slowest request a window is drawn try by try.
"""

from __future__ import annotations

from collections.abc import Sequence

from swarm_integration.report import svg, units
from swarm_integration.report.bars import (
    BAR,
    DEPTH,
    Frame,
    bar,
    pauses,
    queue_area,
    stages,
    wait,
)
from swarm_integration.report.charts import figure, scrolled
from swarm_integration.report.markup import Markup, element
from swarm_integration.report.records import RunRecord, Try
from swarm_integration.report.statistics import busy_shares
from swarm_integration.report.summary import tracks_of

MOST_BARS = 1200
MOST_ROWS = 48
WINDOW_TRIES = 240

_ROW = 18.0
_LABELS = 118.0
_WIDTH, _WIDEST = 840.0, 6000.0
_AXIS = 24.0
_CELLS = 12_000
"""Most cells of a picture that is drawn in shares of time."""

_LEGEND = (
    ("t-queue", "waits in the queue"),
    ("t-other", "with the backend, outside prefill and decode"),
    ("t-prefill", "prefill"),
    ("t-decode", "decode"),
    ("t-failed", "attempt that failed"),
)

Row = tuple[str, list[Try]]


def timelines(run: RunRecord) -> list[Markup]:
    """Return the timeline pictures of a run, none for one without requests."""
    tries = run.log.tries
    if not tries or run.log.duration_ms <= 0:
        return []
    slots = [(f"{backend} {slot}", found) for (backend, slot), found in tracks_of(run).items()]
    if len({backend for backend, _ in tracks_of(run)}) == 1:
        slots = [(f"slot {name.rsplit(' ', 1)[-1]}", found) for name, found in slots]
    if len(tries) <= MOST_BARS:
        frame = Frame(0.0, run.log.duration_ms, _width(tries, run.log.duration_ms))
        return [
            _slot_picture("Every slot", "Each bar is one attempt.", run, slots, frame),
            _agent_picture("Every agent", run, tries, frame),
        ]
    window = _window(tries)
    inside = [one for one in tries if one.end_ms >= window[0] and one.start_ms <= window[1]]
    inside = inside[:MOST_BARS]
    frame = Frame(*window, _width(inside, window[1] - window[0]))
    kept = set(map(id, inside))
    close = [(name, [one for one in found if id(one) in kept]) for name, found in slots]
    where = f"From {units.duration(window[0])} to {units.duration(window[1])} of the run"
    return [
        _share_picture(run, slots),
        _slot_picture("Around the slowest request, by slot", f"{where}.", run, close, frame),
        _agent_picture("Around the slowest request, by agent", run, inside, frame),
    ]


def legend() -> Markup:
    """Return what the colours of the timeline mean."""
    items = [
        element(
            "li",
            svg.drawing(14, 12, name, svg.rectangle(0, 1, 14, 10, class_), fixed=True),
            f" {name}",
        )
        for class_, name in _LEGEND
    ]
    return element("ul", items, class_="legend")


def _width(tries: Sequence[Try], span_ms: float) -> float:
    """Return a width at which the median bar is a few pixels wide."""
    times = sorted(one.service_ms for one in tries if one.service_ms > 0)
    if not times:
        return _WIDTH
    wanted = 7.0 * span_ms / times[len(times) // 2]
    return min(max(wanted, _WIDTH), _WIDEST)


def _window(tries: Sequence[Try]) -> tuple[float, float]:
    """Return the time around the slowest try that holds `WINDOW_TRIES` dispatches."""
    slowest = max(range(len(tries)), key=lambda n: tries[n].service_ms)
    first = max(0, min(slowest - WINDOW_TRIES // 2, len(tries) - WINDOW_TRIES))
    inside = tries[first : first + WINDOW_TRIES]
    return inside[0].start_ms, max(one.end_ms for one in inside)


def _shown(rows: list[Row], noun: str) -> tuple[list[Row], str]:
    if len(rows) <= MOST_ROWS:
        return rows, ""
    return rows[:MOST_ROWS], f" The first {MOST_ROWS} of {units.plural(len(rows), noun)} are drawn."


def _slot_picture(title: str, lead: str, run: RunRecord, rows: list[Row], frame: Frame) -> Markup:
    shown, note = _shown(rows, "slot")
    bars = [
        bar(one, frame, DEPTH + row * _ROW) for row, (_, tries) in enumerate(shown) for one in tries
    ]
    depth, deepest = queue_area(run, frame)
    names = [f"queue (max {deepest})", *(name for name, _ in shown)]
    drawn = units.plural(sum(len(tries) for _, tries in shown), "attempt")
    told = f"{title}: {drawn} on {units.plural(len(shown), 'slot')}"
    explanation = (
        f"{lead} Above the slots: how many requests wait. A pointer on a bar shows which "
        f"request it is.{note}"
    )
    return _picture(title, explanation, told, run, frame, names, [depth, *bars], queue=True)


def _agent_picture(title: str, run: RunRecord, tries: Sequence[Try], frame: Frame) -> Markup:
    agents: dict[str, list[Try]] = {}
    for one in tries:
        agents.setdefault(one.key.agent_id, []).append(one)
    rows = sorted(agents.items(), key=lambda item: units.natural(item[0]))
    shown, note = _shown(rows, "agent")
    parts: list[Markup] = []
    for row, (_, found) in enumerate(shown):
        y = row * _ROW
        parts += [wait(one, frame, y) for one in found if one.number == 1]
        parts += pauses(found, frame, y)
        parts += [bar(one, frame, y) for one in found]
    told = f"{title}: what the requests of {units.plural(len(shown), 'agent')} wait for"
    explanation = f"The same attempts by who asked, with their waits and pauses.{note}"
    return _picture(title, explanation, told, run, frame, [name for name, _ in shown], parts)


def _share_picture(run: RunRecord, rows: list[Row]) -> Markup:
    shown, note = _shown(rows, "slot")
    duration = run.log.duration_ms
    bins = max(60, min(int(_WIDTH / 2), _CELLS // max(1, len(shown))))
    frame = Frame(0.0, duration, _WIDTH)
    width = _WIDTH / bins
    parts: list[Markup] = []
    for row, (_, tries) in enumerate(shown):
        base = DEPTH + row * _ROW + BAR
        shares = busy_shares(tries, duration / bins, bins)
        below = [0.0] * bins
        heights = {}
        for phase in ("decode", "prefill", "other", "failed"):
            below = [b + s for b, s in zip(below, shares[phase], strict=True)]
            heights[phase] = [min(1.0, b) for b in below]
        # From the highest to the lowest: each covers all but its own share.
        parts += [
            svg.columns(heights[phase], 0.0, width, base, BAR, f"t-{phase}")
            for phase in ("failed", "other", "prefill", "decode")
            if any(shares[phase])
        ]
    depth, deepest = queue_area(run, frame)
    names = [f"queue (max {deepest})", *(name for name, _ in shown)]
    explanation = (
        f"{units.whole(len(run.log.tries))} attempts are too many to draw one by one: each "
        f"column is {units.duration(duration / bins)} and shows how its time was shared, "
        f"decode at the bottom, then prefill, other and failed; empty is idle.{note}"
    )
    told = f"Share of time of {units.plural(len(shown), 'slot')} over the run"
    return _picture("Every slot", explanation, told, run, frame, names, [depth, *parts], queue=True)


def _picture(
    title: str,
    explanation: str,
    told: str,
    run: RunRecord,
    frame: Frame,
    names: list[str],
    parts: list[Markup],
    *,
    queue: bool = False,
) -> Markup:
    """Put rows, steps and axis together; the names stay where they are when it scrolls."""
    rows = len(names) - queue
    top = DEPTH if queue else 0.0
    base = top + rows * _ROW
    height = base + _AXIS
    axis = svg.time_axis(0.0, frame.width, base, frame.start_ms, frame.end_ms, top=0.0)
    chart = svg.drawing(
        frame.width, height, told, axis, stages(run, frame, base), parts, fixed=True
    )
    places = (
        [26.0, *(DEPTH + n * _ROW + 11 for n in range(rows))]
        if queue
        else [n * _ROW + 11 for n in range(rows)]
    )
    labels = svg.drawing(
        _LABELS,
        height,
        "Names of the rows",
        [
            element("g", element("title", name), svg.label(_LABELS - 8, y, _cut(name), "end"))
            for name, y in zip(names, places, strict=True)
        ],
        fixed=True,
    )
    sides = element("div", labels, class_="names")
    return figure(title, explanation, scrolled(title, sides, chart))


def _cut(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"
