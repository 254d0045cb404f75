"""The journal: every answer, stored before anyone sees it.

A SQLite file in WAL mode with one writer. A question's key says what it is, what
it holds and which model it goes to, so an answer is found again exactly when the
same would be asked again; where it was answered and when is not in it. It decides
nothing: the engine looks questions up and stores what came back.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter

from scheduler.canonical import canonical_json
from scheduler.errors import ConfigError, JournalError, RequestFailed
from scheduler.seeds import request_seed
from scheduler.types import Answer, FinishReason, Outcome, Request, Usage

SCHEMA_VERSION = 1
Synchronous = Literal["normal", "full"]
R = TypeVar("R")


def question_key(request: Request, reask: int, fingerprint: str) -> str:
    """Return the key (hexadecimal sha256) of a question put to a model.

    Args:
        request: What is asked.
        reask: 0 for the first question, n for the n-th re-ask.
        fingerprint: Which model answers (`BackendInfo.fingerprint`).
    """
    parts = [
        SCHEMA_VERSION,
        request.agent_id,
        request.epoch,
        request.step,
        request.kind,
        request.ordinal,
        reask,
        request_seed(request, reask),
        request.prompt_sha256,
        fingerprint,
    ]
    return sha256(canonical_json(parts).encode()).hexdigest()


class Journal:
    """Answers by question; open it before use and close it after.

    Args:
        path: The SQLite file; made when it is not there.
        synchronous: `normal` is safe against a killed process; a power cut can
            take the last answers. `full` is safe against that too, and slower.
    """

    def __init__(self, path: Path, *, synchronous: Synchronous = "normal") -> None:
        self.path = path
        self.recalled = 0
        self.stored = 0
        self._synchronous = synchronous
        self._connection: sqlite3.Connection | None = None
        self._known: dict[str, str] = {}
        # One call at a time has the connection, whichever worker thread it runs on.
        self._writer = CapacityLimiter(1)

    def __repr__(self) -> str:
        return f"<Journal {self.path.name}: {len(self._known)} known, {self.stored} stored>"

    async def open(self) -> None:
        """Open the file and read what it holds.

        Raises:
            ConfigError: It is no journal, is damaged, or has another version.
            JournalError: It can't be written.
        """
        await self._on_thread(self._open)

    def recall(self, request: Request, reask: int, fingerprint: str) -> Answer | str | None:
        """Return what was answered: an answer, a failure's message, or None if nothing."""
        record = self._known.get(question_key(request, reask, fingerprint))
        if record is None:
            return None
        self.recalled += 1
        data = json.loads(record)
        if data["outcome"] == Outcome.FAILED.value:
            return str(data["error"])
        return Answer(
            text=data["text"],
            outcome=Outcome(data["outcome"]),
            finish_reason=FinishReason(data["finish_reason"]),
            seed=data["seed"],
            reask=data["reask"],
            usage=Usage(**data["usage"]),
            reasoning=data["reasoning"],
            violation=data["violation"],
        )

    async def store(self, request: Request, answer: Answer, fingerprint: str) -> None:
        """Store an answer; on return it survives a killed process.

        Raises:
            JournalError: It could not be stored.
        """
        record = {
            "text": answer.text,
            "outcome": answer.outcome.value,
            "finish_reason": answer.finish_reason.value,
            "seed": answer.seed,
            "reask": answer.reask,
            "usage": {name: getattr(answer.usage, name) for name in Usage.__slots__},
            "reasoning": answer.reasoning,
            "violation": answer.violation,
        }
        await self._store(question_key(request, answer.reask, fingerprint), request, record)

    async def store_failure(
        self, request: Request, reask: int, error: RequestFailed, fingerprint: str
    ) -> None:
        """Store that a question failed for good, which a run that goes on builds upon.

        Raises:
            JournalError: It could not be stored.
        """
        record = {"outcome": Outcome.FAILED.value, "error": str(error)}
        await self._store(question_key(request, reask, fingerprint), request, record)

    async def aclose(self) -> None:
        """Close the file; may be called twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(connection.close, limiter=self._writer)

    async def _store(self, key: str, request: Request, record: dict[str, Any]) -> None:
        row = (key, request.label, canonical_json(record))
        await self._on_thread(lambda: self._insert(row))
        self.stored += 1

    def _insert(self, row: tuple[str, str, str]) -> None:
        if self._connection is None:
            raise JournalError(f"journal {self.path} is not open")
        with self._connection:
            self._connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", row)

    def _open(self) -> None:
        connection = sqlite3.connect(self.path, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self._synchronous.upper()}")
            self._check(connection)
            self._known = dict(connection.execute("SELECT key, record FROM answers"))
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _check(self, connection: sqlite3.Connection) -> None:
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (healthy,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as exc:
            raise ConfigError(
                f"{self.path} is not a journal, or is damaged: {exc}. Use another run directory"
            ) from exc
        if healthy != "ok":
            raise ConfigError(f"journal {self.path} is damaged: {healthy}. Use another directory")
        if version == 0:
            with connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS answers "
                    "(key TEXT PRIMARY KEY, label TEXT NOT NULL, record TEXT NOT NULL)"
                )
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise ConfigError(
                f"journal {self.path} has version {version}, this release writes "
                f"{SCHEMA_VERSION}. Resume with the release that began the run"
            )

    async def _on_thread(self, call: Callable[[], R]) -> R:
        try:
            return await anyio.to_thread.run_sync(call, limiter=self._writer)
        except sqlite3.Error as exc:
            raise JournalError(
                f"journal {self.path} can't be written: {exc}. Make room or choose another "
                "disk, then go on with --resume"
            ) from exc
