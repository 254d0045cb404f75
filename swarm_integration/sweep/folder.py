"""Where a sweep writes: two tables, a picture, and a folder with one directory for each run.

With `--output results/tax.csv` these are `results/tax.csv`, `results/tax.summary.csv`,
`results/tax.png` and `results/tax.runs/`. Nothing that is there is written over, unless
the sweep is resumed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from scheduler.errors import ConfigError
from swarm_integration.files import has_alone, writing
from swarm_integration.sweep.design import PlannedRun

SWEEP_MANIFEST = "sweep.json"
SWEEP_FILE = "sweep.yaml"
BASE = "scenario.yaml"
LOG = "sweep.jsonl"
OUTCOME = "outcome.json"
MANIFEST_VERSION = 1


@dataclass(frozen=True, slots=True)
class Folder:
    """The files of one sweep.

    Attributes:
        csv: One row for each run.
        summary: One row for each point.
        picture: Of the summary.
        runs: The folder of the runs' directories and of the manifest.
    """

    csv: Path
    summary: Path
    picture: Path
    runs: Path

    @property
    def manifest(self) -> Path:
        """What the sweep was, and how it ended."""
        return self.runs / SWEEP_MANIFEST

    def of(self, run: PlannedRun) -> Path:
        """Return the directory of a run."""
        return self.runs / run.name

    def earlier(self) -> dict[str, Any] | None:
        """Return the manifest of an earlier attempt, or None when there was none.

        Raises:
            ConfigError: It can't be read.
        """
        try:
            data = json.loads(self.manifest.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            raise ConfigError(f"{self.manifest} can't be read: {exc}") from exc
        if not isinstance(data, dict) or data.get("version") != MANIFEST_VERSION:
            raise ConfigError(
                f"{self.manifest} is no manifest of a sweep of version {MANIFEST_VERSION}. Use "
                "the release that made the sweep"
            )
        return data

    def check(self, *, resume: bool) -> None:
        """Check that the sweep may write here, and that there is something to resume.

        Raises:
            ConfigError: Something is there already, or nothing is, or nobody may write here.
        """
        if resume:
            if self.earlier() is None:
                raise ConfigError(
                    f"there is no sweep to resume: {self.manifest} is missing. Start it without "
                    "--resume"
                )
        else:
            for path in (self.runs, self.csv, self.summary, self.picture):
                if path.exists():
                    go_on = "Go on with that sweep with --resume, or give"
                    advice = go_on if self.manifest.exists() else "Give"
                    raise ConfigError(f"{path} exists already. {advice} another --output")
        _check_writable(self.csv.parent)

    def make(self, manifest: Mapping[str, Any]) -> None:
        """Make the folder of the runs with its manifest, unless it is there.

        Both come at once: a process killed at any moment leaves a sweep, or nothing.
        """
        if self.manifest.exists():
            return
        draft = self.runs.with_name(f".{self.runs.name}.part")
        try:
            draft.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(
                f"--output: {draft.parent} can't be written: {exc.strerror or exc}. Give another "
                "--output"
            ) from exc
        Folder(self.csv, self.summary, self.picture, draft).write_manifest(manifest)
        draft.rename(self.runs)

    @contextmanager
    def log_alone(self) -> Iterator[TextIO]:
        """Open the sweep's log and keep other processes out for the time of the block.

        Raises:
            ConfigError: Another sweep is under way here.
        """
        with (self.runs / LOG).open("a", encoding="utf-8", newline="\n") as file:
            if not has_alone(file):
                raise ConfigError(
                    f"the sweep in {self.runs} is under way in another process. Wait for its end, "
                    "or give another --output"
                )
            yield file

    def write_manifest(self, entries: Mapping[str, Any]) -> None:
        """Write the manifest, whole or not at all."""
        text = json.dumps({"version": MANIFEST_VERSION, **entries}, indent=2, sort_keys=True)
        write_whole(self.manifest, f"{text}\n".encode())


def folder_of(output: Path, name: str, *, is_folder: bool = False) -> Folder:
    """Return where a sweep writes.

    Args:
        output: A file that ends in `.csv`, or a folder for files that bear the sweep's name.
        name: The sweep's.
        is_folder: Whether it was written as a folder (`results/`).

    Raises:
        ConfigError: It is neither.
    """
    if output.suffix.lower() == ".csv" and not is_folder and not output.is_dir():
        stem = output.with_suffix("")
    elif not output.suffix or is_folder or output.is_dir():
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).strip(".") or "sweep"
        stem = output / safe
    else:
        raise ConfigError(f"--output {output}: give a file that ends in .csv, or a folder")

    def beside(ending: str) -> Path:
        return stem.with_name(stem.name + ending)

    return Folder(beside(".csv"), beside(".summary.csv"), beside(".png"), beside(".runs"))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        RunFilesError: The system refused.
    """
    draft = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            draft.write_bytes(data)
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise


def _check_writable(directory: Path) -> None:
    """Check that files can be made in a directory, or that it can be made.

    Raises:
        ConfigError: They can't.
    """
    there = next(one for one in (directory, *directory.absolute().parents) if one.exists())
    if not there.is_dir():
        raise ConfigError(f"--output: {there} is a file, so nothing can be written below it")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"--output: {there} can't be written. Give another --output")


def check_covers(earlier: Mapping[str, Any], runs: Sequence[PlannedRun], folder: Folder) -> None:
    """Check that a resumed sweep has all runs that it had; it may have more.

    Raises:
        ConfigError: It lacks some.
    """
    names = {run.name for run in runs}
    gone = [run["run"] for run in earlier.get("runs", []) if run["run"] not in names]
    if gone:
        more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
        raise ConfigError(
            f"the sweep in {folder.runs} has runs that this command does not name: "
            f"{', '.join(gone[:3])}{more}. Give the same parameters and seeds, or more of them"
        )
