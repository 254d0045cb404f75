"""A replay finds every change of a published run, and says where it is."""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from swarm_integration import commands
from swarm_integration.comparison import METRICS_TOLERANCE
from tests.swarm.simulations import (
    council,
    json_lines,
    llm,
    manifest,
    swarm,
    write_config,
    write_scenario,
)
from tests.wire.scripted_server import CHAT, Reply, ScriptedServer, answer_body, error_body

PUBLISHED = Path(__file__).parent / "published_run"
RUN = Path("the-run")
FAKE = {"kind": "fake"}
ODD = "a\u2028b\u2029c\x85d\x0be\U0001f600"


def replay(directory: Path, *more: str) -> int:
    return commands.main(["replay", str(directory), *more])


def make_run(scenario: Path, **sections: Any) -> None:
    config = write_config(Path("config.yaml"), **{"backend": FAKE, **sections})
    mode = ("--inference-scheduler", "batch", "--run-dir", RUN)
    assert swarm("run", scenario, *mode, "--inference-config", config, "-q") == 0


@pytest.fixture
def published() -> Path:
    """A copy of the committed run."""
    shutil.copytree(PUBLISHED, RUN)
    return RUN


def differs(capsys: pytest.CaptureFixture[str], *says: str) -> None:
    capsys.readouterr()
    assert replay(RUN) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the replay differs: ")
    for text in says:
        assert text in line


def refused(capsys: pytest.CaptureFixture[str], *says: str) -> None:
    capsys.readouterr()
    assert replay(RUN) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 3
    for text in says:
        assert text in err


def change_manifest(change: Callable[[dict[str, Any]], None]) -> None:
    data = manifest(RUN)
    change(data)
    (RUN / "manifest.json").write_text(json.dumps(data), "utf-8")


def change_json(path: Path, change: Callable[[Any], None]) -> None:
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", "utf-8")


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


# --- what passes


def test_the_published_run_passes(capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in PUBLISHED.iterdir()}
    assert replay(PUBLISHED) == 0
    out = capsys.readouterr().out
    lines = json_lines(PUBLISHED / "transcript.jsonl")
    assert f"{len(lines)} questions replayed" in out
    assert manifest(PUBLISHED)["trace_hash"] in out
    assert {path: path.read_bytes() for path in PUBLISHED.iterdir()} == before


def test_failures_are_not_reported_once_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with ScriptedServer() as server:
        refusal = Reply(error_body(400, "no", "invalid_request_error"), status=400)
        server.on(CHAT, refusal)
        backend = {"kind": "llama_server", "base_url": server.base_url}
        path = write_scenario(tmp_path / "s.yaml", [llm(2)])
        make_run(path, backend=backend, scheduler={"on_failure": "noop"})
    caplog.clear()
    logger, level = logging.getLogger("swarm"), logging.WARNING
    logger.setLevel(level)
    assert replay(RUN) == 0
    assert capsys.readouterr().err == ""
    assert caplog.records == []
    assert logger.level == level


def test_the_journal_is_found_where_the_configuration_put_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept" / "answers.db"
    kept.parent.mkdir()
    make_run(write_scenario(tmp_path / "s.yaml", [llm(2)]), journal={"path": str(kept)})
    assert not (RUN / "journal.sqlite3").exists()
    assert replay(RUN) == 0
    moved = kept.rename(tmp_path / "moved.db")
    refused(capsys, str(RUN / "journal.sqlite3"), f"{kept} are missing", "--journal FILE")
    assert replay(RUN, "--journal", str(moved)) == 0
    moved.rename(RUN / "journal.sqlite3")
    assert replay(RUN) == 0
    capsys.readouterr()
    assert replay(RUN, "--journal", str(moved)) == 2
    assert f"{moved} is missing" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["//host/share/j.sqlite3", "\\\\host\\share\\j.sqlite3", 7, None])
def test_a_strangers_manifest_can_not_send_to_a_share(
    path: object, published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_manifest(lambda data: data["configuration"].update(journal={"path": path}))
    (published / "journal.sqlite3").unlink()
    refused(capsys, f"{(published / 'journal.sqlite3').absolute()} is missing")


def test_json(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(published, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "questions": len(json_lines(published / "transcript.jsonl")),
        "trace_hash": manifest(published)["trace_hash"],
        "problem": None,
    }
    flip(published / "transcript.jsonl", 100)
    assert replay(published, "--json") == 1
    assert "line 1" in json.loads(capsys.readouterr().out)["problem"]


def test_a_council_passes_in_either_mode(tmp_path: Path) -> None:
    agents = [llm(2), council(seed=3), {"type": "honest", "count": 2}]
    path = write_scenario(tmp_path / "s.yaml", agents, epochs=2, steps=2)
    make_run(path)
    assert replay(RUN) == 0
    shutil.rmtree(RUN)
    config = write_config(Path("config.yaml"), backend=FAKE, scheduler={"slots": 1})
    mode = ("--inference-scheduler", "serial", "--run-dir", RUN, "--seed", 99, "--epochs", 1)
    assert swarm("run", path, *mode, "--inference-config", config, "-q") == 0
    assert replay(RUN) == 0


def test_a_run_with_memory_passes_after_the_memory_has_gone_on(tmp_path: Path) -> None:
    memory = tmp_path / "memory.json"
    path = write_scenario(
        tmp_path / "s.yaml",
        [llm(2), {"type": "honest", "count": 2}],
        steps=2,
        outputs={"graph_memory_path": str(memory), "event_log": "events.jsonl"},
    )
    make_run(path)
    shutil.rmtree(RUN)
    make_run(path)
    after = memory.read_bytes()
    assert replay(RUN) == 0
    assert memory.read_bytes() == after
    flip(RUN / "graph_memory_at_start.json", 50)
    assert replay(RUN) == 1


def test_odd_line_separators_failures_and_invalid_answers_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_scenario(tmp_path / "s.yaml", [llm(2, max_retries=0)], epochs=2, steps=2)
    odd = json.dumps(
        {"action_type": "POST", "reasoning": ODD, "params": {"content": ODD}}, ensure_ascii=False
    )
    refusal = Reply(error_body(400, f"no {ODD}", "invalid_request_error"), status=400)
    with ScriptedServer() as server:
        answers = [Reply(answer_body(text)) for text in (odd, f"not JSON {ODD}", odd)]
        server.on(CHAT, refusal, *answers)
        backend = {"kind": "llama_server", "base_url": server.base_url}
        make_run(path, backend=backend, scheduler={"on_failure": "noop", "slots": 1})
    transcript = (RUN / "transcript.jsonl").read_text("utf-8")
    assert "\u2028" in transcript
    outcomes = [json.loads(line)["outcome"] for line in transcript.split("\n")[:-1]]
    assert {"ok", "invalid", "failed"} == set(outcomes)
    assert replay(RUN) == 0, capsys.readouterr().err
    assert f"{len(outcomes)} questions replayed" in capsys.readouterr().out


def test_a_resumed_run_passes(tmp_path: Path) -> None:
    path = write_scenario(tmp_path / "s.yaml", [llm(2)], steps=2)
    make_run(path)
    words = ("--inference-config", "config.yaml", "-q", "--resume")
    assert swarm("run", path, "--inference-scheduler", "batch", "--run-dir", RUN, *words) == 0
    assert replay(RUN) == 0


# --- what differs


@pytest.mark.parametrize("share", [0.0, 0.3, 0.55, 0.8, 0.999])
def test_any_byte_of_the_transcript(
    share: float, published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = published / "transcript.jsonl"
    at = int(share * path.stat().st_size)
    number = path.read_bytes()[:at].count(b"\n") + 1
    flip(path, at)
    differs(capsys, f"transcript.jsonl line {number}:")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("text", "something else", "text was 'something else', is '"),
        ("seed", 5, "seed was 5, is 1"),
        ("outcome", "invalid", "outcome was 'invalid', is 'ok'"),
        ("prompt_sha256", "0" * 64, "prompt_sha256 was '000"),
    ],
)
def test_a_field_of_the_transcript_is_named_with_its_question(
    field: str, value: Any, says: str, published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = published / "transcript.jsonl"
    lines = path.read_text("utf-8").split("\n")
    third = {**json.loads(lines[2]), field: value}
    lines[2] = json.dumps(third, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    path.write_text("\n".join(lines), "utf-8", newline="\n")
    name = f"epoch=0 step=1 kind='act' agent_id='{third['agent_id']}' ordinal=0 reask=0"
    differs(capsys, f"transcript.jsonl line 3: {name}: {says}")


@pytest.mark.parametrize("change", ["more", "less", "none"])
def test_lines_too_many_or_too_few(
    change: str, published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = published / "transcript.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    changed = {"more": [*lines, lines[-1]], "less": lines[:-1], "none": []}[change]
    path.write_bytes(b"".join(changed))
    first = min(len(changed), len(lines) - (change == "less")) + 1
    differs(capsys, f"transcript.jsonl line {first}:")


def test_an_answer_changed_in_journal_and_checksum_is_found(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever changes an answer and its checksum still meets the transcript."""
    with sqlite3.connect(published / "journal.sqlite3") as connection:
        rows = connection.execute("SELECT key, record FROM answers").fetchall()
        for key, record in rows:
            changed = json.dumps({**json.loads(record), "text": "{}"}, sort_keys=True)
            digest = sha256(f"{key}\n{changed}".encode()).hexdigest()
            connection.execute(
                "UPDATE answers SET record = ?, sha256 = ? WHERE key = ?", (changed, digest, key)
            )
    connection.close()
    differs(capsys, "transcript.jsonl line 1:", "text was", "is '{}'")


def test_a_byte_of_an_answer_in_the_journal(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = published / "journal.sqlite3"
    flip(path, path.read_bytes().index(b'"outcome": "ok"') + 3)
    differs(capsys, f"journal {published / 'journal.sqlite3'} is damaged: the answer to llm_")


def test_an_answer_that_is_missing(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(published / "journal.sqlite3") as connection:
        connection.execute("DELETE FROM answers WHERE label LIKE 'llm_2 act%step 1%'")
    connection.close()
    differs(capsys, "transcript.jsonl line", "agent_id='llm_", "the journal has no answer to")


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("scenario.yaml", "scenario.yaml is not the file"),
        ("configuration.yaml", "configuration.yaml is not the file"),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_any_byte_of_what_the_run_began_with(
    file: str, says: str, share: float, published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(published / file, int(share * (published / file).stat().st_size))
    differs(capsys, says)


def test_the_trace_hash_of_the_manifest(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_manifest(lambda data: data.update(trace_hash="0" * 64))
    differs(capsys, "manifest.json: trace_hash is not the sha256 of transcript.jsonl")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["identity"].update(seed=1),
        lambda data: data["identity"]["agents"]["llm_1"].update(base_seed=1),
        lambda data: data["identity"]["agents"]["llm_1"]["sampling"].update(top_k=1),
        lambda data: data["backends"]["default"].update(model="other"),
        lambda data: data.update(mode="serial"),
    ],
    ids=["seed", "base seed", "sampling", "model", "mode"],
)
def test_what_the_manifest_says_of_the_run(
    change: Callable[[dict[str, Any]], None],
    published: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change_manifest(change)
    differs(capsys, "transcript.jsonl line ")


def test_a_metric(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(epochs: Any) -> None:
        epochs[1]["avg_payoff"] += 0.25

    change_json(published / "metrics.json", change)
    differs(capsys, "metrics.json: epoch[1].avg_payoff was")


def test_an_epoch_too_few(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_json(published / "metrics.json", list.pop)
    differs(capsys, "metrics.json: epoch was")


def test_metrics_that_are_no_json(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (published / "metrics.json").write_bytes(b"[")
    differs(capsys, "metrics.json is not JSON")


def _move(factor: float) -> Callable[[Any], None]:
    def change(epochs: Any) -> None:
        epochs[0]["avg_payoff"] *= 1.0 + factor

    return change


@pytest.mark.parametrize(
    ("elsewhere", "factor", "code"),
    [
        (False, METRICS_TOLERANCE / 10, 1),
        (True, METRICS_TOLERANCE / 10, 0),
        (True, METRICS_TOLERANCE * 10, 1),
    ],
)
def test_metrics_are_exact_here_and_within_a_tolerance_elsewhere(
    elsewhere: bool, factor: float, code: int, tmp_path: Path
) -> None:
    make_run(Path(__file__).parent / "reproducible/feed_votes_and_proposals.yaml")
    change_json(RUN / "metrics.json", _move(factor))
    if elsewhere:
        change_manifest(lambda data: data["platform"].update(machine="another"))
    assert replay(RUN) == code


def test_another_python_is_another_platform() -> None:
    make_run(Path(__file__).parent / "reproducible/feed_votes_and_proposals.yaml")
    change_json(RUN / "metrics.json", _move(METRICS_TOLERANCE / 10))
    change_manifest(lambda data: data["identity"]["versions"].update(python="3.99"))
    assert replay(RUN) == 0


# --- what is refused


@pytest.mark.parametrize("state", ["running", "aborted", "interrupted", "failed", "starting"])
def test_an_incomplete_run(state: str, published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_manifest(lambda data: data.update(state=state))
    refused(capsys, "again with --resume --run-dir the-run")


@pytest.mark.parametrize(
    ("package", "version"), [("swarm-safety", "0.0.1"), ("swarm-inference-scheduler", "0.0.1")]
)
def test_another_version(
    package: str, version: str, published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_manifest(lambda data: data["identity"]["versions"].update({package: version}))
    refused(capsys, "made with other software", f"versions.{package} was '0.0.1'")


def test_another_format(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_manifest(lambda data: data.update(version=99))
    refused(capsys, "is no manifest of version 1")


def test_other_repairs(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_manifest(lambda data: data["identity"]["repairs"].pop())
    refused(capsys, "made with other software", "repairs was")


def test_a_journal_of_another_version(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(published / "journal.sqlite3") as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    refused(capsys, "has version 9, this release writes 1")


@pytest.mark.parametrize(
    "file",
    ["scenario.yaml", "configuration.yaml", "transcript.jsonl", "metrics.json", "journal.sqlite3"],
)
def test_a_missing_file(file: str, published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (published / file).unlink()
    refused(capsys, f"{file} is missing")


@pytest.mark.parametrize("key", ["identity", "mode", "backends", "served_by", "copies"])
@pytest.mark.parametrize("value", [None, 7])
def test_a_manifest_without_what_is_needed(
    key: str, value: Any, published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_manifest(lambda data: data.update({key: value}))
    refused(capsys, "manifest.json does not say", key)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff"])
def test_a_directory_that_is_no_run(
    content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        RUN.mkdir()
        (RUN / "manifest.json").write_bytes(content)
    refused(capsys, "manifest")
