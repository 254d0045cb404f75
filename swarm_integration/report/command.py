"""`swarm-inference report`: reads run directories and writes what was asked for."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from scheduler.errors import ConfigError
from swarm_integration.report import terminal
from swarm_integration.report.page import page
from swarm_integration.report.plain import text
from swarm_integration.report.png import png_of
from swarm_integration.report.reading import read_run
from swarm_integration.report.records import RunRecord
from swarm_integration.report.summary import Summary, summarise
from swarm_integration.report.trace import trace_of

REPORT = "report.html"
COMPARISON = "comparison.html"
MARKS = {"html": b"<!DOCTYPE html>", "png": b"\x89PNG", "trace": b'"traceEvents"'}
"""By what a file that a report may replace is known as an earlier one, in its first bytes."""

_OPTIONS = {"html": "output", "png": "png", "trace": "trace"}


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What the command line asked for.

    Attributes:
        directories: One run, or several to put side by side.
        output: The HTML file, or None for its usual place.
        html: Whether it is written.
        png: A picture for papers, or None.
        trace: A trace file, or None.
        as_json: Print one JSON object instead of tables.
    """

    directories: Sequence[Path]
    output: Path | None = None
    html: bool = True
    png: Path | None = None
    trace: Path | None = None
    as_json: bool = False


def report(options: ReportOptions, stream: TextIO) -> None:
    """Print the numbers of the runs to `stream` and write the files.

    Raises:
        ConfigError: A directory is no run's, a file can't be written, or a package
            that an option needs is missing.
    """
    if options.png is not None and len(options.directories) > 1:
        raise ConfigError("--png draws one run. Give one directory, or leave --png out")
    summaries = [summarise(run) for run in _told_apart(options.directories)]
    contents = list(_contents(options, summaries))
    if not options.as_json:
        terminal.show(summaries, stream)
    written = {}
    for name, path, _ in contents:
        _check_free(name, path)
    for name, path, content in contents:
        _write(path, content)
        written[name] = path
    if options.as_json:
        print(json.dumps(facts(summaries, written)), file=stream)
    else:
        for path in written.values():
            print(f"Written: {path}", file=stream)


def facts(summaries: Sequence[Summary], written: dict[str, Path]) -> dict[str, Any]:
    """Return what `--json` prints; times are milliseconds."""
    return {
        "written": {name: str(path) for name, path in written.items()},
        "runs": [_plain(summary) for summary in summaries],
    }


def _plain(summary: Summary) -> dict[str, Any]:
    return {
        "name": summary.name,
        "directory": str(summary.run.path),
        "state": summary.state,
        "facts": {group.title: dict([*group.lines, *group.more]) for group in summary.facts},
        "determinism": asdict(summary.verdict),
        "transcript_sha256": summary.run.transcript_sha256,
        "requests": summary.requests,
        "outcomes": dict(summary.outcomes),
        "retries": summary.retries,
        "reasks": summary.reasks,
        "recalled": summary.run.log.recalled,
        "duration_ms": summary.duration_ms,
        "slots_busy": summary.busy,
        "prompt_tokens": summary.prompt_tokens,
        "cached_tokens": summary.cached_tokens,
        "completion_tokens": summary.completion_tokens,
        "written_tokens_per_s": summary.written_per_s,
        **{
            f"{name}_ms": None if spread is None else asdict(spread)
            for name, spread in (
                ("queue", summary.queue),
                ("service", summary.service),
                ("prefill", summary.prefill),
                ("decode", summary.decode),
            )
        },
        "by": {way: [asdict(row) for row in rows] for way, rows in summary.groups.items()},
        "slots": [asdict(slot) for slot in summary.slots],
        "actions": None if summary.actions is None else asdict(summary.actions),
        "errors": [asdict(row) for row in summary.troubles],
        "more_errors": summary.more_troubles,
        "epochs": [dict(epoch) for epoch in summary.run.epochs],
        "notes": list(summary.run.missing),
    }


def _told_apart(directories: Sequence[Path]) -> list[RunRecord]:
    """Read the runs; those with the same name are called by their paths."""
    runs = [read_run(path) for path in directories]
    times = Counter(run.name for run in runs)
    named = [replace(run, name=text(str(run.path))) if times[run.name] > 1 else run for run in runs]
    times = Counter(run.name for run in named)
    return [
        replace(run, name=f"{run.name} ({number})") if times[run.name] > 1 else run
        for number, run in enumerate(named, start=1)
    ]


def _contents(
    options: ReportOptions, summaries: Sequence[Summary]
) -> list[tuple[str, Path, bytes]]:
    """Return what is to be written; everything is made before anything is written."""
    contents = []
    if options.html:
        usual = REPORT if len(summaries) == 1 else COMPARISON
        path = options.output or options.directories[0] / usual
        made_by = f"swarm-inference-scheduler {version('swarm-inference-scheduler')}"
        contents.append(("html", path, page(summaries, made_by).encode("utf-8", "replace")))
    if options.png is not None:
        contents.append(("png", options.png, png_of(summaries[0])))
    if options.trace is not None:
        trace = trace_of([summary.run for summary in summaries])
        contents.append(("trace", options.trace, trace.encode()))
    return contents


def _check_free(name: str, path: Path) -> None:
    """Check that what is at `path`, if anything, is an earlier report and not a run's own file."""
    if not path.name or path.is_dir():
        raise ConfigError(f"--{_OPTIONS[name]} names a directory, {path}. Give a file in it")
    if path.is_symlink() or not path.is_file():
        return
    try:
        with path.open("rb") as file:
            begins = file.read(200)
    except OSError:
        return  # that it can't be written will be told
    if begins and MARKS[name] not in begins:
        raise ConfigError(
            f"{path} exists and is something else than what --{_OPTIONS[name]} writes. Give "
            "another place, or remove it"
        )


def _write(path: Path, content: bytes) -> None:
    """Put a file in its place, whole or not at all, and never through a link."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with draft.open("xb") as file:
            file.write(content)
        draft.replace(path)
    except OSError as exc:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise ConfigError(
            f"{path} can't be written: {exc.strerror}. Give another place, such as "
            "--output report.html"
        ) from exc
