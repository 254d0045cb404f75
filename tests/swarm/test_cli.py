"""The `swarm` command: options, refusals, exit codes and what is left on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import swarm.__main__ as upstream
import swarm.scenarios.loader as loader

from tests.swarm.simulations import (
    MODEL,
    NOOP,
    awm,
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
    TEMPLATE,
    Reply,
    ScriptedServer,
    answer_body,
    error_body,
    props_body,
)

RUN = Path("the-run")
BATCH = ("--inference-scheduler", "batch", "--run-dir", RUN)
FAKE = {"kind": "fake"}


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    agents = [llm(3, persona="honest"), {"type": "honest", "count": 2}]
    return write_scenario(tmp_path / "s.yaml", agents, epochs=2, steps=2)


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    return write_config(tmp_path / "fake.yaml", backend=FAKE)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        scripted.on(CHAT, Reply(answer_body(NOOP)))
        yield scripted


def refused(capsys: pytest.CaptureFixture[str], code: int, *says: str, most_lines: int = 3) -> None:
    """Check the exit code and that a few clear lines say what, why and what to type."""
    captured = capsys.readouterr()
    assert code == 2, captured
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert 0 < len(lines) <= most_lines, captured.err
    assert "error: " in lines[0]
    assert "Traceback" not in captured.err
    for text in says:
        assert text in captured.err
    assert "Running simulation" not in captured.out


# What is refused before anything runs


@pytest.mark.parametrize("agent", [council(3), awm()], ids=["council", "planner"])
def test_slot_too_small_for_quoted_answers_or_a_plan_exits_2_before_anything_is_asked(
    agent: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_scenario(tmp_path / "s.yaml", [agent], awm={"enabled": True})
    config = write_config(tmp_path / "c.yaml", backend={**FAKE, "fake": {"context_per_slot": 500}})
    code = swarm("run", path, *BATCH, "--inference-config", config)
    refused(capsys, code, "a slot holds 500 tokens, but ", "context_per_slot to ")
    assert manifest(RUN)["transcript_lines"] == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "is not a file"),
        ("agents: [\n", "is not YAML"),
        ("scenario_id: x\n", "has no agents"),
        ("agents: []\n", "has no agents"),
        ("- a\n- b\n", "is not a scenario"),
    ],
)
def test_bad_scenario_exits_2_and_leaves_no_run_directory(
    text: str | None, says: str, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("bad.yaml")
    if text is not None:
        path.write_text(text, encoding="utf-8")
    refused(capsys, swarm("run", path, *BATCH, "--inference-config", fake), "bad.yaml", says)
    assert not RUN.exists()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"schedular": {}}, ["unknown key 'schedular'", "known here", "scheduler"]),
        ({"scheduler": {"slotz": 4}}, ["unknown key 'scheduler.slotz'", "slots"]),
        ({"backend": {"fake": {"x": 1}}}, ["unknown key 'backend.fake.x'", "latency_s"]),
        ({"scheduler": {"max_batch": "many"}}, ["scheduler.max_batch", "'many'"]),
        ({"scheduler": {"slots": 0}}, ["scheduler.slots = 0", "'auto' or", "greater"]),
        ({"scheduler": {"slots": True}}, ["scheduler.slots = True"]),
        ({"scheduler": {"max_batch": 0}}, ["scheduler.max_batch = 0", "greater"]),
        ({"scheduler": {"on_failure": "ignore"}}, ["on_failure", "'ignore'", "abort", "noop"]),
        ({"scheduler": 3}, ["scheduler = 3"]),
        ({"backend": {"kind": "magic"}}, ["backend.kind", "'magic'", "llama_server"]),
        ({"backend": {"base_url": "ftp://host/v1"}}, ["backend.base_url", "ftp://", "http"]),
        ({"backend": {"kind": "llama_server", "managed": True}}, ["model_path"]),
        ({"logging": {"prompts": "yes"}}, ["logging.prompts", "'yes'"]),
        ({"logging": {"format": "text"}}, ["logging.format", "'text'", "'json'"]),
        ({"metrics": {"port": 65536}}, ["metrics.port", "65536", "65535"]),
        ({"prompt_layout": "upside_down"}, ["prompt_layout", "upside_down", "shared_first"]),
    ],
)
def test_bad_configuration_names_key_value_and_what_is_allowed(
    config: dict[str, Any],
    says: list[str],
    scenario: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_config(tmp_path / "config.yaml", **config)
    code = swarm("run", scenario, *BATCH, "--inference-config", path)
    refused(capsys, code, "config.yaml", *says)
    assert not RUN.exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "can't be read"), ("a: [\n", "is not YAML"), ("- 1\n", "must be a mapping")],
)
def test_unusable_configuration_file_is_refused(
    text: str | None, says: str, scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("config.yaml")
    if text is not None:
        path.write_text(text, encoding="utf-8")
    code = swarm("run", scenario, *BATCH, "--inference-config", path)
    refused(capsys, code, says, most_lines=6)  # where the YAML goes wrong
    assert not RUN.exists()


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--slots", "0", "argument --slots: must be auto, or a whole number, 1 or more; got '0'"),
        ("--slots", "-3", "argument --slots: must be auto, or a whole number, 1 or more; got '-3'"),
        ("--slots", "x", "argument --slots: must be auto, or a whole number, 1 or more; got 'x'"),
        ("--max-batch", "0", "argument --max-batch: must be a whole number, 1 or more; got '0'"),
        ("--max-batch", "x", "argument --max-batch: must be a whole number, 1 or more; got 'x'"),
        ("--metrics-port", "-1", "argument --metrics-port: must be a whole number, 0 to 65535"),
        ("--metrics-port", "65536", "a whole number, 0 to 65535; got '65536'"),
        ("--seed", "-1", "--seed must be a whole number, 0 or more, got -1"),
    ],
)
def test_bad_option_is_refused(
    option: str,
    value: str,
    says: str,
    scenario: Path,
    fake: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = swarm("run", scenario, *BATCH, "--inference-config", fake, option, value)
    refused(capsys, code, says)
    assert not RUN.exists()


@pytest.mark.parametrize(
    ("seed", "says"),
    [
        (-1, "simulation.seed must be a whole number, 0 or more, got -1"),
        (1.5, "Input should be a valid integer"),
        ("x", "Input should be a valid integer"),
    ],
)
def test_bad_seed_of_a_scenario_is_named(
    seed: object, says: str, tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulation = {"n_epochs": 1, "steps_per_epoch": 1, "seed": seed}
    path = write_scenario(tmp_path / "s.yaml", [llm()], simulation=simulation)
    code = swarm("run", path, *BATCH, "--inference-config", fake)
    refused(capsys, code, "s.yaml", "seed", repr(seed), says)
    assert not RUN.exists()


@pytest.mark.parametrize("managed", [True, False])
def test_missing_model_file_is_named_with_its_whole_path(
    managed: bool, scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = {"kind": "llama_server", "managed": True} if managed else {"kind": "llama_inproc"}
    config = write_config(tmp_path / "c.yaml", backend={**kind, "model_path": "models/none.gguf"})
    code = swarm("run", scenario, *BATCH, "--inference-config", config)
    refused(capsys, code, str(Path("models/none.gguf").absolute()))


def test_format_of_the_log_may_be_named(scenario: Path, tmp_path: Path) -> None:
    config = write_config(
        tmp_path / "c.yaml", backend=FAKE, logging={"format": "json", "prompts": False}
    )
    assert swarm("run", scenario, *BATCH, "--inference-config", config, "-q") == 0
    assert json_lines(RUN / "inference.jsonl")


def test_unknown_mode_is_refused(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = swarm("run", scenario, "--inference-scheduler", "sideways")
    refused(capsys, code, "sideways", "batch", "serial")


def test_more_slots_than_the_backend_has_are_refused(
    scenario: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = swarm("run", scenario, *BATCH, "--inference-config", fake, "--slots", 5)
    refused(capsys, code, "scheduler.slots is 5", "has 4", "set backend.fake.slots to 5")


def test_unreachable_server_is_refused_with_its_address(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "http://127.0.0.1:9/v1"
    config = write_config(
        tmp_path / "c.yaml",
        backend={"kind": "llama_server", "base_url": url, "ready_timeout_s": 0.2},
    )
    code = swarm("run", scenario, *BATCH, "--inference-config", config)
    refused(capsys, code, "127.0.0.1:9")
    found = manifest(RUN)
    assert (found["state"], found["transcript_lines"]) == ("aborted", 0)
    assert "127.0.0.1:9" in found["reason"]


def test_small_context_is_refused_with_what_to_type(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "c.yaml", backend={**FAKE, "fake": {"context_per_slot": 512}})
    code = swarm("run", scenario, *BATCH, "--inference-config", config)
    refused(capsys, code, "holds 512 tokens", "backend.fake.context_per_slot to")
    assert manifest(RUN)["transcript_lines"] == 0


def test_server_with_another_model_is_refused_where_agents_choose_theirs(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_scenario(Path("s.yaml"), [llm(base_url=server.base_url, model="other")])
    refused(capsys, swarm("run", path, *BATCH), "llm_1", "'other'", "'demo'")
    assert server.requests(CHAT) == []


def test_server_that_fails_while_it_is_checked_is_refused(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on(TEMPLATE, Reply(error_body(500, "broken template", "server_error"), status=500))
    path = write_scenario(Path("s.yaml"), [llm(base_url=server.base_url, model="demo")])
    refused(capsys, swarm("run", path, *BATCH), "broken template")
    assert server.requests(CHAT) == []


def test_provider_without_its_key_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    path = write_scenario(Path("s.yaml"), [llm(provider="openai")])
    refused(capsys, swarm("run", path, *BATCH), "llm_1", "openai", "export OPENAI_API_KEY=")


def test_existing_run_directory_is_refused_and_left_alone(
    scenario: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RUN.mkdir()
    code = swarm("run", scenario, *BATCH, "--inference-config", fake)
    refused(capsys, code, "the-run exists already", "--run-dir")
    assert list(RUN.iterdir()) == []


def test_debug_shows_the_traceback(scenario: Path) -> None:
    from scheduler.errors import ConfigError

    with pytest.raises(ConfigError):
        swarm("run", scenario, *BATCH, "--debug", "--slots", 9)


# Without our option


def test_without_the_option_a_missing_scenario_has_upstreams_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert swarm("run", "missing.yaml") == 1
    assert "Error: scenario file 'missing.yaml' not found." in capsys.readouterr().err


def test_without_the_option_upstream_runs_untouched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_scenario(tmp_path / "s.yaml", [{"type": "honest", "count": 3}])
    assert swarm("run", path, "--seed", 1) == 0
    out = capsys.readouterr().out
    assert "Total interactions" in out
    assert "Inference" not in out
    assert not (tmp_path / "runs").exists()


def test_our_options_alone_are_unknown_to_upstream(scenario: Path) -> None:
    assert swarm("run", scenario, "--slots", "2") == 2


def test_other_commands_are_upstreams(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenario(tmp_path / "listed.yaml", [llm()])
    assert swarm("list", "--dir", tmp_path) == 0
    assert "listed" in capsys.readouterr().out
    assert swarm("--help") == 0
    assert "Distributional AGI Safety Sandbox" in capsys.readouterr().out


@pytest.mark.parametrize("option", [(), ("--inference-scheduler", "batch")])
def test_help_of_run_shows_upstreams_options_and_ours(
    option: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert swarm("run", *option, "--help") == 0
    out = capsys.readouterr().out
    for text in ("--inference-scheduler", "--inference-config", "--slots", "--epochs", "--quiet"):
        assert text in out


# A run


@pytest.mark.parametrize("mode", ["batch", "serial"])
def test_run_prints_epochs_summary_directory_and_trace_hash(
    mode: str, scenario: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (f"--inference-scheduler={mode}", "--run-dir", RUN, "--inference-config", fake)
    assert swarm("run", scenario, *arguments) == 0
    out = capsys.readouterr().out
    digest = sha256((RUN / "transcript.jsonl").read_bytes()).hexdigest()
    assert f"Trace hash:    {digest}" in out
    assert f"Run directory: {RUN}" in out
    for text in ("Toxicity", "requests", "queue", "prefill", "decode", "tokens", "wall time"):
        assert text in out


def test_manifest_says_what_ran(scenario: Path, fake: Path) -> None:
    arguments = ("--inference-config", fake, "--seed", 5, "--epochs", 1, "--slots", 2)
    assert swarm("run", scenario, *BATCH, *arguments) == 0
    found = manifest(RUN)
    assert (found["state"], found["reason"], found["mode"], found["seed"]) == (
        "completed",
        None,
        "batch",
        5,
    )
    assert found["trace_hash"] == sha256((RUN / "transcript.jsonl").read_bytes()).hexdigest()
    assert found["transcript_lines"] == len(json_lines(RUN / "transcript.jsonl")) > 0
    assert found["scenario"] == {
        "file": "s.yaml",
        "id": "s",
        "sha256": sha256(scenario.read_bytes()).hexdigest(),
        "epochs": 1,
        "steps_per_epoch": 2,
    }
    assert found["served_by"] == dict.fromkeys(["llm_1", "llm_2", "llm_3"], "default")
    assert found["configuration"]["scheduler"]["slots"] == 2
    assert found["configuration"]["scheduler"]["max_batch"] == 16
    assert found["backends"]["default"]["kind"] == "fake"
    assert found["versions"]["swarm-safety"]
    assert found["inference"]["requests"] == found["transcript_lines"]
    assert found["inference"]["max_in_flight"] == 2
    assert found["command"][0] == "run"


def test_transcript_is_in_canonical_order(scenario: Path, fake: Path) -> None:
    assert swarm("run", scenario, *BATCH, "--inference-config", fake) == 0
    lines = json_lines(RUN / "transcript.jsonl")
    acts = [(x["epoch"], x["step"], x["agent_id"]) for x in lines if x["kind"] == "act"]
    assert acts == [
        (epoch, step, f"llm_{n}") for epoch in (0, 1) for step in (0, 1) for n in (1, 2, 3)
    ]
    places = [(x["epoch"], x["step"], ["act", "accept"].index(x["kind"])) for x in lines]
    assert places == sorted(places)


def test_log_tells_the_way_of_every_request(scenario: Path, fake: Path) -> None:
    assert swarm("run", scenario, *BATCH, "--inference-config", fake, "--slots", 2) == 0
    events = json_lines(RUN / "inference.jsonl")
    names = [event["event"] for event in events]
    asked = len(json_lines(RUN / "transcript.jsonl"))
    for name in ("queued", "dispatched", "answered", "settled"):
        assert names.count(f"request.{name}") == asked
    assert names.count("step.started") == 4
    assert names[0] == "run.started"
    assert names[-2:] == ["run.summary", "run.ended"]
    assert {event["run"] for event in events} == {"the-run"}
    answered = [event for event in events if event["event"] == "request.answered"]
    for key in ("queue_ms", "prefill_ms", "decode_ms", "cached_tokens", "slot", "attempt", "seed"):
        assert all(event[key] is not None for event in answered)
    assert {event["slot"] for event in answered} == {0, 1}
    assert max(e["in_flight"] for e in events if e["event"] == "request.dispatched") == 2


def test_run_without_llm_agents_needs_no_backend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_scenario(tmp_path / "s.yaml", [{"type": "honest", "count": 3}])
    assert swarm("run", path, *BATCH) == 0
    assert "0 (0 valid, 0 invalid, 0 failed)" in capsys.readouterr().out
    assert manifest(RUN)["trace_hash"] == sha256(b"").hexdigest()


def test_default_run_directory_is_under_runs(scenario: Path, fake: Path) -> None:
    for _ in range(2):
        assert swarm("run", scenario, *BATCH[:2], "--inference-config", fake, "-q") == 0
    assert [path.name.split("-")[:2] for path in Path("runs").iterdir()] == [["s", "seed7"]] * 2


def test_every_upstream_option_works_together_with_ours(
    scenario: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = (*BATCH, "--inference-config", fake, "--slots", 2, "--max-batch", 3)
    theirs = ("--seed", 3, "--epochs", 1, "--steps", 1, "--export-json", "out/h.json")
    audit = ("--prompt-audit", "audit.jsonl", "--prompt-audit-include-system", "-q")
    Path("out").mkdir()
    code = swarm("run", *ours, scenario, *theirs, "--export-csv", "out/csv", *audit)
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    assert "Inference" not in captured.out
    assert json.loads(Path("out/h.json").read_text(encoding="utf-8"))
    assert any(Path("out/csv").iterdir())
    exchanges = [entry for entry in json_lines(Path("audit.jsonl")) if entry["kind"] == "act"]
    assert [entry["agent_id"] for entry in exchanges] == ["llm_1", "llm_2", "llm_3"]
    assert all("cooperative agent" in entry["system_prompt"] for entry in exchanges)
    assert manifest(RUN)["seed"] == 3


def test_upstreams_modules_are_as_before_after_any_end(
    scenario: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (upstream.cmd_run, loader.build_orchestrator, sys.argv)
    swarm("run", scenario, *BATCH, "--inference-config", fake, "-q")
    swarm("run", scenario, *BATCH, "--inference-config", fake)
    swarm("run", "missing.yaml", *BATCH)
    swarm("run", "missing.yaml")
    swarm("run", scenario, *BATCH, "--bogus")
    after = (upstream.cmd_run, loader.build_orchestrator, sys.argv)
    assert all(a is b for a, b in zip(after, before, strict=True))


# Failures


def serving(server: ScriptedServer, tmp_path: Path, **scheduler: Any) -> tuple[Path, Path]:
    config = write_config(
        tmp_path / "c.yaml",
        scheduler={"slots": 1, "retry_base_s": 0.001, **scheduler},
        backend={"kind": "llama_server", "base_url": server.base_url},
    )
    return write_scenario(tmp_path / "s.yaml", [llm(3)], steps=2), config


REFUSAL = Reply(error_body(400, "bad request", "invalid_request_error"), status=400)


def test_failure_under_abort_exits_1_and_names_the_agent(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario, config = serving(server, tmp_path)
    server.on(CHAT, Reply(answer_body(NOOP)), REFUSAL)
    assert swarm("run", scenario, *BATCH, "--inference-config", config) == 1
    captured = capsys.readouterr()
    hint, error = captured.err.split("error: ")
    assert "--resume" in hint
    assert error.startswith("llm_2")
    for text in ("epoch 0", "step 0", "bad request", "1 of 3", "on_failure"):
        assert text in error
    assert "Trace hash" not in captured.out
    found = manifest(RUN)
    assert found["state"] == "aborted"
    assert "llm_2" in found["reason"]
    assert json_lines(RUN / "inference.jsonl")[-1]["state"] == "aborted"
    assert len(server.requests(CHAT)) == 2


def test_failure_under_noop_goes_on_counts_and_exits_0(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario, config = serving(server, tmp_path, on_failure="noop")
    server.on(CHAT, Reply(answer_body(NOOP)), REFUSAL, Reply(answer_body(NOOP)))
    assert swarm("run", scenario, *BATCH, "--inference-config", config) == 0
    assert "6 (5 valid, 0 invalid, 1 failed)" in capsys.readouterr().out
    found = manifest(RUN)
    assert (found["state"], found["inference"]["failures"]) == ("completed", 1)
    outcomes = [(x["agent_id"], x["outcome"]) for x in json_lines(RUN / "transcript.jsonl")]
    assert outcomes[:3] == [("llm_1", "ok"), ("llm_2", "failed"), ("llm_3", "ok")]


def test_wrong_answers_are_asked_again_then_counted(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario, config = serving(server, tmp_path, max_reasks=1)
    server.on(CHAT, *[Reply(answer_body("no json"))] * 2, Reply(answer_body(NOOP)))
    assert swarm("run", scenario, *BATCH, "--inference-config", config) == 0
    assert "6 (5 valid, 1 invalid, 0 failed)" in capsys.readouterr().out
    lines = json_lines(RUN / "transcript.jsonl")[:3]
    assert [(x["reask"], x["outcome"]) for x in lines] == [
        (0, "invalid"),
        (1, "invalid"),
        (0, "ok"),
    ]
    assert lines[0]["seed"] != lines[1]["seed"]
    sent = [seen.json["seed"] for seen in server.requests(CHAT)]
    assert sorted(sent) == sorted(x["seed"] for x in json_lines(RUN / "transcript.jsonl"))


def test_structured_output_off_sends_no_schema(server: ScriptedServer, tmp_path: Path) -> None:
    scenario, config = serving(server, tmp_path, structured_output=False)
    assert swarm("run", scenario, *BATCH, "--inference-config", config, "-q") == 0
    bodies = [seen.json for seen in server.requests(CHAT)]
    assert len(bodies) == 6
    assert not any("response_format" in body for body in bodies)


def test_structured_output_sends_the_schema(server: ScriptedServer, tmp_path: Path) -> None:
    scenario, config = serving(server, tmp_path)
    assert swarm("run", scenario, *BATCH, "--inference-config", config, "-q") == 0
    formats = [seen.json["response_format"] for seen in server.requests(CHAT)]
    assert {given["json_schema"]["name"] for given in formats} == {"act"}


def child(*arguments: object) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "swarm_integration", *map(str, arguments)]
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=None if sys.platform == "win32" else hear_ctrl_c,  # noqa: PLW1509  # no threads yet
    )


def hear_ctrl_c() -> None:
    """Undo what a shell does to the commands that it starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT can't be sent to one process there")
def test_interrupt_ends_the_run_and_is_noted(scenario: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", backend={**FAKE, "fake": {"latency_s": 9e6}})
    with child("run", scenario, *BATCH, "--inference-config", config) as process:
        log = RUN / "inference.jsonl"
        deadline = time.monotonic() + 100
        while not (log.exists() and "request.dispatched" in log.read_text(encoding="utf-8")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        while "run.aborted" not in log.read_text(encoding="utf-8"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted"
    assert manifest(RUN)["state"] == "interrupted"
    assert json_lines(log)[-1]["event"] == "run.ended"


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT can't be sent to one process there")
@pytest.mark.parametrize(
    ("module", "words", "imported"),
    [
        ("swarm_integration", ("run", "s.yaml", *BATCH), "anyio"),
        ("swarm_integration", ("run", "s.yaml"), "yaml"),
        ("swarm_integration.commands", ("demo",), "anyio"),
        ("swarm_integration.commands", ("serve", "--model", "m.gguf"), "anyio"),
    ],
)
def test_interrupt_during_the_imports_is_no_traceback(
    module: str, words: tuple[object, ...], imported: str, tmp_path: Path
) -> None:
    places = tmp_path / "places"
    places.mkdir()
    text = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (places / f"{imported}.py").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(places), *sys.path])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        preexec_fn=hear_ctrl_c,  # no threads yet
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_module_is_the_command(scenario: Path, fake: Path) -> None:
    with child("run", scenario, *BATCH, "--inference-config", fake) as process:
        out, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, "")
    assert f"Trace hash:    {manifest(RUN)['trace_hash']}" in out


# What must not be written


MARKER = "MARKER-in-the-prompt"
KEY = "sk-very-secret-key"
SECRET_ANSWER = "MARKER-in-the-answer"


def private_run(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, prompts: bool
) -> str:
    """Run with a marked prompt, answer and key; return all that was written but the transcript."""
    monkeypatch.setenv("THE_KEY", KEY)
    said = {"action_type": "POST", "reasoning": "r", "params": {"content": SECRET_ANSWER}}
    good = Reply(answer_body(json.dumps(said)))
    echo = Reply(error_body(400, f"can't read {MARKER}", "invalid_request_error"), status=400)
    bad = Reply(answer_body(f"{SECRET_ANSWER} is no JSON"))
    server.on(CHAT, good, bad, good, echo, good)
    config = write_config(
        tmp_path / "c.yaml",
        scheduler={"slots": 1, "on_failure": "noop"},
        backend={
            "kind": "llama_server",
            "base_url": server.base_url,
            "api_key_env": "THE_KEY",
        },
        logging={"prompts": prompts},
    )
    block = {"system_prompt": f"You are {MARKER}.", "api_key": "sk-block-key"}
    scenario = write_scenario(tmp_path / "s.yaml", [llm(2, **block)], steps=2)
    assert swarm("run", scenario, *BATCH, "--inference-config", config) == 0
    assert server.requests(CHAT)[0].headers["authorization"] == f"Bearer {KEY}"
    answers = ("transcript.jsonl", "journal.sqlite3")  # these two hold them by design
    files = [path for path in RUN.rglob("*") if not path.name.startswith(answers)]
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)


def test_prompts_answers_and_keys_are_not_in_logs_or_manifest(
    server: ScriptedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written = private_run(server, tmp_path, monkeypatch, prompts=False)
    captured = capsys.readouterr()
    for text in (SECRET_ANSWER, KEY, "sk-block-key"):
        assert text not in written
        assert text not in captured.out + captured.err
    scenario = (RUN / "scenario.yaml").read_text(encoding="utf-8")
    assert f"You are {MARKER}" not in written.replace(scenario, "")
    assert KEY not in (RUN / "transcript.jsonl").read_text(encoding="utf-8")


def test_prompts_are_logged_when_asked_for_and_keys_still_are_not(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = private_run(server, tmp_path, monkeypatch, prompts=True)
    assert f"You are {MARKER}" in written
    assert SECRET_ANSWER in written
    for text in (KEY, "sk-block-key"):
        assert text not in written


@pytest.mark.parametrize("kind", ["auto", "llama_server"])
def test_password_in_an_address_is_not_written(
    kind: str,
    server: ScriptedServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = server.base_url.replace("http://", "http://user:pass-word@")
    config = write_config(tmp_path / "c.yaml", backend={"kind": kind, "base_url": url})
    path = write_scenario(Path("s.yaml"), [llm(2, base_url=url, model="demo")])
    assert swarm("run", path, *BATCH, "--inference-config", config) == 0
    assert server.requests(CHAT)[0].headers["authorization"].startswith("Basic ")
    captured = capsys.readouterr()
    written = [path.read_text(encoding="utf-8", errors="replace") for path in RUN.rglob("*")]
    assert "pass-word" not in "\n".join([*written, captured.out, captured.err])


def test_two_servers_in_one_scenario_serve_their_own_agents(server: ScriptedServer) -> None:
    with ScriptedServer() as other:
        other.on(CHAT, Reply(answer_body(NOOP)))
        agents = [
            llm(2, base_url=server.base_url, model="demo"),
            llm(3, base_url=other.base_url, model="demo"),
        ]
        path = write_scenario(Path("s.yaml"), agents)
        assert swarm("run", path, *BATCH, "-q") == 0
        assert (len(server.requests(CHAT)), len(other.requests(CHAT))) == (2, 3)
    assert sorted(manifest(RUN)["backends"]) == sorted([server.base_url, other.base_url])


def test_context_of_a_real_servers_properties_is_checked(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    props = props_body(default_generation_settings={"n_ctx": 64, "params": {}})
    server.on("GET /props", Reply(props))
    path = write_scenario(Path("s.yaml"), [llm(base_url=server.base_url, model="demo")])
    refused(capsys, swarm("run", path, *BATCH), "holds 64 tokens")


def test_council_runs_from_the_command_line(fake: Path) -> None:
    path = write_scenario(Path("s.yaml"), [council(3), {"type": "llm", "llm": MODEL}])
    assert swarm("run", path, *BATCH, "--inference-config", fake, "-q") == 0
    assert manifest(RUN)["inference"]["rounds"] >= 3


@pytest.mark.parametrize("option", ["--slots", "--inference-config", "--resume"])
def test_our_options_need_the_scheduler(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert swarm("run", "s.yaml", option, 4) == 2
    err = capsys.readouterr().err
    assert f"error: {option} is an option of the inference scheduler" in err
    assert "type: add --inference-scheduler batch (or serial)" in err


def test_the_commands_help_names_what_is_added(capsys: pytest.CaptureFixture[str]) -> None:
    assert swarm("--help") == 0
    out = capsys.readouterr().out
    assert out.index("swarm sweep BASE") < out.index("and upstream's own") < out.index("usage:")


def test_a_sweep_is_no_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Path("sweep.yaml")
    sweep.write_text("base_scenario: s.yaml\nsweep: {parameters: []}\n", encoding="utf-8")
    assert swarm("run", sweep, "--inference-scheduler", "batch") == 2
    err = capsys.readouterr().err
    assert "sweep.yaml is no scenario but a sweep of many runs" in err
    assert "type: swarm sweep sweep.yaml --output results/sweep/" in err


@pytest.mark.parametrize("buffered", [False, True])
def test_output_that_nobody_reads_ends_without_a_word(buffered: bool) -> None:
    code = "from swarm_integration.cli import main\nraise SystemExit(main(['agents']))"
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--export-json", "/", "is a directory. Give a file"),
        ("--prompt-audit", ".", "is a directory. Give a file"),
        ("--export-csv", "s.yaml", "is a file. Give a directory"),
        ("--export-json", "s.yaml/x.json", "can't be written, because"),
        ("--export-json", "../x.json", "leads out of the working directory"),
        ("--export-csv", "../x", "leads out of the working directory"),
    ],
)
def test_what_can_not_be_written_at_the_end_is_refused_at_the_start(
    option: str, value: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenario(Path("s.yaml"), [{"type": "honest"}])
    run = tmp_path / "run"
    words = ("run", "s.yaml", "--inference-scheduler", "batch", "--run-dir", run)
    assert swarm(*words, option, value) == 2
    err = " ".join(capsys.readouterr().err.split())
    for part in says.split(". "):
        assert part.lower() in err.lower()
    assert not run.exists()
