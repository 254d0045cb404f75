"""A run that was stopped anywhere goes on as if it had not been, or says why it can't."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.swarm.children import Child
from tests.swarm.simulations import (
    POST,
    council,
    json_lines,
    llm,
    manifest,
    swarm,
    write_config,
    write_scenario,
)
from tests.wire.scripted_server import (
    CHAT,
    PROPS,
    Reply,
    ScriptedServer,
    answer_body,
    error_body,
    props_body,
)

ROUNDS = 4
RUN = Path("the-run")
FRESH = Path("fresh")
SLOW = {"kind": "fake", "fake": {"slots": 3, "latency_s": 0.03}}
FAKE = {"kind": "fake"}
MODE = ("--inference-scheduler", "batch")


def command(run: Path, config: Path, *more: object, scenario: str = "s.yaml") -> list[object]:
    return ["run", scenario, *MODE, "--run-dir", run, "--inference-config", config, "-q", *more]


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    agents = [llm(3, persona="honest"), council(), {"type": "honest", "count": 2}]
    return write_scenario(tmp_path / "s.yaml", agents, epochs=2, steps=2)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path / "config.yaml", backend=FAKE)


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    return write_config(tmp_path / "slow.yaml", backend=SLOW)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        scripted.on(CHAT, Reply(answer_body(POST)))
        yield scripted


def events(run: Path) -> list[dict[str, Any]]:
    """The log's events, without a line that a kill may have torn."""
    lines = (run / "inference.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def name(event: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(event[key] for key in ("epoch", "step", "kind", "agent_id", "ordinal"))


def check_nothing_was_asked_twice(run: Path) -> None:
    """No question is answered twice, and none is dispatched after its answer was stored."""
    answered: Counter[tuple[Any, ...]] = Counter()
    settled: set[tuple[Any, ...]] = set()
    for event in events(run):
        if event["event"] == "request.answered":
            answered[*name(event), event["reask"]] += 1
            if event["outcome"] == "ok":
                settled.add(name(event))
        if event["event"] == "request.dispatched":
            assert name(event) not in settled, event
    assert max(answered.values()) == 1


def check_is_like(run: Path, whole: Path) -> None:
    """All that a run leaves and that does not tell of time is as in an uninterrupted one."""
    assert manifest(run)["state"] == "completed"
    assert manifest(run)["trace_hash"] == manifest(whole)["trace_hash"]
    names = ["transcript.jsonl", "metrics.json", "scenario.yaml"]
    outputs = ("event_log.jsonl", "prompt_audit.jsonl", "graph_memory.json")
    names += [name for name in outputs if (whole / name).exists()]
    for one in names:
        assert (run / one).read_bytes() == (whole / one).read_bytes(), one


# --- stopped and resumed


@pytest.mark.skipif(sys.platform == "win32", reason="files can't be taken there")
@pytest.mark.usefixtures("scenario")
def test_a_run_under_way_can_not_be_resumed_by_another_process(config: Path, slow: Path) -> None:
    assert swarm(*command(FRESH, config)) == 0
    first = Child(*command(RUN, slow))
    assert first.wait_for(RUN.absolute(), "request.answered", 2)
    second = Child(*command(RUN, slow, "--resume"))
    assert second.wait() == 2
    assert "the-run is in use by another run" in second.text()
    assert first.wait() == 0
    check_is_like(RUN, FRESH)
    check_nothing_was_asked_twice(RUN)


@pytest.mark.skipif(sys.platform == "win32", reason="a kill can't be aimed there")
def test_killed_anywhere_and_resumed_is_the_uninterrupted_run(
    scenario: Path, config: Path, slow: Path
) -> None:
    assert swarm(*command(FRESH, config)) == 0
    questions = manifest(FRESH)["transcript_lines"]
    assert questions > 20
    seed = random.randrange(10**6)
    print(f"seed of the rounds: {seed}")

    def one_round(number: int) -> None:
        draw = random.Random(seed + number)
        run = Path(f"run-{number}").absolute()
        kills = 0
        for _ in range(2):
            after = draw.randint(0, questions // 2)
            child = Child(*command(run, slow, *(["--resume"] if run.exists() else [])))
            kills += child.wait_for(run, "request.answered", after)
            time.sleep(0.01 * draw.random())
            child.kill()
        assert kills
        child = Child(*command(run, slow, "--resume"))
        assert child.wait() == 0, child.text()
        check_is_like(run, FRESH.absolute())
        check_nothing_was_asked_twice(run)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one_round, range(ROUNDS)))


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT can't be sent to one process there")
def test_interrupted_and_resumed_is_the_uninterrupted_run(
    scenario: Path, config: Path, slow: Path
) -> None:
    assert swarm(*command(FRESH, config)) == 0
    child = Child(*command(RUN, slow))
    assert child.wait_for(RUN.absolute(), "request.answered", 9)
    os.kill(child.pid, signal.SIGINT)
    assert child.wait() == 130, child.text()
    assert "To go on: add --resume --run-dir the-run" in child.text()
    assert manifest(RUN)["state"] == "interrupted"
    before = sum(event["event"] == "request.answered" for event in events(RUN))
    assert swarm(*command(RUN, config, "--resume")) == 0
    check_is_like(RUN, FRESH)
    check_nothing_was_asked_twice(RUN)
    assert manifest(RUN)["inference"]["recalled"] >= before


def serving(server: ScriptedServer, path: Path = Path("server.yaml"), **sections: Any) -> Path:
    address = {"kind": "llama_server", "base_url": server.base_url, "ready_timeout_s": 0.5}
    return write_config(path, backend=address, **sections)


def test_aborted_by_a_failing_server_and_resumed_on_another_port(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenario(tmp_path / "s.yaml", [llm(3, max_retries=0)], epochs=2, steps=2)
    assert swarm(*command(FRESH, serving(server))) == 0
    refusal = Reply(error_body(400, "out of luck", "invalid_request_error"), status=400)
    answer = Reply(answer_body(POST))
    server.reset()
    server.on(CHAT, *[answer] * 7, refusal)
    assert swarm(*command(RUN, serving(server))) == 1
    err = capsys.readouterr().err
    assert "out of luck" in err
    assert "--resume --run-dir the-run" in err
    assert manifest(RUN)["state"] == "aborted"
    with ScriptedServer() as other:
        other.on(CHAT, answer)
        assert other.port != server.port
        config = serving(other, scheduler={"slots": 2, "max_batch": 1, "retry_budget": 7})
        assert swarm(*command(RUN, config, "--resume")) == 0
        asked = len(other.requests(CHAT))
    check_is_like(RUN, FRESH)
    check_nothing_was_asked_twice(RUN)
    assert asked == manifest(FRESH)["transcript_lines"] - 7


def test_a_run_whose_server_was_not_there_is_resumed_when_it_is(
    server: ScriptedServer, tmp_path: Path
) -> None:
    write_scenario(tmp_path / "s.yaml", [llm(3)], epochs=1, steps=2)
    missing = write_config(
        Path("missing.yaml"),
        backend={
            "kind": "llama_server",
            "base_url": "http://127.0.0.1:9/v1",
            "ready_timeout_s": 0.2,
        },
    )
    assert swarm(*command(RUN, missing)) == 2
    assert swarm(*command(RUN, serving(server), "--resume")) == 0
    assert manifest(RUN)["state"] == "completed"


def test_a_failure_that_counted_is_not_asked_again(server: ScriptedServer, tmp_path: Path) -> None:
    write_scenario(tmp_path / "s.yaml", [llm(3, max_retries=0)], epochs=2, steps=2)
    noop = {"on_failure": "noop"}
    refusal = Reply(error_body(400, "out of luck", "invalid_request_error"), status=400)
    server.on(CHAT, refusal, Reply(answer_body(POST)))
    assert swarm(*command(RUN, serving(server, scheduler=noop))) == 0
    before = (RUN / "transcript.jsonl").read_bytes()
    assert b'"outcome":"failed"' in before
    server.reset()
    assert swarm(*command(RUN, serving(server, scheduler=noop), "--resume")) == 0
    assert (RUN / "transcript.jsonl").read_bytes() == before
    assert server.requests(CHAT) == []


def test_resume_of_a_completed_run_asks_nothing_and_gives_the_same(
    scenario: Path, config: Path
) -> None:
    assert swarm(*command(FRESH, config)) == 0
    assert swarm(*command(RUN, config)) == 0
    first = manifest(RUN)
    assert swarm(*command(RUN, config, "--resume")) == 0
    check_is_like(RUN, FRESH)
    second = manifest(RUN)
    assert second["inference"]["recalled"] == first["transcript_lines"]
    assert {**second, "inference": 0, "command": 0} == {**first, "inference": 0, "command": 0}


def test_a_run_killed_before_it_began_can_be_begun_again(scenario: Path, config: Path) -> None:
    """What a kill leaves at the earliest moment: a manifest and a log."""
    for more in ([], ["--resume"]):
        run = Path(f"begun-{len(more)}")
        run.mkdir()
        (run / "manifest.json").write_text('{"version": 1, "state": "starting"}', "utf-8")
        (run / "inference.jsonl").write_text("", "utf-8")
        assert swarm(*command(run, config, *more)) == 0


def test_a_log_line_that_was_torn_does_not_spoil_the_next(scenario: Path, config: Path) -> None:
    assert swarm(*command(RUN, config)) == 0
    with (RUN / "inference.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"event": "request.ans')
    assert swarm(*command(RUN, config, "--resume")) == 0
    assert any(event["event"] == "request.recalled" for event in events(RUN))
    torn = [
        line
        for line in (RUN / "inference.jsonl").read_text(encoding="utf-8").splitlines()
        if not line.endswith("}")
    ]
    assert torn == ['{"event": "request.ans']


# --- what SWARM writes


@pytest.mark.skipif(sys.platform == "win32", reason="a kill can't be aimed there")
def test_logs_and_memory_of_a_resumed_run_are_as_of_an_uninterrupted_one(
    config: Path, slow: Path, tmp_path: Path
) -> None:
    memory, audit = tmp_path / "outside/memory.json", tmp_path / "audits/audit.jsonl"
    scenario = write_scenario(
        tmp_path / "s.yaml",
        [llm(3), {"type": "honest", "count": 2}],
        epochs=2,
        steps=2,
        outputs={"event_log": "events.jsonl", "graph_memory_path": str(memory)},
    )
    before = [command(Path("earlier"), config), ["--prompt-audit", audit]]
    assert swarm(*before[0], *before[1]) == 0
    began_with, audited = memory.read_bytes(), audit.read_bytes()
    assert swarm(*command(FRESH, config, "--prompt-audit", audit)) == 0
    assert memory.read_bytes() == (FRESH / "graph_memory.json").read_bytes() != began_with
    assert audit.read_bytes() == audited + (FRESH / "prompt_audit.jsonl").read_bytes()

    memory.write_bytes(began_with)
    audit.write_bytes(audited)
    child = Child(*command(RUN, slow, "--prompt-audit", audit))
    assert child.wait_for(RUN.absolute(), "request.answered", 8)
    child.kill()
    assert memory.read_bytes() == began_with
    assert audit.read_bytes() == audited
    memory.write_bytes(b"{}")  # another run's, in the meantime: it is not what this one began with
    arguments = command(RUN, config, "--resume", "--prompt-audit", audit)
    assert swarm(*arguments) == 0
    check_is_like(RUN, FRESH)
    assert memory.read_bytes() == (FRESH / "graph_memory.json").read_bytes()
    assert audit.read_bytes() == audited + (FRESH / "prompt_audit.jsonl").read_bytes()

    memory.write_bytes(b"{}")
    assert swarm(*arguments) == 0
    check_is_like(RUN, FRESH)
    assert memory.read_bytes() == b"{}", "was brought there a second time"
    assert audit.read_bytes() == audited + (FRESH / "prompt_audit.jsonl").read_bytes()
    assert not (tmp_path / "events.jsonl").exists()
    assert scenario.exists()


def test_the_memory_it_began_with_is_part_of_a_run(config: Path, tmp_path: Path) -> None:
    memory = tmp_path / "memory.json"
    write_scenario(tmp_path / "s.yaml", [llm()], outputs={"graph_memory_path": str(memory)})
    assert swarm(*command(Path("earlier"), config)) == 0
    assert swarm(*command(RUN, config)) == 0
    start = RUN / "graph_memory_at_start.json"
    start.write_bytes(start.read_bytes() + b"\n")
    assert swarm(*command(RUN, config, "--resume")) == 2


# --- seeds


def test_a_scenario_without_a_seed_gets_one_and_keeps_it(config: Path, tmp_path: Path) -> None:
    simulation = {"n_epochs": 1, "steps_per_epoch": 2}
    write_scenario(tmp_path / "s.yaml", [llm(2)], simulation=simulation)
    for run in (RUN, FRESH):
        assert swarm(*command(run, config)) == 0
    first = manifest(RUN)
    assert isinstance(first["seed"], int)
    assert first["seed"] != manifest(FRESH)["seed"]
    assert swarm(*command(RUN, config, "--resume")) == 0
    assert manifest(RUN)["seed"] == first["seed"]
    assert manifest(RUN)["trace_hash"] == first["trace_hash"]
    assert swarm(*command(Path("third"), config, "--seed", first["seed"])) == 0
    assert manifest(Path("third"))["trace_hash"] == first["trace_hash"]


# --- what may change


@pytest.mark.parametrize(
    "sections",
    [
        {"scheduler": {"slots": 1}},
        {"scheduler": {"max_batch": 1, "queue_limit": 2}},
        {"scheduler": {"retry_budget": 5, "retry_base_s": 0.1, "on_failure": "noop"}},
        {"backend": {**FAKE, "fake": {"slots": 9, "context_per_slot": 16384}}},
        {"journal": {"synchronous": "full", "on_error": "continue"}},
        {"logging": {"prompts": True}},
    ],
    ids=str,
)
def test_what_changes_no_answer_may_change(
    sections: dict[str, Any], scenario: Path, config: Path
) -> None:
    assert swarm(*command(RUN, config)) == 0
    before = manifest(RUN)["trace_hash"]
    changed = write_config(Path("changed.yaml"), **{"backend": FAKE, **sections})
    assert swarm(*command(RUN, changed, "--resume")) == 0
    assert manifest(RUN)["trace_hash"] == before


# --- what may not


def refused(capsys: pytest.CaptureFixture[str], arguments: list[object], *says: str) -> None:
    """Check that the command is refused in a few lines, and the run is as it was."""
    before = {file: file.read_bytes() for file in RUN.iterdir()}
    capsys.readouterr()
    assert swarm(*arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 3
    for text in says:
        assert text in err
    after = {file: file.read_bytes() for file in RUN.iterdir()}
    if "is damaged" in says:  # the journal has been opened
        del before[RUN / "journal.sqlite3"], after[RUN / "journal.sqlite3"]
    assert after == before


@pytest.mark.parametrize(
    ("more", "sections", "says"),
    [
        (["--seed", 8], {}, ["seed was 7, is 8"]),
        (["--epochs", 1], {}, ["epochs was 2, is 1"]),
        (["--steps", 3], {}, ["steps_per_epoch was 2, is 3"]),
        (["--inference-scheduler", "serial"], {}, ["mode was 'batch', is 'serial'"]),
        ([], {"backend": {**FAKE, "thinking": True}}, ["sampling.thinking was None, is True"]),
        ([], {"determinism": {"repair_simulation": False}}, ["repairs was ['ids", "is []"]),
        ([], {"determinism": {"seconds_per_step": 1.0}}, ["60 s per step", "1 s per step"]),
        ([], {"scheduler": {"structured_output": False}}, ["structured_output was True"]),
        ([], {"scheduler": {"max_reasks": 1}}, ["max_reasks was 2, is 1"]),
        ([], {"prompt_layout": "shared_first"}, ["prompt_layout was 'upstream'"]),
    ],
    ids=str,
)
def test_what_changes_answers_is_refused_and_named(
    more: list[object],
    sections: dict[str, Any],
    says: list[str],
    scenario: Path,
    config: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert swarm(*command(RUN, config)) == 0
    changed = write_config(Path("changed.yaml"), **{"backend": FAKE, **sections})
    refused(capsys, command(RUN, changed, "--resume", *more), "can't be resumed", *says)


def test_a_scenario_that_says_something_else_is_refused(
    scenario: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert swarm(*command(RUN, config)) == 0
    scenario.write_bytes(scenario.read_bytes() + b"\nmotif: changed\n")
    refused(capsys, command(RUN, config, "--resume"), "scenario_sha256 was")


def test_how_a_model_is_reached_may_change_in_the_scenario(scenario: Path, config: Path) -> None:
    assert swarm(*command(RUN, config)) == 0
    before = manifest(RUN)["trace_hash"]
    data = yaml.safe_load(scenario.read_text(encoding="utf-8"))
    for spec in data["agents"]:
        if "llm" in spec:
            mended = {"timeout": 77, "max_retries": 9, "base_url": "http://127.0.0.1:9/v1"}
            spec["llm"].update(mended)
    scenario.write_text("# mended\n" + yaml.safe_dump(data), encoding="utf-8")
    assert swarm(*command(RUN, config, "--resume")) == 0
    assert manifest(RUN)["trace_hash"] == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_alias": "other"}, "is 'other' (build"),
        ({"build_info": "b9999-def"}, "(build b9999-def, kind llama_server)"),
        ({"chat_template": "{{ other }}"}, "with the fingerprint"),
    ],
    ids=str,
)
def test_another_model_is_refused(
    change: dict[str, Any],
    says: str,
    server: ScriptedServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_scenario(tmp_path / "s.yaml", [llm(1)])
    assert swarm(*command(RUN, serving(server))) == 0
    server.on(PROPS, Reply(props_body(**change)))
    refused(capsys, command(RUN, serving(server), "--resume"), "can't be resumed", says)


def test_a_directory_without_a_server_path_or_slots_in_its_identity(
    server: ScriptedServer, tmp_path: Path
) -> None:
    """The same model in another directory, on a server with other slots, is the same model."""
    write_scenario(tmp_path / "s.yaml", [llm(1)])
    assert swarm(*command(RUN, serving(server))) == 0
    server.on(PROPS, Reply(props_body(total_slots=2, model_path="/elsewhere/demo.gguf")))
    assert swarm(*command(RUN, serving(server), "--resume")) == 0


def test_resume_needs_a_directory(
    scenario: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "s.yaml", *MODE, "--inference-config", config, "--resume"]
    assert swarm(*words) == 2
    assert "--resume needs --run-dir DIR" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize("content", [None, {}, {"manifest.json": "{"}, {"manifest.json": "[]"}])
def test_a_directory_that_is_no_run_is_refused_and_left_alone(
    content: dict[str, str] | None,
    scenario: Path,
    config: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        RUN.mkdir()
        for file, text in content.items():
            (RUN / file).write_text(text, "utf-8")
    assert swarm(*command(RUN, config, "--resume")) == 2
    assert "the-run" in capsys.readouterr().err
    assert RUN.exists() == (content is not None)
    if content is not None:
        assert sorted(path.name for path in RUN.iterdir()) == sorted(content)


def test_a_run_under_way_is_not_touched(
    scenario: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endless = write_config(Path("endless.yaml"), backend={**FAKE, "fake": {"latency_s": 9e6}})
    child = Child(*command(RUN, endless))
    try:
        assert child.wait_for(RUN.absolute(), "request.dispatched", 1)
        before = (RUN / "manifest.json").read_bytes()
        assert swarm(*command(RUN, config, "--resume")) == 2
        assert "in use by another run" in capsys.readouterr().err
        assert (RUN / "manifest.json").read_bytes() == before
    finally:
        child.kill()


def test_a_damaged_journal_is_refused(
    scenario: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert swarm(*command(RUN, config)) == 0
    journal = RUN / "journal.sqlite3"
    content = journal.read_bytes()
    at = content.index(b'"outcome": "ok"')
    journal.write_bytes(content[:at] + b"#" + content[at + 1 :])
    refused(capsys, command(RUN, config, "--resume"), "journal", "is damaged")


def test_a_transcript_is_written_anew_and_not_trusted(scenario: Path, config: Path) -> None:
    assert swarm(*command(RUN, config)) == 0
    before = (RUN / "transcript.jsonl").read_bytes()
    (RUN / "transcript.jsonl").write_bytes(before[:-30])
    assert swarm(*command(RUN, config, "--resume")) == 0
    assert (RUN / "transcript.jsonl").read_bytes() == before
    assert len(json_lines(RUN / "transcript.jsonl")) == manifest(RUN)["transcript_lines"]


@pytest.mark.parametrize("how", ["removed", "another", "killed"])
def test_a_run_without_its_journal_is_not_asked_anew(
    how: str, scenario: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert swarm(*command(RUN, config)) == 0
    if how == "killed":  # its manifest says nothing of what was asked
        data = manifest(RUN)
        for key in ("transcript_lines", "trace_hash", "journal", "inference"):
            del data[key]
        text = json.dumps({**data, "state": "running"})
        (RUN / "manifest.json").write_text(text, encoding="utf-8")
    if how != "another":
        (RUN / "journal.sqlite3").rename("elsewhere.sqlite3")
        other = config
    else:
        other = write_config(Path("other.yaml"), backend=FAKE, journal={"path": "new.sqlite3"})
    before = {
        file: file.read_bytes() for file in RUN.iterdir() if not file.name.startswith("journal")
    }
    assert swarm(*command(RUN, other, "--resume")) == 2
    assert "has answers, but its journal" in capsys.readouterr().err
    for file, content in before.items():
        assert file.read_bytes() == content
    hash_before = manifest(RUN).get("trace_hash")
    if how == "removed":  # and moved, which is allowed
        moved = write_config(
            Path("moved.yaml"), backend=FAKE, journal={"path": "elsewhere.sqlite3"}
        )
        assert swarm(*command(RUN, moved, "--resume")) == 0
        assert manifest(RUN)["trace_hash"] == hash_before
