"""Run directories, whole, damaged and hostile."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest

from scheduler.errors import ConfigError
from swarm_integration.report.actions import actions_of
from swarm_integration.report.facts import verdict_of
from swarm_integration.report.plain import number, text
from swarm_integration.report.reading import read_run
from swarm_integration.report.summary import summarise
from tests.report.hostile import hostile_run
from tests.report.logs import ANN, BOB, event, in_time, run_of, served, started, write_run


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "has no file manifest.json"),
        ("not json", "can't be read"),
        ("[]", "no manifest of version 1"),
        ('{"version": 99}', "no manifest of version 1"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_a_directory_without_a_manifest_is_no_run(
    tmp_path: Path, content: str | None, says: str
) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        read_run(tmp_path)


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(ConfigError, match="is no directory"):
        read_run(tmp_path / "x")


def test_a_manifest_alone_is_a_run_with_notes_on_what_is_missing(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r", state="starting"))
    assert [note.split()[0] for note in run.missing] == [
        "inference.jsonl",
        "metrics.json",
        "transcript.jsonl",
    ]
    assert summarise(run).requests == 0


def test_links_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('[{"leak": 1}]', encoding="utf-8")
    run = write_run(tmp_path / "r")
    (run / "metrics.json").symlink_to(secret)
    found = read_run(run)
    assert found.epochs == ()
    assert "metrics.json is a link and was not followed" in found.missing
    (run / "manifest.json").rename(tmp_path / "moved")
    (run / "manifest.json").symlink_to(tmp_path / "moved")
    with pytest.raises(ConfigError, match="there is no run"):
        read_run(run)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r")
    os.mkfifo(run / "inference.jsonl")
    assert "inference.jsonl is not there" in read_run(run).missing


def test_a_half_written_line_is_noted_and_the_rest_is_read(tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", [started(), *served(ANN, 0, 1, 2), b'{"event": "requ'])
    assert len(run.log.tries) == 1
    assert any("1 unreadable line," in note for note in run.missing)


def test_a_transcript_is_checked_against_the_trace_hash(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", trace_hash=sha256(b"line\n").hexdigest())
    (path / "transcript.jsonl").write_bytes(b"line\n")
    assert verdict_of(read_run(path)).sound is True
    (path / "transcript.jsonl").write_bytes(b"other\n")
    assert verdict_of(read_run(path)).sound is False
    (path / "transcript.jsonl").unlink()
    assert verdict_of(read_run(path)).sound is None


@pytest.mark.parametrize(
    ("backend", "level"),
    [
        ("not certified", "not certified"),
        ({"default": "invariant"}, "invariant"),
        (
            {"a": {"verdict": "invariant", "trials": 3}, "b": {"level": "ordered"}},
            "invariant, ordered",
        ),
        (None, "not said"),
    ],
)
def test_the_backends_level_is_found_however_it_is_told(
    tmp_path: Path, backend: object, level: str
) -> None:
    run = read_run(write_run(tmp_path / "r", determinism={"backend": backend}))
    assert verdict_of(run).backend == level


def test_actions_are_counted_with_their_reasons() -> None:
    vote = {"chosen": 5, "valid": 5, "executed": 2, "refused": {"no such post": 2, "limit": 1}}
    counts = {"VOTE": vote, "NOOP": {"chosen": 1, "lost": {}}}
    section = {"full_ids": True, "by_action": counts, "ids": {"mapped": 3}, "share": None}
    found = actions_of({"actions": section})
    assert found is not None
    assert found.columns == ("chosen", "valid", "executed", "refused", "lost")
    assert (found.rows["VOTE"]["refused"], found.total("chosen")) == (3, 6)
    assert found.reasons[0] == ("VOTE", "refused", "no such post", 2)
    assert found.facts == (("full_ids", "yes"), ("ids.mapped", "3"), ("share", "none"))
    assert actions_of({}) is None


def test_requests_are_grouped_by_agent_persona_kind_and_backend(tmp_path: Path) -> None:
    accept = served({**BOB, "kind": "accept", "backend": "c"}, 30, 30, 40)
    events = in_time(started(), *served(ANN, 0, 4, 10), *served(BOB, 0, 12, 30), *accept)
    agents = {"ann": {"persona": "honest"}, "bob": {"persona": "open"}}
    summary = summarise(run_of(tmp_path / "r", events, agents=agents))
    by = {way: {row.name: row.requests for row in rows} for way, rows in summary.groups.items()}
    assert by["agent"] == {"ann": 1, "bob": 2}
    assert by["persona"] == {"honest": 1, "open": 2}
    assert by["kind"] == {"accept": 1, "act": 2}
    assert by["backend"] == {"b": 2, "c": 1}
    [ann] = [row for row in summary.groups["agent"] if row.name == "ann"]
    assert ann.queue is not None
    assert ann.service is not None
    assert (ann.queue.p50, ann.service.p50, ann.cached_tokens) == (4.0, 6.0, 40)
    assert summary.written_per_s == 24 / 0.040
    busy = {(slot.backend, slot.slot): slot.busy for slot in summary.slots}
    assert busy == {("b", 0): 24 / 40, ("b", 1): 0.0, ("c", 0): 10 / 40}


def test_errors_that_read_the_same_are_counted_once(tmp_path: Path) -> None:
    events = [started()]
    for step, who in enumerate((ANN, BOB)):
        error = f"{who['agent_id']} act (epoch 0, step {step}) failed after 1 attempt: no"
        events += [
            event("request.dispatched", 1, **who, slot=0),
            event("request.settled", 2, **who, outcome="failed", error=error),
        ]
    [row] = summarise(run_of(tmp_path / "r", events)).troubles
    assert (row.times, row.error) == (2, "failed after 1 attempt: no")


def test_a_hostile_directory_is_read(tmp_path: Path) -> None:
    summary = summarise(read_run(hostile_run(tmp_path / "r")))
    assert summary.requests == 2
    assert len(summary.slots) <= 2 * 4097


def test_texts_are_cleaned_of_control_and_directional_characters() -> None:
    assert text("a\x1b[31mb\u202ec\ud800\n d") == "a\ufffd[31mb\ufffdc\ufffd d"
    assert text("x" * 500, limit=10) == "x" * 9 + "…"
    assert text([1]) == ""
    assert text(10**5000) == "not a number"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, "1", True, None, [1]])
def test_what_is_no_usable_number_is_none(value: object) -> None:
    assert number(value) is None
