"""The files of a run, byte for byte."""

from __future__ import annotations

import json
import re
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler.errors import ConfigError, RequestFailed
from scheduler.types import Answer, Completion, FinishReason, Message, Outcome, Request, Timings
from swarm_integration.keyless import without_secrets
from swarm_integration.rundir import (
    RunDirectory,
    default_run_dir,
    transcript_lines,
)
from tests.swarm.simulations import json_lines, manifest

KEYS = [
    "agent_id",
    "epoch",
    "finish_reason",
    "kind",
    "ordinal",
    "outcome",
    "prompt_sha256",
    "reask",
    "seed",
    "step",
    "text",
]


def request(agent: str = "llm_1") -> Request:
    return Request(agent, (Message("user", "question-text"),), epoch=1, step=2, ordinal=3)


def answer(text: str, reask: int = 0, **fields: Any) -> Answer:
    outcome = Outcome.INVALID if reask == 0 else Outcome.OK
    return Answer(text, outcome, FinishReason.STOP, seed=40 + reask, reask=reask, **fields)


def completion(*answers: Answer, **fields: Any) -> Completion:
    return Completion(request(), answers, **fields)


def test_transcript_has_a_line_per_question_with_exactly_these_keys(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as directory:
        directory.begin()
        directory.record([completion(answer("first"), answer("é\n", 1))])
    lines = (tmp_path / "run/transcript.jsonl").read_bytes().splitlines()
    digest = request().prompt_sha256
    assert lines[1].decode() == (
        '{"agent_id":"llm_1","epoch":1,"finish_reason":"stop","kind":"act","ordinal":3,'
        f'"outcome":"ok","prompt_sha256":"{digest}","reask":1,"seed":41,"step":2,"text":"é\\n"}}'
    )
    assert [list(json.loads(line)) for line in lines] == [KEYS, KEYS]


def test_failed_request_has_a_line_after_its_answers() -> None:
    error = RequestFailed("failed", 4)
    lines = transcript_lines(completion(answer("first"), error=error))
    assert [line["outcome"] for line in lines] == ["invalid", "failed"]
    assert sorted(lines[1]) == KEYS
    assert (lines[1]["text"], lines[1]["seed"], lines[1]["finish_reason"]) == (None, None, None)
    assert lines[1]["reask"] == 1


def test_transcript_holds_nothing_of_time_slot_or_attempt() -> None:
    fast = completion(answer("x", timings=Timings(1, 2, 3, 4)), slot=0, attempts=1)
    slow = completion(answer("x", timings=Timings(9, 9, 9, 9)), slot=7, attempts=5)
    assert transcript_lines(fast) == transcript_lines(slow)


def test_trace_hash_is_the_files_sha256_at_any_time(tmp_path: Path) -> None:
    path = tmp_path / "run/transcript.jsonl"
    with RunDirectory(tmp_path / "run") as directory:
        directory.begin()
        for number in range(3):
            assert directory.trace_hash == sha256(path.read_bytes()).hexdigest()
            directory.record([completion(answer(f"é {number}"))])
        assert directory.questions == 3
    assert directory.trace_hash == sha256(path.read_bytes()).hexdigest()
    assert path.read_bytes().count(b"\n") == 3


def test_existing_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/kept").write_text("kept", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"run exists already.*--run-dir"):
        RunDirectory(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["kept"]


def test_directory_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="can't be made"):
        RunDirectory(tmp_path / "file/run")


def test_manifest_grows_and_is_never_half_written(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as directory:
        directory.update_manifest(state="starting", seed=1)
        directory.update_manifest(state="running")
        assert manifest(tmp_path / "run") == {"version": 1, "state": "running", "seed": 1}
        with pytest.raises(TypeError):
            directory.update_manifest(state=object())
        assert manifest(tmp_path / "run")["state"] == "running"


def test_log_lines_are_json_bound_to_the_run(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run-7") as directory:
        directory.log.info("step.started", epoch=0, step=1)
    [line] = json_lines(tmp_path / "run-7/inference.jsonl")
    assert (line["event"], line["run"], line["level"]) == ("step.started", "run-7", "info")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", line["timestamp"])


@pytest.mark.parametrize("scenario_id", ["plain", "../../etc/passwd", "", "a b/ü", ".."])
def test_default_directory_is_a_fresh_name_directly_under_runs(scenario_id: str) -> None:
    first, second = default_run_dir(scenario_id, 3), default_run_dir(scenario_id, 3)
    assert first != second
    assert first.parent == Path("runs")
    assert "seed3" in first.name
    assert ".." not in first.parts


@pytest.mark.parametrize(
    "entry",
    [
        "api_key: sk-secret",
        "api_key: 'sk-secret'  # mine",
        "api_key: &k sk-secret",
        "api_key: >-\n        sk-secret",
        "{api_key: sk-secret, model: m}",
    ],
)
def test_no_key_is_left_in_a_scenarios_copy(entry: str) -> None:
    block = f"    llm: {entry}" if entry.startswith("{") else f"    llm:\n      {entry}"
    scenario = f"# why\nscenario_id: s\nagents:\n  - type: llm\n{block}\n"
    copy = without_secrets(scenario)
    assert "sk-secret" not in copy
    assert yaml.safe_load(copy)["scenario_id"] == "s"


@pytest.mark.skipif(sys.platform == "win32", reason="files can't be taken there")
def test_a_directory_has_one_run_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with RunDirectory(path) as directory:
        directory.begin()
        directory.log.info("mine")
        before = (path / "inference.jsonl").read_bytes()
        with pytest.raises(ConfigError, match="in use by another run"):
            RunDirectory(path, resume=True)
        assert (path / "inference.jsonl").read_bytes() == before
    with RunDirectory(path, resume=True):
        pass


@pytest.mark.parametrize(
    "content", ['{"name": "a browser extension"}', '{"version": 1, "identity": {}}', "no JSON"]
)
def test_a_directory_of_something_else_is_left_alone(content: str, tmp_path: Path) -> None:
    path = tmp_path / "there"
    path.mkdir()
    (path / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="exists already"):
        RunDirectory(path)
    assert (path / "manifest.json").read_text(encoding="utf-8") == content
    assert [file.name for file in path.iterdir()] == ["manifest.json"]
