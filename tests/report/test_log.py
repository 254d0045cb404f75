"""Logs, whole, resumed and broken, become tries and requests."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_integration.report.log import parse_log
from swarm_integration.report.records import End, Key
from tests.report.logs import ANN, BOB, answered, event, log_of, served, started


def test_an_answered_request_has_its_times_and_tokens() -> None:
    log = log_of(started(100.0), *served(ANN, 110, 130, 230, slot=1, prefill_ms=30, decode_ms=60))
    [one] = log.tries
    assert (one.key, one.backend, one.slot) == (Key("ann", 0, 0, "act", 0), "b", 1)
    assert (one.queued_ms, one.start_ms, one.end_ms) == (10.0, 30.0, 130.0)
    assert (one.prefill_ms, one.decode_ms, one.end) == (30.0, 60.0, End.ANSWERED)
    assert (one.prompt_tokens, one.cached_tokens, one.completion_tokens) == (100, 40, 8)
    [asked] = log.asked.values()
    assert (asked.queue_ms, asked.total_ms, asked.outcome) == (20.0, 120.0, "ok")
    assert (log.duration_ms, log.slots, log.troubles) == (130.0, {"b": 2}, [])


def test_time_to_store_an_answer_is_not_service_time() -> None:
    log = log_of(
        started(),
        event("request.queued", 0, **ANN),
        event("request.dispatched", 10, **ANN, slot=0, attempt=1),
        answered(ANN, 60, 40.0),
    )
    assert log.tries[0].end_ms == 50.0


def test_a_retry_is_two_tries_and_one_trouble() -> None:
    log = log_of(
        started(),
        event("request.queued", 0, **ANN),
        event("request.dispatched", 1, **ANN, slot=0, attempt=1),
        event("request.retried", 5, **ANN, error="ServerFault", reason="500"),
        event("request.dispatched", 9, **ANN, slot=1, attempt=2),
        answered(ANN, 19, 10.0, queue_ms=1.0),
        event("request.settled", 19, **ANN, outcome="ok"),
    )
    assert [(one.end, one.slot, one.number) for one in log.tries] == [
        (End.RETRIED, 0, 1),
        (End.ANSWERED, 1, 2),
    ]
    assert [(one.what, one.error) for one in log.troubles] == [("retried", "ServerFault: 500")]
    assert log.asked[log.tries[0].key].queue_ms == 1.0


def test_a_failure_ends_its_try_and_names_its_error() -> None:
    log = log_of(
        started(),
        event("request.queued", 0, **ANN),
        event("request.dispatched", 1, **ANN, slot=0, attempt=1),
        event("request.settled", 4, **ANN, outcome="failed", error="no"),
        event("run.ended", 5, state="aborted", reason="why"),
    )
    assert (log.tries[0].end, log.tries[0].end_ms) == (End.FAILED, 4.0)
    assert [(one.what, one.error) for one in log.troubles] == [("failed", "no"), ("run", "why")]


def test_the_queue_grows_and_shrinks_with_its_requests() -> None:
    log = log_of(
        started(),
        event("request.queued", 1, **ANN),
        event("request.queued", 2, **BOB),
        event("request.dispatched", 3, **ANN, slot=0, attempt=1),
        event("request.withdrawn", 4, **BOB),
    )
    assert [(one.at_ms, one.change) for one in log.depths] == [(1, 1), (2, 1), (3, -1), (4, -1)]


def test_a_resumed_run_goes_on_where_the_first_part_ended() -> None:
    log = log_of(
        started(300.0),
        event("request.queued", 310, **ANN),
        event("request.dispatched", 320, **ANN, slot=0, attempt=1),
        b'{"event": "request.answ',
        started(900.0),
        event("request.recalled", 910, **BOB),
        event("request.settled", 910, **BOB, outcome="ok", total_ms=0.0),
        *served(ANN, 911, 920, 950),
    )
    assert log.parts_ms == [0.0, 20.0]
    assert [(one.end, one.start_ms, one.end_ms) for one in log.tries] == [
        (End.STOPPED, 20.0, 20.0),
        (End.ANSWERED, 40.0, 70.0),
    ]
    assert (log.recalled, log.unreadable, len(log.asked)) == (1, 1, 2)
    assert {one.outcome for one in log.asked.values()} == {"ok"}


def test_a_clock_that_starts_again_begins_a_part_without_an_event() -> None:
    log = log_of(event("server.started", 50), event("server.started", 90), event("x.y", 10))
    assert log.duration_ms == 40.0


def test_a_log_without_elapsed_times_is_read_by_its_timestamps() -> None:
    lines: list[dict[str, Any]] = [
        {"event": "run.started", "timestamp": "2026-01-01T00:00:00Z"},
        {**ANN, "event": "request.queued", "timestamp": "2026-01-01T00:00:01Z"},
        {**ANN, "event": "request.dispatched", "timestamp": "2026-01-01T00:00:01.5Z", "slot": 0},
    ]
    log = log_of(*lines)
    assert (log.tries[0].queued_ms, log.tries[0].start_ms) == (1000.0, 1500.0)
    assert log.asked[log.tries[0].key].queue_ms == 500.0


def test_lines_that_are_no_events_are_counted() -> None:
    deep = b"[" * 100_000
    log = log_of(b"\n", b"not json\n", b"[1]\n", b'{"event": 7}\n', deep, b"\xff\xfe\n", started())
    assert log.unreadable == 5
    assert log.parts_ms == [0.0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
WORDS = ("queued", "dispatched", "retried", "answered", "settled", "withdrawn", "recalled")
names = st.sampled_from(
    ["run.started", "step.started", "run.ended", *(f"request.{word}" for word in WORDS)]
)
NAMES = ("agent_id", "epoch", "slot", "attempt", "outcome", "error", "slots", "timestamp")
NUMBERS = ("elapsed", "queue", "service", "prefill", "decode")
TOKENS = ("prompt_tokens", "cached_tokens")
fields = st.sampled_from([*NAMES, *(f"{one}_ms" for one in NUMBERS), *TOKENS])


@given(st.lists(st.tuples(names, st.dictionaries(fields, json_values)), max_size=8))
def test_whatever_the_fields_hold_a_log_is_read(
    events: list[tuple[str, dict[str, object]]],
) -> None:
    lines = [json.dumps({**found, "event": name}).encode() for name, found in events]
    log = parse_log(lines)
    assert log.unreadable == 0
    for one in log.tries:
        assert 0 <= one.start_ms <= one.end_ms <= log.duration_ms + 1
        assert 0 <= one.cached_tokens <= one.prompt_tokens
    assert sum(one.change for one in log.depths) == 0


@pytest.mark.parametrize("slot", [-1, 10**9, "x", None])
def test_a_slot_is_a_small_number(slot: object) -> None:
    log = log_of(started(), event("request.dispatched", 1, **ANN, slot=slot))
    assert 0 <= log.tries[0].slot < 5000
