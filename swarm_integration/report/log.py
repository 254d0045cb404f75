"""From the lines of `inference.jsonl` to tries, requests and troubles.

A log is appended to when a run is resumed: each `run.started` begins another part,
and parts are laid one behind the other on one time axis. What a killed process left
unfinished is closed where its part ends. Lines that are no event are counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from swarm_integration.report.plain import (
    LARGEST,
    TEXT_CHARS,
    amount,
    count,
    mapping,
    number,
    text,
    wall_ms,
)
from swarm_integration.report.records import Asked, Depth, End, Key, Log, Stage, Trouble, Try

_MOST_SLOT = 4095


def parse_log(lines: Iterable[bytes]) -> Log:
    """Return what the lines of a log tell; what can't be read is counted and left out."""
    reader = _Reader()
    for line in lines:
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            reader.take(event)
        else:
            reader.log.unreadable += 1
    return reader.finish()


class _Clock:
    """Places events on one axis that never goes back."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self._offset_ms = 0.0
        self._base: tuple[float | None, float | None] | None = None
        self._last_elapsed: float | None = None

    def begin_part(self) -> None:
        self._base = None
        self._last_elapsed = None
        self._offset_ms = self.now_ms

    def read(self, event: Mapping[str, Any]) -> float:
        elapsed, wall = number(event.get("elapsed_ms")), wall_ms(event.get("timestamp"))
        if elapsed is not None and elapsed < (self._last_elapsed or 0.0):
            self.begin_part()
        self._last_elapsed = elapsed if elapsed is not None else self._last_elapsed
        if self._base is None:
            self._base = (elapsed, wall)
        since = _since(elapsed, self._base[0])
        if since is None:
            since = _since(wall, self._base[1])
        if since is not None:
            self.now_ms = max(self.now_ms, min(self._offset_ms + since, LARGEST))
        return self.now_ms


def _since(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


class _Reader:
    def __init__(self) -> None:
        self.log = Log()
        self._clock = _Clock()
        self._queued: dict[Key, float] = {}
        self._waiting: dict[Key, str] = {}
        self._running: dict[Key, Try] = {}
        self._numbers: dict[Key, int] = {}
        self._handlers: Mapping[str, Callable[[Mapping[str, Any], float], None]] = {
            "run.started": self._run_started,
            "run.aborted": self._run_ended,
            "run.ended": self._run_ended,
            "step.started": self._step_started,
            "request.queued": self._on_queued,
            "request.recalled": self._on_recalled,
            "request.dispatched": self._on_dispatched,
            "request.retried": self._on_retried,
            "request.answered": self._on_answered,
            "request.settled": self._on_settled,
            "request.withdrawn": self._on_withdrawn,
        }

    def take(self, event: Mapping[str, Any]) -> None:
        name = event["event"]
        if name == "run.started":
            self._close_part()
            self._clock.begin_part()
        at_ms = self._clock.read(event)
        if not self.log.began:
            self.log.began = text(event.get("timestamp"))
        handler = self._handlers.get(name)
        if handler is not None:
            handler(event, at_ms)

    def finish(self) -> Log:
        self._close_part()
        self.log.duration_ms = self._clock.now_ms
        return self.log

    def _close_part(self) -> None:
        """End what is under way where the part ends."""
        now = self._clock.now_ms
        for one in self._running.values():
            one.end_ms = max(now, one.start_ms)
            one.error = "the log ends here"
        for key in self._waiting:
            self.log.depths.append(Depth(now, self._waiting[key], -1))
        for state in (self._running, self._waiting, self._queued, self._numbers):
            state.clear()

    def _run_started(self, event: Mapping[str, Any], at_ms: float) -> None:
        self.log.parts_ms.append(at_ms)
        for backend, slots in mapping(event.get("slots")).items():
            self.log.slots[text(backend)] = min(count(slots), _MOST_SLOT + 1)

    def _run_ended(self, event: Mapping[str, Any], at_ms: float) -> None:
        reason = text(event.get("reason"), limit=TEXT_CHARS)
        troubles = self.log.troubles
        told = any(one.what == "run" and one.error == reason for one in troubles[-2:])
        if reason and not told:
            troubles.append(Trouble(at_ms, "run", "the run", reason))

    def _step_started(self, event: Mapping[str, Any], at_ms: float) -> None:
        stage = Stage(at_ms, count(event.get("epoch")), count(event.get("step")))
        self.log.stages.append(stage)

    def _asked(self, event: Mapping[str, Any]) -> Asked:
        key = _key(event)
        asked = self.log.asked.get(key)
        if asked is None:
            asked = self.log.asked[key] = Asked(key, _backend(event))
        return asked

    def _on_queued(self, event: Mapping[str, Any], at_ms: float) -> None:
        asked = self._asked(event)
        asked.outcome, asked.recalled = "open", False
        self._queued[asked.key] = at_ms
        if asked.key not in self._waiting:
            self._waiting[asked.key] = asked.backend
            self.log.depths.append(Depth(at_ms, asked.backend, 1))

    def _on_recalled(self, event: Mapping[str, Any], at_ms: float) -> None:  # noqa: ARG002  # a handler's shape
        self._asked(event).recalled = True
        self.log.recalled += 1

    def _leave_queue(self, key: Key, at_ms: float) -> None:
        backend = self._waiting.pop(key, None)
        if backend is not None:
            self.log.depths.append(Depth(at_ms, backend, -1))

    def _on_dispatched(self, event: Mapping[str, Any], at_ms: float) -> None:
        asked = self._asked(event)
        key = asked.key
        self._end_try(key, at_ms, End.STOPPED, "")
        queued = self._queued.get(key, at_ms)
        if key not in self._numbers:
            asked.queue_ms = at_ms - queued
        self._leave_queue(key, at_ms)
        self._numbers[key] = count(event.get("attempt")) or self._numbers.get(key, 0) + 1
        slot = min(count(event.get("slot")), _MOST_SLOT)
        one = Try(key, asked.backend, slot, self._numbers[key], at_ms, at_ms, queued)
        asked.attempts += 1
        self._running[key] = one
        self.log.tries.append(one)

    def _end_try(self, key: Key, at_ms: float, end: End, error: str) -> Try | None:
        one = self._running.pop(key, None)
        if one is not None:
            one.end_ms, one.end, one.error = at_ms, end, error
        return one

    def _on_retried(self, event: Mapping[str, Any], at_ms: float) -> None:
        key = _key(event)
        error = _error(event.get("error"), event.get("reason"))
        self._end_try(key, at_ms, End.RETRIED, error)
        self.log.troubles.append(Trouble(at_ms, "retried", key.label, error))

    def _on_answered(self, event: Mapping[str, Any], at_ms: float) -> None:
        asked = self._asked(event)
        valid = event.get("outcome") == "ok"
        violation = "" if valid else _error("invalid answer", event.get("violation"))
        one = self._end_try(asked.key, at_ms, End.ANSWERED if valid else End.INVALID, violation)
        if violation:
            self.log.troubles.append(Trouble(at_ms, "invalid", asked.key.label, violation))
        queue_ms = number(event.get("queue_ms"))
        if queue_ms is not None and count(event.get("reask")) == 0:
            asked.queue_ms = max(0.0, queue_ms)
        if one is None:
            return
        service_ms = number(event.get("service_ms"))
        if service_ms is not None:  # what follows in the log is the time to store the answer
            one.end_ms = one.start_ms + min(max(0.0, service_ms), at_ms - one.start_ms + 1.0)
        one.prefill_ms, one.decode_ms = _phase(event, "prefill_ms"), _phase(event, "decode_ms")
        one.prompt_tokens = count(event.get("prompt_tokens"))
        one.cached_tokens = min(count(event.get("cached_tokens")), one.prompt_tokens)
        one.completion_tokens = count(event.get("completion_tokens"))
        one.reask = count(event.get("reask"))

    def _on_settled(self, event: Mapping[str, Any], at_ms: float) -> None:
        asked = self._asked(event)
        outcome = text(event.get("outcome"))
        asked.outcome = outcome if outcome in {"ok", "invalid", "failed"} else "open"
        asked.reasks = max(asked.reasks, count(event.get("reasks")))
        if not asked.recalled:
            asked.total_ms = number(event.get("total_ms"))
        asked.error = text(event.get("error"), limit=TEXT_CHARS)
        if asked.outcome == "failed":
            self._end_try(asked.key, at_ms, End.FAILED, asked.error)
            self.log.troubles.append(Trouble(at_ms, "failed", asked.key.label, asked.error))
        self._leave_queue(asked.key, at_ms)

    def _on_withdrawn(self, event: Mapping[str, Any], at_ms: float) -> None:
        asked = self._asked(event)
        asked.outcome = "withdrawn"
        self._end_try(asked.key, at_ms, End.STOPPED, "withdrawn")
        self._leave_queue(asked.key, at_ms)


def _key(event: Mapping[str, Any]) -> Key:
    return Key(
        text(event.get("agent_id"), "unnamed"),
        count(event.get("epoch")),
        count(event.get("step")),
        text(event.get("kind"), "unnamed"),
        count(event.get("ordinal")),
    )


def _backend(event: Mapping[str, Any]) -> str:
    return text(event.get("backend"), "default")


def _error(name: object, reason: object) -> str:
    parts = [text(name), text(reason, limit=TEXT_CHARS)]
    return ": ".join(part for part in parts if part)


def _phase(event: Mapping[str, Any], name: str) -> float | None:
    return None if number(event.get(name)) is None else amount(event.get(name))
