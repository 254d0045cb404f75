"""The directory of a run: transcript, manifest and log.

The transcript holds one line per question put to a model, in canonical order
(epoch, step, phase, agent order, ordinal, re-ask), and nothing that depends on
time, place, cache, attempt or slot; its sha256 is the run's trace hash.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from scheduler.canonical import canonical_json
from scheduler.errors import ConfigError
from scheduler.observe import EventLog, open_run_log
from scheduler.types import Completion, Outcome

TRANSCRIPT = "transcript.jsonl"
MANIFEST = "manifest.json"
LOG = "inference.jsonl"
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
        path: The directory; it must not exist yet.

    Raises:
        ConfigError: It exists, or can't be made.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.mkdir(parents=True)
        except FileExistsError as exc:
            raise ConfigError(
                f"run directory {path} exists already. Give another one: --run-dir DIR"
            ) from exc
        except OSError as exc:
            raise ConfigError(f"run directory {path} can't be made: {exc}") from exc
        self.path = path
        self._manifest: dict[str, Any] = {}
        self._digest = sha256()
        self._questions = 0
        self._transcript: TextIO = (path / TRANSCRIPT).open("w", encoding="utf-8", newline="\n")
        self._log_file: TextIO = (path / LOG).open("w", encoding="utf-8", newline="\n")
        self.log: EventLog = open_run_log(self._log_file, run=path.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._transcript.close()
        self._log_file.close()

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
        for completion in completions:
            for line in transcript_lines(completion):
                text = canonical_json(line) + "\n"
                self._transcript.write(text)
                self._digest.update(text.encode())
                self._questions += 1
        self._transcript.flush()

    def update_manifest(self, **entries: Any) -> None:
        """Add entries to the manifest and write it, whole or not at all."""
        self._manifest.update(entries)
        data = {"version": MANIFEST_VERSION, **self._manifest}
        draft = self.path / f".{MANIFEST}.part"
        draft.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        draft.replace(self.path / MANIFEST)
