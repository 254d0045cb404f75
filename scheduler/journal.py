"""The journal: every answer, stored before anyone sees it.

A SQLite file in WAL mode with one writer, who has it alone. A question's key says
what it is, what it holds and which model it goes to, so an answer is found again
exactly when the same would be asked again; where it was answered and when is not in
it. It decides nothing: the engine looks questions up and stores what came back.
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
from scheduler.errors import ConfigError, JournalError, RequestFailed, SchedulerError
from scheduler.journal_record import record_of, recorded
from scheduler.observe import EventLog
from scheduler.seeds import request_seed
from scheduler.types import Answer, Request

SCHEMA_VERSION = 1
Synchronous = Literal["normal", "full"]
_TABLE = (
    "CREATE TABLE answers "
    "(key TEXT PRIMARY KEY, label TEXT NOT NULL, record TEXT NOT NULL, sha256 TEXT NOT NULL) "
    "WITHOUT ROWID"
)
_PATIENCE_S = 0.5  # for the lock of a process that is just ending
R = TypeVar("R")


class JournalDamaged(ConfigError):
    """The file is no journal, or does not hold any more what was stored."""


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
        on_error: `abort` raises when an answer can't be stored; `continue` stores
            nothing from then on, says so once and keeps the reason in `broken`.
        log: Where that is said.
        connect: Opens the file; tests give one whose disk is full.
    """

    def __init__(
        self,
        path: Path,
        *,
        synchronous: Synchronous = "normal",
        on_error: Literal["abort", "continue"] = "abort",
        log: EventLog | None = None,
        connect: Callable[..., sqlite3.Connection] = sqlite3.connect,
    ) -> None:
        self.path = path
        self._connect = connect
        self.broken: str | None = None
        self._on_error = on_error
        self._log = log
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
            ConfigError: It is no journal, is damaged, is in use, or has another version.
            JournalError: It can't be written.
        """
        await self._on_thread(self._open)

    @property
    def is_empty(self) -> bool:
        """Whether it holds no answer."""
        return not self._known

    def recall(self, request: Request, reask: int, fingerprint: str) -> Answer | str | None:
        """Return what was answered: an answer, a failure's message, or None if nothing."""
        record = self._known.get(question_key(request, reask, fingerprint))
        if record is None:
            return None
        self.recalled += 1
        try:
            return recorded(json.loads(record))
        except (KeyError, TypeError, ValueError) as exc:
            raise JournalDamaged(
                f"journal {self.path} is damaged: the answer to {request.label} has not the shape "
                f"of one ({exc!r}). Use another directory"
            ) from exc

    async def store(self, request: Request, answer: Answer, fingerprint: str) -> None:
        """Store an answer; on return it survives a killed process.

        Raises:
            JournalError: It could not be stored.
        """
        key = question_key(request, answer.reask, fingerprint)
        await self._store(key, request, record_of(answer))

    async def store_failure(
        self, request: Request, reask: int, error: RequestFailed, fingerprint: str
    ) -> None:
        """Store that a question failed for good, which a run that goes on builds upon.

        Raises:
            JournalError: It could not be stored.
        """
        key = question_key(request, reask, fingerprint)
        await self._store(key, request, record_of(error))

    async def aclose(self) -> None:
        """Close the file; may be called twice."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(connection.close, limiter=self._writer)

    async def _store(self, key: str, request: Request, record: dict[str, Any]) -> None:
        if self.broken is not None:
            return
        # Not canonical JSON, which does not escape: half a surrogate pair is no UTF-8.
        text = json.dumps(record, sort_keys=True)
        row = (key, request.label, text, _digest(key, text))
        try:
            await self._on_thread(lambda: self._insert(row))
        except JournalError as exc:
            if self._on_error == "abort":
                raise
            if self.broken is None and self._log is not None:
                self._log.error("journal.broken", reason=str(exc))
            self.broken = str(exc)
        else:
            self.stored += 1
            self._known.setdefault(key, text)

    def _insert(self, row: tuple[str, str, str, str]) -> None:
        if self._connection is None:
            raise JournalError(f"journal {self.path} is not open")
        with self._connection:
            self._connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", row)

    def _open(self) -> None:
        connection = self._connect(self.path, timeout=_PATIENCE_S, check_same_thread=False)
        try:
            self._known = self._read(connection)
        except sqlite3.DatabaseError as exc:
            connection.close()
            raise self._explained(exc) from exc
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _explained(self, error: sqlite3.DatabaseError) -> SchedulerError:
        """Return what an error on opening means; the low byte of its code says which it is."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return ConfigError(
                f"journal {self.path} is in use by another run. Wait for its end, or use "
                "another directory"
            )
        if code in {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            return JournalDamaged(
                f"{self.path} is not a journal, or is damaged: {error}. Use another run directory"
            )
        return self._unwritable(error)

    def _unwritable(self, error: sqlite3.Error) -> JournalError:
        return JournalError(
            f"journal {self.path} can't be written: {error}. Make room or choose another "
            "disk, then go on with --resume"
        )

    def _read(self, connection: sqlite3.Connection) -> dict[str, str]:
        """Take the file for this journal alone and return what it holds."""
        # A file from elsewhere may hold views and triggers; nothing in them is to be run.
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,)
        if version == 0 and tables:
            raise ConfigError(f"{self.path} is a database, but not a journal. Use another file")
        if version not in (0, SCHEMA_VERSION):
            raise ConfigError(
                f"journal {self.path} has version {version}, this release writes "
                f"{SCHEMA_VERSION}. Resume with the release that began the run"
            )
        if version and _schema(connection) != [("table", "answers", _TABLE)]:
            raise JournalDamaged(
                f"{self.path} is not a journal, or is damaged: it holds something else than the "
                "one table of a journal. Use another run directory"
            )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {self._synchronous.upper()}")
        with connection:
            # A write, so that the file is locked from here on.
            connection.execute("BEGIN IMMEDIATE")
            if version == 0:
                connection.execute(_TABLE)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        return self._checked(connection)

    def _checked(self, connection: sqlite3.Connection) -> dict[str, str]:
        (healthy,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if healthy != "ok":
            raise JournalDamaged(
                f"journal {self.path} is damaged: {healthy}. Use another directory"
            )
        known = {}
        for key, label, record, digest in connection.execute("SELECT * FROM answers"):
            if digest != _digest(key, record):
                raise JournalDamaged(
                    f"journal {self.path} is damaged: the answer to {label} is not what was "
                    "stored. Use another directory"
                )
            known[key] = record
        return known

    async def _on_thread(self, call: Callable[[], R]) -> R:
        try:
            return await anyio.to_thread.run_sync(call, limiter=self._writer)
        except sqlite3.Error as exc:
            raise self._unwritable(exc) from exc


def _schema(connection: sqlite3.Connection) -> list[tuple[str, str, str]]:
    return connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()


def _digest(key: str, record: str) -> str:
    return sha256(f"{key}\n{record}".encode()).hexdigest()
