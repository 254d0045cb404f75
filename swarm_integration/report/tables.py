"""The tables of a page, with the semantics that a screen reader needs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from swarm_integration.report import units
from swarm_integration.report.actions import Actions
from swarm_integration.report.charts import range_bar, scrolled, share_bar
from swarm_integration.report.facts import Line
from swarm_integration.report.markup import Markup, element, joined
from swarm_integration.report.statistics import Spread
from swarm_integration.report.summary import Row, SlotUse, TroubleRow

MOST_ROWS = 60


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, texts: Sequence[int] = (0,)
) -> Markup:
    """Return a table whose first column names its rows; `texts` are not numbers."""

    def cell(index: int, value: str) -> Markup:
        if index == 0:
            return element("th", value, scope="row")
        return element("td", value, class_="text" if index in texts else None)

    titles = [
        element("th", name, scope="col", class_="text" if index in texts else None)
        for index, name in enumerate(head)
    ]
    body = [element("tr", [cell(*item) for item in enumerate(row)]) for row in rows]
    made = element(
        "table", element("thead", element("tr", titles)), element("tbody", body), aria_label=caption
    )
    # Not a caption element: it would scroll away with the table on a narrow screen.
    return joined(element("p", caption, class_="note"), scrolled(caption, made))


def facts(lines: Iterable[Line], caption: str) -> Markup:
    """Return labelled lines."""
    rows = [
        element("tr", element("th", name, scope="row"), element("td", value))
        for name, value in lines
    ]
    return element("table", element("caption", caption), element("tbody", rows), class_="facts")


def _times(spread: Spread | None) -> list[str]:
    if spread is None:
        return [units.NONE] * 3
    return [units.duration(value) for value in (spread.p50, spread.p95, spread.p99)]


def latencies(way: str, rows: Sequence[Row]) -> Markup:
    """Return queue and service times by agent, persona, kind or backend."""
    ordered = rows
    note = ""
    if len(rows) > MOST_ROWS:
        slowest = sorted(rows, key=lambda row: -(row.service.p95 if row.service else 0.0))
        kept = set(map(id, slowest[:MOST_ROWS]))
        ordered = [row for row in rows if id(row) in kept]
        note = f" The {MOST_ROWS} slowest of {len(rows)} are shown; --json has all."
    largest = max((row.service.p99 for row in ordered if row.service), default=0.0)
    head = (
        way,
        "requests",
        "queue p50",
        "p95",
        "p99",
        "service p50",
        "p95",
        "p99",
        "service, p50 to p99",
    )
    body = [
        (
            row.name,
            units.whole(row.requests),
            *_times(row.queue),
            *_times(row.service),
            range_bar(row.service, largest) if row.service else "",
        )
        for row in ordered
    ]
    return table(
        f"By {way}. The line goes from the median to p99, its mark is p95.{note}", head, body
    )


def prefixes(way: str, rows: Sequence[Row]) -> Markup:
    """Return how much of the prompts came from a slot's cache."""
    head = (way, "prompt tokens", "from cache", "read", "cached share", "cached and read")
    body = [
        (
            row.name,
            units.whole(row.prompt_tokens),
            units.whole(row.cached_tokens),
            units.whole(row.prompt_tokens - row.cached_tokens),
            units.share(row.cached_tokens, row.prompt_tokens),
            share_bar(
                [
                    ("t-cached", row.cached_tokens),
                    ("t-prefill", row.prompt_tokens - row.cached_tokens),
                ],
                row.prompt_tokens,
                f"{units.share(row.cached_tokens, row.prompt_tokens)} from cache",
            ),
        )
        for row in rows[:MOST_ROWS]
    ]
    return table(f"By {way}.", head, body)


def slots(uses: Sequence[SlotUse]) -> Markup:
    """Return how busy each slot was."""
    body = [
        (
            f"{use.backend} {use.slot}",
            units.whole(use.tries),
            units.share(use.busy, 1.0),
            share_bar([("t-decode", use.busy)], 1.0, f"busy {units.share(use.busy, 1.0)}"),
        )
        for use in uses[:MOST_ROWS]
    ]
    return table("Use of the slots, of the whole time.", ("slot", "attempts", "busy", ""), body)


def troubles(rows: Sequence[TroubleRow], more: int) -> Markup:
    """Return the errors, counted."""
    note = f" {units.plural(more, 'other error')} not shown." if more else ""
    body = [
        (row.what, units.whole(row.times), row.first, units.duration(row.first_ms), row.error)
        for row in rows
    ]
    head = ("what", "times", "first met by", "at", "error")
    return table(
        f"Errors that read the same are counted together.{note}", head, body, texts=(0, 2, 4)
    )


def actions(found: Actions) -> Markup:
    """Return what became of the actions."""
    total = [found.total(column) for column in found.columns]
    head = ("action", *found.columns)
    body = [
        (name, *(units.whole(row.get(column, 0)) for column in found.columns))
        for name, row in found.rows.items()
    ]
    body.append(("all", *map(units.whole, total)))
    return table("What became of the agents' actions.", head, body)


def reasons(found: Actions) -> Markup:
    """Return why actions were refused or lost."""
    body = [
        (action, column, units.whole(times), reason)
        for action, column, reason, times in found.reasons
    ]
    return table("Why.", ("action", "count of", "times", "reason"), body, texts=(0, 1, 3))
