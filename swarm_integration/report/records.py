"""What a report is made from: one run, read from its directory.

Records only; `log.py` and `reading.py` fill them, everything else reads them. Times
are milliseconds on one axis, on which the attempts of a resumed run follow each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple


class Key(NamedTuple):
    """Which request: who asks, and where in the simulation."""

    agent_id: str
    epoch: int
    step: int
    kind: str
    ordinal: int

    @property
    def label(self) -> str:
        """How it is named to a reader."""
        nth = f" #{self.ordinal}" if self.ordinal else ""
        return f"{self.agent_id} {self.kind}{nth}, epoch {self.epoch}, step {self.step}"


class End(StrEnum):
    """How one try on a slot ended."""

    ANSWERED = "answered"
    INVALID = "invalid"
    """The answer did not hold the output schema."""
    RETRIED = "retried"
    """It failed, and another one followed."""
    FAILED = "failed"
    """It failed for good."""
    STOPPED = "stopped"
    """It was withdrawn, or the log ends before it did."""


@dataclass(slots=True)
class Try:
    """One attempt of a request on a slot.

    Attributes:
        key: Which request.
        backend: Who answers.
        slot: The slot it held.
        number: Which attempt of the request, from 1.
        start_ms: Its dispatch.
        end_ms: Its answer or its error.
        queued_ms: When the request was put into the queue; the first attempt waits from then.
        end: How it ended.
        prefill_ms: Reading the prompt, None where the backend does not say.
        decode_ms: Writing the answer, None where the backend does not say.
        prompt_tokens: Of the whole prompt.
        cached_tokens: Of these, taken from the slot's cache.
        completion_tokens: Of the answer.
        error: What went wrong, or nothing.
        reask: 0 for the first question, n for the n-th re-ask.
    """

    key: Key
    backend: str
    slot: int
    number: int
    start_ms: float
    end_ms: float
    queued_ms: float
    end: End = End.STOPPED
    prefill_ms: float | None = None
    decode_ms: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    reask: int = 0

    @property
    def service_ms(self) -> float:
        """From dispatch to answer."""
        return self.end_ms - self.start_ms

    @property
    def answered(self) -> bool:
        """Whether an answer came back, whatever it was worth."""
        return self.end in {End.ANSWERED, End.INVALID}


@dataclass(slots=True)
class Asked:
    """One request and how it ended.

    Attributes:
        key: Which.
        backend: Who answers.
        outcome: `ok`, `invalid`, `failed`, `withdrawn`, or `open` when the log ends first.
        queue_ms: Its wait for a slot, or None when it never had one.
        total_ms: From queue to settlement, or None.
        attempts: Tries on a slot.
        reasks: Questions after the first.
        recalled: Whether it was answered from the journal.
        error: Why it failed, or nothing.
    """

    key: Key
    backend: str
    outcome: str = "open"
    queue_ms: float | None = None
    total_ms: float | None = None
    attempts: int = 0
    reasks: int = 0
    recalled: bool = False
    error: str = ""


class Trouble(NamedTuple):
    """An error that is worth a line: of one try, of a request, or of the run."""

    at_ms: float
    what: str
    who: str
    error: str


class Depth(NamedTuple):
    """A change of a queue's length."""

    at_ms: float
    backend: str
    change: int


class Stage(NamedTuple):
    """A step of the simulation and when it began."""

    at_ms: float
    epoch: int
    step: int


@dataclass(slots=True)
class Log:
    """What `inference.jsonl` tells.

    Attributes:
        tries: In the order of their dispatch.
        asked: Every request once, in the order of its first mention.
        troubles: Errors, in their order.
        depths: Changes of the queues.
        stages: Steps of the simulation.
        parts_ms: Where each attempt at the run begins; more than one when it was resumed.
        duration_ms: Where the last event is.
        slots: Slots in use, by backend.
        began: The time of day of the first event, as the log has it.
        unreadable: Lines that are no event.
        recalled: Requests answered from the journal.
    """

    tries: list[Try] = field(default_factory=list)
    asked: dict[Key, Asked] = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)
    depths: list[Depth] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    parts_ms: list[float] = field(default_factory=list)
    duration_ms: float = 0.0
    slots: dict[str, int] = field(default_factory=dict)
    began: str = ""
    unreadable: int = 0
    recalled: int = 0


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run directory, read.

    Attributes:
        path: The directory.
        name: How a report calls it.
        manifest: `manifest.json`; its values are unchecked.
        log: `inference.jsonl`.
        epochs: `metrics.json`, one mapping of numbers an epoch.
        personas: By agent.
        transcript_sha256: Of `transcript.jsonl`, or None when it is not there.
        missing: Files that could not be read, and why.
    """

    path: Path
    name: str
    manifest: Mapping[str, Any]
    log: Log
    epochs: tuple[Mapping[str, float], ...]
    personas: Mapping[str, str]
    transcript_sha256: str | None
    missing: tuple[str, ...] = ()
