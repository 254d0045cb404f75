"""What can be seen of a run: JSON log lines and the numbers of its summary.

Events are `noun.verb` with the request's names bound. A library configures no
logging: `open_run_log` makes a logger that writes to one file and touches no
global setting; commands call it.
"""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

import structlog

from scheduler.types import Answer, Completion, Outcome


class EventLog(Protocol):
    """Where events go; structlog's loggers are such."""

    def info(self, event: str, **fields: Any) -> Any:
        """Record something that is as it should be."""
        ...

    def warning(self, event: str, **fields: Any) -> Any:
        """Record something that was mended."""
        ...

    def error(self, event: str, **fields: Any) -> Any:
        """Record something that ends a request or a run."""
        ...


def open_run_log(stream: TextIO, **bound: Any) -> EventLog:
    """Return a logger that writes one JSON object a line to `stream`.

    Each line has the time of day (`timestamp`, which a machine may set back) and the
    milliseconds since the log was opened (`elapsed_ms`, which never goes back).

    Args:
        stream: An open text file.
        **bound: Fields of every line, such as `run`.
    """
    opened_at = time.monotonic()

    def add_elapsed(_: object, __: str, fields: MutableMapping[str, Any]) -> Mapping[str, Any]:
        fields["elapsed_ms"] = round((time.monotonic() - opened_at) * 1000.0, 3)
        return fields

    logger: EventLog = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            add_elapsed,
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.BoundLogger,
        cache_logger_on_first_use=True,
    ).bind(**bound)
    return logger


def _floats() -> array[float]:
    return array("d")


@dataclass(slots=True)
class RunStats:
    """Counts and samples (milliseconds) of everything that has settled."""

    requests: int = 0
    recalled: int = 0
    answered_ok: int = 0
    invalid: int = 0
    failures: int = 0
    retries: int = 0
    reasks: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    max_in_flight: int = 0
    queue_ms: array[float] = field(default_factory=_floats)
    service_ms: array[float] = field(default_factory=_floats)
    prefill_ms: array[float] = field(default_factory=_floats)
    decode_ms: array[float] = field(default_factory=_floats)

    def saw_in_flight(self, count: int) -> None:
        """Note how many slots were taken at once."""
        self.max_in_flight = max(self.max_in_flight, count)

    def answered(self, answer: Answer) -> None:
        """Add one answer's tokens and times."""
        self.prompt_tokens += answer.usage.prompt_tokens
        self.completion_tokens += answer.usage.completion_tokens
        self.cached_tokens += answer.usage.cached_tokens
        self.service_ms.append(answer.timings.service_ms)
        if answer.reask == 0:
            self.queue_ms.append(answer.timings.queue_ms)
        else:
            self.reasks += 1
        if answer.timings.prefill_ms is not None:
            self.prefill_ms.append(answer.timings.prefill_ms)
        if answer.timings.decode_ms is not None:
            self.decode_ms.append(answer.timings.decode_ms)

    def settled(self, completion: Completion) -> None:
        """Count one request by how it ended."""
        self.requests += 1
        if completion.error is not None:
            self.failures += 1
        elif completion.answers[-1].outcome is Outcome.INVALID:
            self.invalid += 1
        else:
            self.answered_ok += 1

    def summary(self) -> dict[str, Any]:
        """Return the counts, and the median and 95th percentile of each time."""
        counts = (
            "requests",
            "recalled",
            "answered_ok",
            "invalid",
            "failures",
            "retries",
            "reasks",
            "prompt_tokens",
            "completion_tokens",
            "cached_tokens",
            "max_in_flight",
        )
        times = ("queue_ms", "service_ms", "prefill_ms", "decode_ms")
        return {
            **{name: getattr(self, name) for name in counts},
            **{name: spread(getattr(self, name)) for name in times},
        }


def spread(samples: Iterable[float]) -> dict[str, float] | None:
    """Return median, 95th percentile (nearest rank) and maximum; None without samples."""
    ordered: Sequence[float] = sorted(samples)
    if not ordered:
        return None
    rank = max(0, -(-95 * len(ordered) // 100) - 1)
    return {
        "median": round(statistics.median(ordered), 3),
        "p95": round(ordered[rank], 3),
        "max": round(ordered[-1], 3),
    }
