"""The sections of a page about one run. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from swarm_integration.report import charts, tables, units
from swarm_integration.report.markup import Markup, element, joined
from swarm_integration.report.statistics import Spread, histogram_of, token_rates
from swarm_integration.report.summary import Summary, waits_of
from swarm_integration.report.timeline import legend, timelines

Section = tuple[str, str, Markup]
"""An anchor, a heading, and what stands below it."""

MOST_METRICS = 24
_COUNTERS = ("epoch",)
_GROUPS_SHOWN = ("kind", "persona", "backend", "agent")


def sections_of(summary: Summary) -> Iterator[Section]:
    """Yield the sections of a run; those that have nothing to show are left out."""
    yield "determinism", "Determinism", _determinism(summary)
    if summary.run.log.tries:
        yield "latency", "Queue and service times", _latency(summary)
        yield "timeline", "Timeline", _timeline(summary)
        yield "tokens", "Tokens per second", _tokens(summary)
        yield "prefix", "Prefix reuse", _prefix(summary)
    elif summary.run.log.asked:
        text = "No request of this log was put to a model: all answers came from the journal."
        yield "latency", "Queue and service times", element("p", text)
    else:
        text = "There are no requests in the log of this run, so there are no times to show."
        yield "latency", "Queue and service times", element("p", text)
    if summary.actions is not None:
        yield "actions", "Actions", _actions(summary)
    yield "failures", "Failures", _failures(summary)
    if summary.run.epochs:
        yield "metrics", "Epoch metrics", metrics([summary])
    yield "run", "Run and models", _facts(summary)


def headline(summary: Summary) -> Markup:
    """Return the state of a run, what is missing, and its main numbers."""
    good = {"completed": "good", "running": "warn", "starting": "warn"}
    state = element("span", summary.state, class_=f"state {good.get(summary.state, 'bad')}")
    scenario = dict(summary.facts[0].lines) if summary.facts else {}
    told = [
        scenario.get("scenario", ""),
        scenario.get("length", ""),
        f"seed {scenario.get('seed', units.NONE)}",
        f"mode {scenario.get('mode', units.NONE)}",
    ]
    line = element("p", state, " · ", " · ".join(part for part in told if part), class_="sub")
    missing = [element("p", note, class_="warn note") for note in summary.run.missing]
    return joined(line, _tiles(summary), missing)


def _tiles(summary: Summary) -> Markup:
    ok = summary.outcomes.get("ok", 0)
    bad = summary.requests - ok
    tiles = [
        ("requests", units.whole(summary.requests), f"{units.whole(bad)} without a valid answer"),
        (
            "retries",
            units.whole(summary.retries),
            f"{units.whole(summary.reasks)} asked again",
        ),
        ("time", units.duration(summary.duration_ms), f"slots busy {units.share(summary.busy, 1)}"),
        (
            "tokens written per second",
            units.significant(summary.written_per_s),
            f"{units.whole(summary.completion_tokens)} tokens",
        ),
        (
            "queue, p95",
            units.duration(summary.queue.p95 if summary.queue else None),
            f"median {units.duration(summary.queue.p50 if summary.queue else None)}",
        ),
        (
            "service, p95",
            units.duration(summary.service.p95 if summary.service else None),
            f"median {units.duration(summary.service.p50 if summary.service else None)}",
        ),
        (
            "prompt from cache",
            units.share(summary.cached_tokens, summary.prompt_tokens),
            f"of {units.whole(summary.prompt_tokens)} tokens",
        ),
        (
            "from the journal",
            units.whole(summary.run.log.recalled),
            "answers of an earlier attempt",
        ),
    ]
    return element(
        "dl",
        [
            element("div", element("dt", name), element("dd", value, element("small", more)))
            for name, value, more in tiles
        ],
        class_="tiles",
    )


def _determinism(summary: Summary) -> Markup:
    verdict = summary.verdict
    class_ = {True: "good", False: "bad", None: "warn"}[verdict.sound]
    return joined(
        element("p", "Backend: ", element("strong", verdict.backend), "."),
        element("p", f"Transcript: {verdict.transcript}.", class_=class_),
        tables.facts(verdict.lines, "What the manifest says of each layer."),
        element(
            "p",
            "Equal trace hashes mean equal questions and answers, byte by byte. A verdict holds "
            "for one machine, build and thread count.",
            class_="note",
        ),
    )


def _latency(summary: Summary) -> Markup:
    answered = [one for one in summary.run.log.tries if one.answered]
    kinds = [
        (
            "Queue",
            "From the queue to the first slot, one sample a request.",
            waits_of(summary.run.log.asked.values()),
            summary.queue,
        ),
        (
            "Service",
            "From an attempt's dispatch to its answer, one sample an answer.",
            [one.service_ms for one in answered],
            summary.service,
        ),
        (
            "Prefill",
            "Reading the prompt, as the backend measured it.",
            [one.prefill_ms for one in answered if one.prefill_ms is not None],
            summary.prefill,
        ),
        (
            "Decode",
            "Writing the answer, as the backend measured it.",
            [one.decode_ms for one in answered if one.decode_ms is not None],
            summary.decode,
        ),
    ]
    pictures = [_histogram(*kind) for kind in kinds]
    by = [
        tables.latencies(way, rows)
        for way in _GROUPS_SHOWN
        if (rows := summary.groups.get(way)) and (len(rows) > 1 or way == "kind")
    ]
    return joined(
        element(
            "p",
            "Lines mark the median (p50, solid), p95 (dashed) and p99 (dotted); p95 and p99 are "
            "nearest ranks.",
            class_="note",
        ),
        element("div", pictures, class_="pair"),
        by,
    )


def _histogram(title: str, explanation: str, samples: list[float], spread: Spread | None) -> Markup:
    found = histogram_of(samples)
    if found is None or spread is None:
        told = element("p", "No times: none were measured or reported.", class_="note")
        return charts.figure(title, explanation, told)
    return charts.histogram(title, explanation, found, spread)


def _timeline(summary: Summary) -> Markup:
    log = summary.run.log
    lines = "Upright lines are steps of the simulation, darker ones epochs."
    if len(log.parts_ms) > 1:
        lines += " Broken red lines are where the run was resumed; the time between is left out."
    return joined(
        element("p", lines, class_="note"),
        legend(),
        timelines(summary.run),
        element("details", element("summary", "Use of the slots"), tables.slots(summary.slots)),
    )


def _tokens(summary: Summary) -> Markup:
    found = token_rates(summary.run.log.tries, summary.duration_ms)
    text = (
        f"Each column is {units.duration(found.width_ms)}. Tokens are shared out evenly over the "
        "time in which they were read or written; those from the cache are not read."
    )
    return joined(
        element("p", text, class_="note"),
        charts.figure("Tokens per second over time", "", charts.rates(found, summary.duration_ms)),
    )


def _prefix(summary: Summary) -> Markup:
    text = (
        "A prompt's beginning that a slot has still in its cache is not read again. More of it "
        "comes from requests with the same beginning following each other on a slot."
    )
    by = [
        tables.prefixes(way, rows)
        for way in ("kind", "persona", "backend")
        if (rows := summary.groups.get(way)) and (len(rows) > 1 or way == "kind")
    ]
    return joined(element("p", text, class_="note"), by)


def _actions(summary: Summary) -> Markup:
    found = summary.actions
    if found is None:
        return joined()
    parts = [tables.actions(found)]
    if found.reasons:
        parts.append(tables.reasons(found))
    if found.facts:
        parts.append(tables.facts(found.facts, "As the manifest says."))
    return joined(parts)


def _failures(summary: Summary) -> Markup:
    counts = ", ".join(f"{units.whole(count)} {name}" for name, count in summary.outcomes.items())
    told = element("p", f"Requests by outcome: {counts or 'none'}.")
    if not summary.troubles:
        return joined(told, element("p", "No errors in the log.", class_="good"))
    return joined(told, tables.troubles(summary.troubles, summary.more_troubles))


def metrics(summaries: list[Summary]) -> Markup:
    """Return the metrics of each epoch as pictures, one line a run."""
    names = dict.fromkeys(
        name for summary in summaries for epoch in summary.run.epochs for name in epoch
    )
    shown, still = [], []
    for name in names:
        if name in _COUNTERS:
            continue
        series = {
            summary.name: [
                (number, epoch[name])
                for number, epoch in enumerate(summary.run.epochs)
                if name in epoch
            ]
            for summary in summaries
        }
        values = {value for points in series.values() for _, value in points}
        if len(values) > 1:
            shown.append(charts.metric(name, series))
        else:
            still.append(f"{name} {units.significant(values.pop())}")
    parts = [element("p", "SWARM's metrics at the end of each epoch.", class_="note")]
    parts.append(element("div", shown[:MOST_METRICS], class_="pair small"))
    if len(shown) > MOST_METRICS:
        parts.append(element("p", f"{len(shown) - MOST_METRICS} more are in metrics.json."))
    if still:
        text = f"The same in every epoch: {', '.join(still[:MOST_METRICS])}."
        parts.append(element("p", text, class_="note"))
    return joined(parts)


def _facts(summary: Summary) -> Markup:
    parts = []
    for group in summary.facts:
        parts.append(tables.facts(group.lines, group.title))
        if group.more:
            hidden = tables.facts(group.more, f"{group.title}, the rest")
            parts.append(element("details", element("summary", "More of it"), hidden))
    if summary.configuration:
        lines = summary.configuration.items()
        shown = tables.facts(lines, "As it was in effect, the command line included.")
        parts.append(element("details", element("summary", "Configuration"), shown))
    return joined(parts)
