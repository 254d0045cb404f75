"""Small logs and run directories, written line by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from swarm_integration.report.log import parse_log
from swarm_integration.report.reading import read_run
from swarm_integration.report.records import Log, RunRecord

ANN = {"agent_id": "ann", "epoch": 0, "step": 0, "kind": "act", "ordinal": 0, "backend": "b"}
BOB = {**ANN, "agent_id": "bob"}
TOKENS = {"prompt_tokens": 100, "cached_tokens": 40, "completion_tokens": 8}


def event(name: str, at_ms: float, **fields: Any) -> dict[str, Any]:
    return {"event": name, "elapsed_ms": at_ms, **fields}


def started(at_ms: float = 0.0, **slots: int) -> dict[str, Any]:
    return event("run.started", at_ms, slots=slots or {"b": 2})


def answered(who: dict[str, Any], at_ms: float, service_ms: float, **fields: Any) -> dict[str, Any]:
    usual = {"outcome": "ok", "service_ms": service_ms, "reask": 0, "attempt": 1, **TOKENS}
    return event("request.answered", at_ms, **who, **{**usual, **fields})


def served(
    who: dict[str, Any], queued: float, start: float, end: float, *, slot: int = 0, **fields: Any
) -> list[dict[str, Any]]:
    """The events of a request that is answered at its first attempt."""
    return [
        event("request.queued", queued, **who),
        event("request.dispatched", start, **who, slot=slot, attempt=1),
        answered(who, end, end - start, queue_ms=start - queued, **fields),
        event("request.settled", end, **who, outcome="ok", reasks=0, total_ms=end - queued),
    ]


def in_time(*events: dict[str, Any]) -> list[Any]:
    """The events in the order in which a log would have them."""
    return sorted(events, key=lambda one: one["elapsed_ms"])


def encoded(*events: dict[str, Any] | bytes) -> list[bytes]:
    return [one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n" for one in events]


def log_of(*events: dict[str, Any] | bytes) -> Log:
    return parse_log(encoded(*events))


def write_run(
    path: Path, events: list[Any] | None = None, *, epochs: Any = None, **manifest: Any
) -> Path:
    path.mkdir(parents=True)
    facts = {"version": 1, "state": "completed", **manifest}
    (path / "manifest.json").write_text(json.dumps(facts), encoding="utf-8")
    if events is not None:
        (path / "inference.jsonl").write_bytes(b"".join(encoded(*events)))
    if epochs is not None:
        (path / "metrics.json").write_text(json.dumps(epochs), encoding="utf-8")
    return path


def run_of(path: Path, events: list[Any], **manifest: Any) -> RunRecord:
    return read_run(write_run(path, events, **manifest))
