"""The directory of a run: transcript, manifest and log.

The transcript holds one line per question put to a model, in canonical order
(epoch, step, phase, agent order, ordinal, re-ask), and nothing that depends on
time, place, cache, attempt or slot; its sha256 is the run's trace hash.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from os import SEEK_END, truncate
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import Any, Self, TextIO

import yaml

from scheduler.backends.chat_answer import encodable
from scheduler.canonical import canonical_json
from scheduler.errors import ConfigError, SchedulerError
from scheduler.observe import EventLog, open_run_log
from scheduler.types import Completion, Outcome
from swarm_integration.errors import RunFilesError
from swarm_integration.files import has_alone, links_in, writing
from swarm_integration.keyless import without_secrets

TRANSCRIPT = "transcript.jsonl"
MANIFEST = "manifest.json"
LOG = "inference.jsonl"
JOURNAL = "journal.sqlite3"
METRICS = "metrics.json"
SERVER_LOG = "server.log"
SCENARIO = "scenario.yaml"
CONFIGURATION = "configuration.yaml"
MANIFEST_VERSION = 1


def default_run_dir(scenario_id: str, seed: int | None) -> Path:
    """Return a fresh directory name under `runs/`, with scenario, seed and time."""
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in scenario_id).strip(".") or "run"
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    return Path("runs") / f"{safe}-seed{seed}-{now}"


def transcript_lines(completion: Completion) -> list[dict[str, Any]]:
    """Return what the transcript says of a request: a line per question put."""
    request = completion.request
    names = {
        "agent_id": request.agent_id,
        "epoch": request.epoch,
        "kind": request.kind,
        "ordinal": request.ordinal,
        "prompt_sha256": request.prompt_sha256,
        "step": request.step,
    }
    lines = [
        {
            **names,
            "finish_reason": answer.finish_reason.value,
            "outcome": answer.outcome.value,
            "reask": answer.reask,
            "seed": answer.seed,
            "text": answer.text,
        }
        for answer in completion.answers
    ]
    if completion.error is not None:
        failed = {"finish_reason": None, "seed": None, "text": None}
        reask = len(completion.answers)
        lines.append({**names, **failed, "outcome": Outcome.FAILED.value, "reask": reask})
    return lines


class RunDirectory:
    """Writes the files of one run; a context manager.

    Args:
        path: The directory; it must not exist yet, or be a run's when it is resumed.
        resume: Go on in the directory of an earlier attempt.

    Attributes:
        holds_answers: Whether there is something to resume; the run says so.

    Raises:
        ConfigError: It exists, can't be made, or there is nothing to resume.
    """

    holds_answers = False

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self.path = path
        self.earlier = read_manifest(path) if resume else None
        self.resumed = resume
        if not resume:
            _make(path)
        for link in links_in(path):
            raise ConfigError(
                f"{link} is a link, so writing there would change a file elsewhere. Put a file in "
                "its place, or use another run directory"
            )
        self._manifest: dict[str, Any] = {}
        self._digest = sha256()
        self._questions = 0
        self._transcript: TextIO | None = None
        self._log_file: TextIO = (path / LOG).open("a", encoding="utf-8", newline="\n")
        if not has_alone(self._log_file):
            self._log_file.close()
            raise ConfigError(
                f"run directory {path} is in use by another run. Wait for its end, or use "
                "another directory"
            )
        self._log_size = (path / LOG).stat().st_size
        if _is_torn(path / LOG):
            self._log_file.write("\n")
        self.log: EventLog = open_run_log(self._log_file, run=encodable(path.name))

    def begin(self) -> None:
        """Begin the transcript; from here on the directory is this attempt's."""
        self._transcript = (self.path / TRANSCRIPT).open("w", encoding="utf-8", newline="\n")

    @property
    def begun(self) -> bool:
        """Whether this attempt writes its manifest: it has begun, or made the directory."""
        return self._transcript is not None or not self.resumed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with ExitStack() as files:
            if exc is not None:  # what could not be written has been said
                files.enter_context(suppress(RunFilesError))
            files.enter_context(writing(self.path))
            files.callback(self._close_log)
            if self._transcript is not None:
                files.callback(self._transcript.close)

    def _close_log(self) -> None:
        self._log_file.close()
        if not self.begun:
            truncate(self.path / LOG, self._log_size)

    def remove_unbegun(self) -> None:
        """Remove the directory of an attempt that began nothing and wrote nothing to look into."""
        if self._transcript is None and not self.resumed:
            left = {file.name for file in self.path.iterdir()}
            if left <= {MANIFEST, LOG}:
                rmtree(self.path, ignore_errors=True)

    @property
    def trace_hash(self) -> str:
        """The sha256 (hexadecimal) of the transcript so far."""
        return self._digest.hexdigest()

    @property
    def questions(self) -> int:
        """How many lines the transcript has."""
        return self._questions

    def record(self, completions: Sequence[Completion]) -> None:
        """Append a phase's completions, which come in canonical order."""
        if self._transcript is None:
            raise RuntimeError("the transcript has not begun")
        with writing(self.path / TRANSCRIPT):
            for completion in completions:
                for line in transcript_lines(completion):
                    text = canonical_json(line) + "\n"
                    self._transcript.write(text)
                    self._digest.update(text.encode())
                    self._questions += 1
            self._transcript.flush()

    def copy_inputs(self, scenario: Path, configuration: dict[str, Any]) -> dict[str, str]:
        """Keep what the run was asked to do, so that the directory stands on its own.

        API keys and what logs in at an address are left out of the scenario's copy.

        Returns:
            The sha256 of each copy, by its file name.
        """
        plain = without_secrets(scenario.read_text(encoding="utf-8"))
        text = yaml.safe_dump(configuration, sort_keys=False, allow_unicode=True)
        with writing(self.path):
            (self.path / SCENARIO).write_text(plain, encoding="utf-8")
            (self.path / CONFIGURATION).write_text(text, encoding="utf-8")
        return {name: file_sha256(self.path / name) for name in (SCENARIO, CONFIGURATION)}

    def write_metrics(self, epochs: list[dict[str, Any]]) -> None:
        """Write the epochs' metrics, which a replay compares."""
        text = json.dumps(epochs, indent=1, sort_keys=True, default=str)
        with writing(self.path / METRICS):
            (self.path / METRICS).write_text(text + "\n", encoding="utf-8")

    def update_manifest(self, **entries: Any) -> None:
        """Add entries to the manifest and write it, whole or not at all.

        An attempt to resume that is refused leaves the earlier manifest, and the log, as they
        were.
        """
        self._manifest.update(entries)
        if not self.begun:
            return
        _write_manifest(self.path, self._manifest)


def file_sha256(path: Path) -> str:
    """Return the sha256 (hexadecimal) of a file's bytes."""
    return sha256(path.read_bytes()).hexdigest()


def _write_manifest(directory: Path, entries: dict[str, Any]) -> None:
    data = {"version": MANIFEST_VERSION, **entries}
    draft = directory / f".{MANIFEST}.part"
    with writing(directory / MANIFEST):
        draft.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        draft.replace(directory / MANIFEST)


def _make(path: Path) -> None:
    try:
        if _was_refused(path):
            return
        if path.exists():
            raise FileExistsError(path)
        # It comes with its manifest: a process killed at any moment leaves a run, or nothing.
        draft = path.with_name(f".{path.name}.part")
        draft.mkdir(parents=True, exist_ok=True)
        _write_manifest(draft, {"state": "starting"})
        draft.rename(path)
    except FileExistsError as exc:
        raise ConfigError(
            f"run directory {path} exists already. Go on in it with --resume, or give another "
            "one: --run-dir DIR"
        ) from exc
    except (OSError, RunFilesError) as exc:
        raise ConfigError(f"run directory {path} can't be made: {exc}") from exc


def _is_torn(log: Path) -> bool:
    """Whether a killed process has left a line without its end."""
    with log.open("rb") as file:
        if not file.seek(0, SEEK_END):
            return False
        file.seek(-1, SEEK_END)
        return file.read() != b"\n"


def _was_refused(path: Path) -> bool:
    """Whether an earlier attempt made the directory and then did not begin."""
    try:
        manifest = read_manifest(path)
    except ConfigError:
        return False  # it is nobody's, or somebody else's
    return "identity" not in manifest and not (path / TRANSCRIPT).exists()


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of the run in `path`.

    Raises:
        ConfigError: There is no run, or it is of another version.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        why = "it is nested too deep" if isinstance(exc, RecursionError) else exc
        raise ConfigError(
            f"there is no run in {path}: {MANIFEST} can't be read ({why}). Give the directory of a "
            "run, such as runs/a"
        ) from exc
    if not isinstance(manifest, dict) or manifest.get("version") != MANIFEST_VERSION:
        raise ConfigError(
            f"{path / MANIFEST} is no manifest of version {MANIFEST_VERSION}. Use the release "
            "that made the run"
        )
    return manifest


@contextmanager
def recorded_end(directory: RunDirectory, *, hint: bool = True) -> Iterator[None]:
    """Write into manifest and log how the run ended.

    Args:
        directory: The run's.
        hint: Print how to go on with a run that did not end well.
    """
    state, reason = "completed", None
    try:
        yield
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    except SchedulerError as exc:
        state, reason = "aborted", str(exc)
        raise
    except BaseException as exc:
        state, reason = "failed", f"{type(exc).__name__}: {exc}"
        raise
    finally:
        with suppress(*(() if state == "completed" else (RunFilesError,))):  # the first one counts
            directory.update_manifest(
                state=state,
                reason=reason,
                trace_hash=directory.trace_hash,
                transcript_lines=directory.questions,
            )
            with writing(directory.path / LOG):
                directory.log.info(
                    "run.ended", state=state, reason=reason, trace_hash=directory.trace_hash
                )
        if hint and state != "completed" and directory.holds_answers:
            text = f"What was answered is kept. To go on: add --resume --run-dir {directory.path}"
            print(text, file=sys.stderr)  # noqa: T201  # the one moment when it helps
