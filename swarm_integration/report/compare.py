"""Several runs side by side: what differs, and by how much. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from swarm_integration.report import svg, tables, units
from swarm_integration.report.charts import range_bar
from swarm_integration.report.markup import Markup, element, joined
from swarm_integration.report.sections import Section, metrics
from swarm_integration.report.statistics import Spread
from swarm_integration.report.summary import Summary

MOST_LINES = 8
"""Runs whose lines are told apart in one picture."""

Value = Callable[[Summary], str]


def _time(of: Callable[[Summary], Spread | None], which: str) -> Value:
    def value(summary: Summary) -> str:
        spread = of(summary)
        return units.duration(None if spread is None else getattr(spread, which))

    return value


def _fact(group: int, name: str) -> Value:
    def value(summary: Summary) -> str:
        lines = summary.facts[group].lines if len(summary.facts) > group else ()
        return dict(lines).get(name, units.NONE)

    return value


def _executed(summary: Summary) -> str:
    found = summary.actions
    if found is None:
        return units.NONE
    return f"{units.whole(found.total('executed'))} of {units.whole(found.total('chosen'))}"


NUMBERS: tuple[tuple[str, Value], ...] = (
    ("state", lambda s: s.state),
    ("requests", lambda s: units.whole(s.requests)),
    ("without a valid answer", lambda s: units.whole(s.requests - s.outcomes.get("ok", 0))),
    ("retries", lambda s: units.whole(s.retries)),
    ("asked again", lambda s: units.whole(s.reasks)),
    ("from the journal", lambda s: units.whole(s.run.log.recalled)),
    ("slots in use", lambda s: units.whole(len(s.slots))),
    ("time", lambda s: units.duration(s.duration_ms)),
    ("slots busy", lambda s: units.share(s.busy, 1.0)),
    ("tokens written per second", lambda s: units.significant(s.written_per_s)),
    ("tokens written", lambda s: units.whole(s.completion_tokens)),
    ("prompt from cache", lambda s: units.share(s.cached_tokens, s.prompt_tokens)),
    ("actions executed", _executed),
    ("queue p50", _time(lambda s: s.queue, "p50")),
    ("queue p95", _time(lambda s: s.queue, "p95")),
    ("queue p99", _time(lambda s: s.queue, "p99")),
    ("service p50", _time(lambda s: s.service, "p50")),
    ("service p95", _time(lambda s: s.service, "p95")),
    ("service p99", _time(lambda s: s.service, "p99")),
    ("prefill p50", _time(lambda s: s.prefill, "p50")),
    ("decode p50", _time(lambda s: s.decode, "p50")),
)

FACTS: tuple[tuple[str, Value], ...] = (
    ("scenario", _fact(0, "scenario")),
    ("length", _fact(0, "length")),
    ("seed", _fact(0, "seed")),
    ("mode", _fact(0, "mode")),
    ("model", lambda s: ", ".join(_backend_values(s, "model")) or units.NONE),
    ("kind of backend", lambda s: ", ".join(_backend_values(s, "kind")) or units.NONE),
    ("determinism of the backend", lambda s: s.verdict.backend),
    ("trace hash", lambda s: _fact(0, "trace hash")(s)[:16]),
)


def _backend_values(summary: Summary, name: str) -> list[str]:
    found = [
        value
        for group in summary.facts
        if group.title.startswith("Backend ")
        for label, value in group.lines
        if label == name
    ]
    return list(dict.fromkeys(found))


def same_transcripts(summaries: Sequence[Summary]) -> str:
    """Return in a sentence which runs have the same questions and answers."""
    by_hash: dict[str, list[str]] = {}
    for summary in summaries:
        found = summary.run.transcript_sha256
        if found is not None:
            by_hash.setdefault(found, []).append(summary.name)
    if not by_hash:
        return "None of the runs has a transcript."
    told = len([name for names in by_hash.values() for name in names])
    if len(by_hash) == 1 and told == len(summaries):
        return "All transcripts are the same, byte by byte."
    groups = [" = ".join(names) for names in by_hash.values() if len(names) > 1]
    if not groups:
        return "All transcripts differ."
    return f"The same transcript, byte by byte: {'; '.join(groups)}. The others differ."


def differing(summaries: Sequence[Summary]) -> list[tuple[str, list[str]]]:
    """Return the configuration keys whose values differ, with one value a run."""
    keys = dict.fromkeys(key for summary in summaries for key in summary.configuration)
    rows = [
        (key, [summary.configuration.get(key, units.NONE) for summary in summaries]) for key in keys
    ]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def comparison_sections(summaries: Sequence[Summary]) -> Iterator[Section]:
    """Yield the sections that show runs side by side."""
    names = [summary.name for summary in summaries]
    facts = [(name, *(value(one) for one in summaries)) for name, value in FACTS]
    numbers = [(name, *(value(one) for one in summaries)) for name, value in NUMBERS]
    everything = range(len(names) + 1)
    yield (
        "same",
        "What is the same",
        joined(
            element("p", same_transcripts(summaries)),
            tables.table("What was run.", ("", *names), facts, texts=everything),
            _configuration(summaries, names),
        ),
    )
    yield (
        "numbers",
        "Numbers",
        joined(tables.table("Counts, times and rates.", ("", *names), numbers), _ranges(summaries)),
    )
    if any(summary.run.epochs for summary in summaries):
        few = list(summaries[:MOST_LINES])
        yield "metrics", "Epoch metrics", joined(_legend(few, len(summaries)), metrics(few))


def _configuration(summaries: Sequence[Summary], names: list[str]) -> Markup:
    rows = [(key, *values) for key, values in differing(summaries)]
    if not rows:
        return element("p", "The effective configuration is the same in all of them.")
    everything = range(len(names) + 1)
    return tables.table("Configuration that differs.", ("", *names), rows, texts=everything)


def _ranges(summaries: Sequence[Summary]) -> Markup:
    parts = []
    for name, spreads in (
        ("Queue", [summary.queue for summary in summaries]),
        ("Service", [summary.service for summary in summaries]),
    ):
        largest = max((spread.p99 for spread in spreads if spread), default=0.0)
        rows = [
            (
                summary.name,
                units.duration(spread.p50 if spread else None),
                units.duration(spread.p95 if spread else None),
                units.duration(spread.p99 if spread else None),
                range_bar(spread, largest) if spread else "",
            )
            for summary, spread in zip(summaries, spreads, strict=True)
        ]
        caption = f"{name} times, on one scale. The line goes from the median to p99."
        parts.append(tables.table(caption, ("run", "p50", "p95", "p99", "p50 to p99"), rows))
    return joined(parts)


def _legend(summaries: Sequence[Summary], total: int) -> Markup:
    items = [
        element(
            "li",
            svg.drawing(
                14, 12, summary.name, svg.rectangle(0, 4, 14, 4, f"run-{number}"), fixed=True
            ),
            f" {summary.name}",
        )
        for number, summary in enumerate(summaries)
    ]
    more = f"The first {len(summaries)} of {total} runs." if total > len(summaries) else ""
    return joined(element("ul", items, class_="legend"), element("p", more, class_="note"))
