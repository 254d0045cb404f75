"""A run as a trace file that Perfetto and chrome://tracing open. Pure.

The format is the JSON object of Chrome's trace events ("Trace Event Format", Google):
complete events (`X`) on one thread a slot, counters (`C`) for queue and slots,
instants (`i`) for errors. Times are microseconds from the start of the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from swarm_integration.report.records import Depth, RunRecord, Try
from swarm_integration.report.statistics import depth_steps, phases_of
from swarm_integration.report.summary import tracks_of


def trace_of(runs: Sequence[RunRecord]) -> str:
    """Return the trace of the runs, a group of processes each."""
    events: list[dict[str, Any]] = []
    pid = 1  # 0 is the idle process to Perfetto
    for run in runs:
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        found, pid = _run_events(run, prefix, pid)
        events += found
    data = {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"runs": [run.name for run in runs], "began": [r.log.began for r in runs]},
    }
    return json.dumps(data, ensure_ascii=True, separators=(",", ":")) + "\n"


def _run_events(run: RunRecord, prefix: str, pid: int) -> tuple[list[dict[str, Any]], int]:
    """Return a run's events and the first process number after it."""
    events = [_meta("process_name", pid, 0, f"{prefix}simulation"), *_simulation(run, pid)]
    tracks = tracks_of(run)
    for backend in dict.fromkeys(backend for backend, _ in tracks):
        pid += 1
        events.append(_meta("process_name", pid, 0, f"{prefix}backend {backend}"))
        tries = []
        for (name, slot), found in tracks.items():
            if name != backend:
                continue
            tries += found
            tid = _thread(pid, slot)
            events.append(_meta("thread_name", pid, tid, f"slot {slot}"))
            events.append(
                {
                    "name": "thread_sort_index",
                    "ph": "M",
                    "pid": pid,
                    "tid": tid,
                    "args": {"sort_index": slot},
                }
            )
            for one in found:
                events += _try_events(one, pid, tid)
        events += _counters("queue", "waiting", depth_steps(run.log.depths, backend), pid)
        events += _counters("slots", "busy", depth_steps(_busy(tries)), pid)
    return events, pid + 1


def _thread(pid: int, number: int) -> int:
    """Return a thread's number: its own in the whole trace, and never its process's."""
    return 10_000 * pid + number


def _meta(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _microseconds(ms: float) -> float:
    return round(ms * 1000.0, 3)


def _simulation(run: RunRecord, pid: int) -> Iterator[dict[str, Any]]:
    ends = [*(stage.at_ms for stage in run.log.stages), run.log.duration_ms]
    for stage, (start, end) in zip(run.log.stages, pairwise(ends), strict=True):
        name = f"epoch {stage.epoch}, step {stage.step}"
        yield _complete(name, "step", pid, _thread(pid, 0), start, end, {})
    yield _meta("thread_name", pid, _thread(pid, 0), "steps")
    yield _meta("thread_name", pid, _thread(pid, 1), "errors")
    for trouble in run.log.troubles:
        yield {
            "name": trouble.what,
            "cat": "error",
            "ph": "i",
            "s": "t",
            "pid": pid,
            "tid": _thread(pid, 1),
            "ts": _microseconds(trouble.at_ms),
            "args": {"request": trouble.who, "error": trouble.error},
        }


def _complete(
    name: str, category: str, pid: int, tid: int, start: float, end: float, args: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "ts": _microseconds(start),
        "dur": max(0.0, _microseconds(end - start)),
        "args": args,
    }


def _try_events(one: Try, pid: int, tid: int) -> Iterator[dict[str, Any]]:
    args = {
        "epoch": one.key.epoch,
        "step": one.key.step,
        "ordinal": one.key.ordinal,
        "attempt": one.number,
        "reask": one.reask,
        "end": one.end.value,
        "queue_ms": round(max(0.0, one.start_ms - one.queued_ms), 3) if one.number == 1 else 0.0,
        "prompt_tokens": one.prompt_tokens,
        "cached_tokens": one.cached_tokens,
        "completion_tokens": one.completion_tokens,
    }
    if one.error:
        args["error"] = one.error
    name = f"{one.key.agent_id} {one.key.kind}"
    yield _complete(name, "request", pid, tid, one.start_ms, one.end_ms, args)
    for phase, start, end in phases_of(one):
        if phase in {"prefill", "decode"}:
            yield _complete(phase, "phase", pid, tid, start, end, {})


def _busy(tries: Sequence[Try]) -> list[Depth]:
    changes = [Depth(one.start_ms, "", 1) for one in tries]
    return changes + [Depth(one.end_ms, "", -1) for one in tries]


def _counters(
    name: str, series: str, steps: Sequence[tuple[float, int]], pid: int
) -> Iterator[dict[str, Any]]:
    for at_ms, value in steps:
        yield {
            "name": name,
            "ph": "C",
            "pid": pid,
            "tid": 0,
            "ts": _microseconds(at_ms),
            "args": {series: value},
        }
