"""A run, or several side by side, as tables in a terminal (rich, extra `report`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from scheduler.errors import ConfigError
from swarm_integration.report import units
from swarm_integration.report.compare import FACTS, NUMBERS, differing, same_transcripts
from swarm_integration.report.statistics import Spread
from swarm_integration.report.summary import Row, Summary

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_PLAIN_WIDTH = 100
_MOST_ROWS = 20
_MOST_ERRORS = 10


def show(summaries: Sequence[Summary], stream: TextIO) -> None:
    """Print the runs to `stream`.

    Raises:
        ConfigError: rich is not installed.
    """
    console = _console(stream)
    if len(summaries) == 1:
        for part in _one(summaries[0]):
            console.print(part)
    else:
        for part in _several(summaries):
            console.print(part)


def _console(stream: TextIO) -> Console:
    try:
        from rich.console import Console
    except ImportError as exc:
        raise ConfigError(
            "the report in the terminal needs rich, which is not installed. "
            'Install it with: pip install "swarm-inference-scheduler[report]", or add --json'
        ) from exc
    # Nothing that a run directory holds is taken for rich's own mark-up.
    console = Console(file=stream, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> Table:
    from rich import box
    from rich.table import Table

    made = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False
    )
    for index, name in enumerate(head):
        made.add_column(name, justify="left" if index < texts else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def _one(summary: Summary) -> list[RenderableType]:
    ok = summary.outcomes.get("ok", 0)
    counts = ", ".join(f"{units.whole(n)} {name}" for name, n in summary.outcomes.items())
    facts = dict(summary.facts[0].lines) if summary.facts else {}
    models = [
        ", ".join(value for name, value in group.lines if name in {"kind", "model", "build"})
        for group in summary.facts
        if group.title.startswith("Backend ")
    ]
    lines = [
        ("run", summary.name),
        *(
            (name, facts[name])
            for name in ("state", "scenario", "length", "seed", "mode")
            if name in facts
        ),
        ("model", "; ".join(models) or units.NONE),
        ("determinism", f"{summary.verdict.backend}; {summary.verdict.transcript}"),
        ("trace hash", facts.get("trace hash", units.NONE)),
        ("requests", f"{units.whole(summary.requests)} ({counts or 'none'})"),
        (
            "retries",
            f"{units.whole(summary.retries)}, asked again: {units.whole(summary.reasks)}, "
            f"from the journal: {units.whole(summary.run.log.recalled)}",
        ),
        (
            "time",
            f"{units.duration(summary.duration_ms)}; {units.plural(len(summary.slots), 'slot')}, "
            f"busy {units.share(summary.busy, 1.0)}",
        ),
        (
            "tokens",
            f"{units.whole(summary.prompt_tokens)} in "
            f"({units.share(summary.cached_tokens, summary.prompt_tokens)} from cache), "
            f"{units.whole(summary.completion_tokens)} out, "
            f"{units.significant(summary.written_per_s)} out per second",
        ),
    ]
    parts: list[RenderableType] = [_facts(lines)]
    if ok != summary.requests or summary.troubles:
        parts.append(_errors(summary))
    parts.append(_times(summary))
    for way in ("kind", "persona", "backend", "agent"):
        rows = summary.groups.get(way, ())
        if len(rows) > 1:
            parts.append(_group(way, rows))
    if summary.actions is not None:
        found = summary.actions
        rows_ = [
            [name, *(units.whole(row.get(column, 0)) for column in found.columns)]
            for name, row in found.rows.items()
        ]
        rows_.append(["all", *(units.whole(found.total(column)) for column in found.columns)])
        parts.append(_table("Actions", ["action", *found.columns], rows_))
    parts += [f"note: {note}" for note in summary.run.missing]
    return parts


def _facts(lines: Sequence[tuple[str, str]]) -> Table:
    from rich.table import Table

    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim")
    made.add_column(overflow="fold")
    for line in lines:
        made.add_row(*line)
    return made


def _cells(spread: Spread | None) -> list[str]:
    if spread is None:
        return [units.NONE] * 5
    values = (spread.p50, spread.p95, spread.p99, spread.largest)
    return [units.whole(spread.count), *map(units.duration, values)]


def _times(summary: Summary) -> Table:
    kinds = (
        ("queue", summary.queue),
        ("service", summary.service),
        ("prefill", summary.prefill),
        ("decode", summary.decode),
    )
    head = ["time", "samples", "p50", "p95", "p99", "max"]
    return _table("Times", head, [[name, *_cells(spread)] for name, spread in kinds])


def _group(way: str, rows: Sequence[Row]) -> Table:
    more = f" (the first {_MOST_ROWS} of {len(rows)})" if len(rows) > _MOST_ROWS else ""
    body = [
        [
            row.name,
            units.whole(row.requests),
            *_cells(row.queue)[1:4],
            *_cells(row.service)[1:4],
            units.share(row.cached_tokens, row.prompt_tokens),
        ]
        for row in rows[:_MOST_ROWS]
    ]
    head = [way, "requests", "queue p50", "p95", "p99", "service p50", "p95", "p99", "cached"]
    return _table(f"By {way}{more}", head, body)


def _errors(summary: Summary) -> Table:
    body = [
        [row.what, row.first, row.error, units.whole(row.times)]
        for row in summary.troubles[:_MOST_ERRORS]
    ]
    more = len(summary.troubles) - _MOST_ERRORS + summary.more_troubles
    note = f" (and {more} more)" if more > 0 else ""
    return _table(f"Errors{note}", ["what", "first met by", "error", "times"], body, texts=3)


def _several(summaries: Sequence[Summary]) -> list[RenderableType]:
    names = [summary.name for summary in summaries]
    facts = [[name, *(value(one) for one in summaries)] for name, value in FACTS]
    numbers = [[name, *(value(one) for one in summaries)] for name, value in NUMBERS]
    parts: list[RenderableType] = [
        _table("What was run", ["", *names], facts, texts=len(names) + 1),
        same_transcripts(summaries),
        _table("Numbers", ["", *names], numbers),
    ]
    rows = [[key, *values] for key, values in differing(summaries)]
    if rows:
        title = "Configuration that differs"
        parts.append(_table(title, ["", *names], rows, texts=len(names) + 1))
    for summary in summaries:
        parts += [f"note: {summary.name}: {note}" for note in summary.run.missing]
    return parts
