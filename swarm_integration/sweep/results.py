"""The results of a sweep as tables: a row for each run, and a row for each point.

They follow from the runs' directories alone and hold no times, so a sweep that was killed
and resumed writes the same bytes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler.canonical import canonical_json
from swarm_integration.sweep.design import PlannedRun, Point, short_names
from swarm_integration.sweep.folder import Folder, write_whole
from swarm_integration.sweep.outcome import COUNT_COLUMNS, METRIC_COLUMNS, read_run
from swarm_integration.sweep.statistics import Estimate, estimate

COMPLETED = "completed"


@dataclass(frozen=True)
class SweepResult:
    """One run and what it brought.

    Attributes:
        run: The run.
        found: What its directory says; see `read_run`.
    """

    run: PlannedRun
    found: dict[str, Any]

    @property
    def state(self) -> str:
        """`completed`, `aborted`, `interrupted`, `failed`, `incomplete` or `not started`."""
        return str(self.found["state"])

    @property
    def completed(self) -> bool:
        """Whether its metrics count."""
        return self.state == COMPLETED

    def metric(self, name: str) -> float | None:
        """Return a metric of a completed run, None where it does not apply."""
        value: float | None = self.found.get(name) if self.completed else None
        return value

    def to_dict(self) -> dict[str, Any]:
        """Return the run's row."""
        names = (*METRIC_COLUMNS, *COUNT_COLUMNS)
        return {
            **self.run.point.values,
            "run_index": self.run.index,
            "seed": self.run.seed,
            **{name: self.metric(name) for name in names},
            "trace_hash": self.found.get("trace_hash"),
            "state": self.state,
            "run": self.run.name,
        }


@dataclass(frozen=True)
class SweepResults:
    """All runs of a sweep, in the order of its points and seeds.

    Attributes:
        name: The sweep's.
        folder: Where its files are.
        runs: What each one brought.
        interrupted: Whether somebody has ended it before all runs had their turn.
    """

    name: str
    folder: Folder
    runs: tuple[SweepResult, ...]
    interrupted: bool = False

    @property
    def completed(self) -> bool:
        """Whether all runs are."""
        return all(one.completed for one in self.runs)

    @property
    def points(self) -> list[Point]:
        """The points, in their order."""
        return list({id(one.run.point): one.run.point for one in self.runs}.values())

    def of(self, point: Point) -> list[SweepResult]:
        """Return the runs of a point."""
        return [one for one in self.runs if one.run.point is point]

    def estimate(self, point: Point, metric: str) -> Estimate | None:
        """Return a metric's mean over a point's completed runs; None where it has none."""
        values = (one.metric(metric) for one in self.of(point))
        return estimate([float(value) for value in values if value is not None])

    def summary(self) -> list[dict[str, Any]]:
        """Return a row for each point: `n`, and mean, std and 95 % interval of each metric."""
        return [self._summary_of(point) for point in self.points]

    def _summary_of(self, point: Point) -> dict[str, Any]:
        runs = self.of(point)
        n = sum(one.completed for one in runs)
        row: dict[str, Any] = {**point.values, "n": n, "n_not_completed": len(runs) - n}
        for metric in METRIC_COLUMNS:
            found = self.estimate(point, metric)
            row[f"{metric}_mean"] = _rounded(found.mean if found else None)
            row[f"{metric}_std"] = _rounded(found.std if found else None)
            row[f"{metric}_ci95_low"] = _rounded(found.low if found else None)
            row[f"{metric}_ci95_high"] = _rounded(found.high if found else None)
        return row

    def to_csv(self, path: Path | None = None) -> None:
        """Write the runs' rows, to the sweep's own file if no other is given."""
        write_whole(path or self.folder.csv, _csv([one.to_dict() for one in self.runs]))

    def summary_to_csv(self, path: Path | None = None) -> None:
        """Write the points' rows, to the sweep's own file if no other is given."""
        write_whole(path or self.folder.summary, _csv(self.summary()))


def collect(
    name: str,
    folder: Folder,
    runs: Sequence[PlannedRun],
    *,
    errors: Mapping[str, str],
    interrupted: bool,
) -> SweepResults:
    """Return what the directories of a sweep's runs say.

    Args:
        name: The sweep's.
        folder: Where its files are.
        runs: All runs.
        errors: What ended a run, by its name; counts where its directory does not say.
        interrupted: Whether somebody has ended the sweep.
    """
    found = [
        SweepResult(run, _told(read_run(folder.of(run)), errors.get(run.name))) for run in runs
    ]
    return SweepResults(name, folder, tuple(found), interrupted)


def _told(found: dict[str, Any], error: str | None) -> dict[str, Any]:
    """Return what is known of a run whose end may not be in its directory."""
    if error is None or found["state"] == COMPLETED:
        return found
    silent = found["state"] in ("not started", "interrupted", "incomplete")
    return {
        **found,
        "state": "failed" if silent else found["state"],
        "reason": error if silent else found.get("reason") or error,
    }


def _rounded(value: float | None) -> float | None:
    """Return a number as far as libraries of different machines agree on it."""
    return None if value is None else float(f"{value:.10g}")


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow([_cell(value) for value in row.values()])
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else canonical_json(value)


def table(results: SweepResults, metrics: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the table that is shown at the end: a line for each point."""
    rows = [["point", "n", *metrics]]
    for point in results.points:
        done = sum(one.completed for one in results.of(point))
        named = zip(short_names(point.values), point.values.values(), strict=True)
        values = ", ".join(f"{name}={value}" for name, value in named)
        cells = [_shown(results.estimate(point, metric)) for metric in metrics]
        rows.append([values or results.name, str(done), *cells])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def _shown(found: Estimate | None) -> str:
    if found is None:
        return "-"
    if found.high is None:
        return f"{found.mean:.4g}"
    return f"{found.mean:.4g} ± {found.high - found.mean:.2g}"
