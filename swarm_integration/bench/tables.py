"""The results as tables: in a terminal (rich) and as Markdown, with the same words in both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from scheduler.errors import ConfigError
from swarm_integration.bench.results import WAYS, Case, Ratio, Row
from swarm_integration.report.units import NONE

_MOST_WIDTH = 160


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its title, its head, its rows of text, and notes under it."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


_POSSIBLE_SHARE = 1.2
"""An oracle takes more for granted than a server needs, but not by more than this."""


def speed_table(case: Case, rows: Sequence[Row]) -> Table:
    """Return the table of one workload's ways."""
    head = (
        "way", "slots", "requests/min", "tokens/s", "of its oracle", "prompt tokens computed",
        "fewest possible", "reused of reusable", "CPU s", "peak MiB", "Python",
    )  # fmt: skip
    body = [
        (
            f"({row.way}) {WAYS[row.way]}",
            str(row.slots),
            f"{row.requests_min:.1f}",
            f"{row.tokens_s:.1f}",
            _share(row.oracle_share),
            f"{row.computed_tokens:,} of {row.prompt_tokens:,}",
            NONE if row.fewest_tokens is None else f"{row.fewest_tokens:,}",
            _share(row.reuse),
            NONE if row.cpu_s is None else f"{row.cpu_s:.1f}",
            NONE if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}",
            _share(row.python_share, 1),
        )
        for row in rows
    ]
    builds = dict.fromkeys((row.build, row.instructions) for row in rows)
    notes = [
        f"{build}: {', '.join(instructions) or 'instruction sets not told'} "
        f"({', '.join(row.way for row in rows if row.build == build)})"
        for build, instructions in builds
    ]
    if any((row.oracle_share or 0.0) > _POSSIBLE_SHARE for row in rows):
        notes.append(
            "A share so far above 100 % means that the machine was busy while rates were measured."
        )
    kinds = " + ".join(f"{count} {kind}" for kind, count in case.rounds)
    title = (
        f"{case.agents} agents, layout {case.layout}: {case.requests} requests ({kinds}), "
        f"{case.output_tokens:,} tokens of answers, workload {case.sha256[:12]}"
    )
    return Table(title, head, tuple(body), tuple(notes))


def ratio_table(agents: int, ratios: Sequence[Ratio]) -> Table:
    """Return how our ways compare with the others."""
    head = ("way", "against", "times", "rounds from", "to", "builds")
    body = [
        (
            _named(ratio.way, ratio.layout),
            _named(ratio.other, ratio.other_layout),
            f"{ratio.times:.2f}",
            f"{ratio.least:.2f}",
            f"{ratio.most:.2f}",
            "the same" if ratio.same_build else "DIFFERENT",
        )
        for ratio in ratios
    ]
    notes: tuple[str, ...] = ()
    if not all(ratio.same_build for ratio in ratios):
        notes = (
            "DIFFERENT: two builds of llama.cpp, so part of the ratio may be theirs; the same "
            "source built the same way is the fair comparison.",
        )
    title = f"{agents} agents: requests per minute, medians of the ratios in each round"
    return Table(title, head, tuple(body), notes)


def rates_table(case: Case) -> Table:
    """Return the rates from which the oracles were reckoned; medians over the rounds."""
    body = []
    for part, turns in case.measured.items():
        last = turns[-1]
        tokens, seconds = last.prefill[-1]
        steps = ", ".join(
            f"{rows}: {1000 * step:.1f}" for rows, step in sorted(last.step_s.items())
        )
        body.append((part.removeprefix("rates-"), f"{tokens:,}", f"{tokens / seconds:.0f}", steps))
    head = ("build", "prompt tokens", "prefill tokens/s", "ms of a decode step by rows")
    return Table("Rates of the oracles, last round", head, tuple(body))


def _named(way: str, layout: str) -> str:
    return f"({way})" if layout == "upstream" else f"({way}) {layout}"


def _share(value: float | None, digits: int = 0) -> str:
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def markdown(tables: Sequence[Table]) -> str:
    """Return the tables as Markdown."""
    return "\n\n".join("\n".join(_markdown_lines(table)) for table in tables) + "\n"


def _markdown_lines(table: Table) -> Iterator[str]:
    yield f"{table.title}:"
    yield ""
    yield "| " + " | ".join(table.head) + " |"
    yield "|---" * len(table.head) + "|"
    for row in table.rows:
        yield "| " + " | ".join(row) + " |"
    for note in table.notes:
        yield ""
        yield note


def show(tables: Sequence[Table], stream: TextIO) -> None:
    """Draw the tables.

    Raises:
        ConfigError: rich is not installed.
    """
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table as Drawn
    except ImportError as exc:
        raise ConfigError(
            "the tables need rich, which is not installed. "
            'Install it with: pip install "swarm-inference-scheduler[report]", or add --json'
        ) from exc
    console = Console(file=stream, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _MOST_WIDTH
    for table in tables:
        drawn = Drawn(title=table.title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        for index, name in enumerate(table.head):
            drawn.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
        for note in table.notes:
            console.print(note)
        console.print()
