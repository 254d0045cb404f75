"""A run directory that does its worst: mark-up, escapes and absurd numbers everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.report.logs import ANN, event, served, started, write_run

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
ESCAPES = "\x1b[2J\x1b]0;owned\x07\u202eevil\ud800"


def hostile_run(path: Path) -> Path:
    who = {**ANN, "agent_id": EVIL, "kind": EVIL, "backend": EVIL}
    other = {**ANN, "agent_id": ESCAPES + "$\\frac{1}{", "backend": "[red]b[/red]"}
    events: list[Any] = [
        started(**{EVIL: 2, "[red]b[/red]": 10**9}),
        event("step.started", 0, epoch=EVIL, step=-1),
        *served(who, 0, 10, 50, prefill_ms=1e300, decode_ms=-5),
        event("request.queued", 51, **other),
        event("request.dispatched", 52, **other, slot=1e30, attempt=EVIL),
        event("request.retried", 60, **other, error=EVIL, reason=ESCAPES + EVIL),
        event("request.dispatched", 61, **other, slot=0, attempt=2),
        event("request.settled", 70, **other, outcome="failed", error=EVIL),
        event("run.ended", 71, state=EVIL, reason=EVIL),
    ]
    return write_run(
        path,
        events,
        epochs=[{EVIL: 1, "x": float("nan")}, {EVIL: 2, "x": "y"}, EVIL],
        state=EVIL,
        reason=EVIL,
        seed={"a": EVIL},
        trace_hash=EVIL,
        command=[EVIL] * 100,
        scenario={"id": EVIL, "file": "../../etc/passwd", "epochs": 10**400},
        agents={EVIL: {"persona": EVIL}},
        backends={EVIL: {"kind": EVIL, "model": EVIL, "slots": 1e308, "facts": {EVIL: [EVIL]}}},
        determinism={"backend": {EVIL: {"verdict": EVIL, "deep": _deep(100)}}},
        configuration={EVIL: _deep(50), "list": [[[[EVIL]]]] * 100},
        actions={EVIL: {"chosen": 3, "refused": {EVIL: 2}, EVIL: 1}},
        versions=[EVIL],
    )


def _deep(levels: int) -> Any:
    return {EVIL: _deep(levels - 1)} if levels else EVIL
