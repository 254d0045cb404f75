"""`swarm run` on a real llama-server, from the command line to the run's files."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from anyio.from_thread import start_blocking_portal

from scheduler.server import ManagedServer, ServerSpec, find_server
from scheduler.structured import SchemaChecker
from swarm_integration import cli
from swarm_integration.files import project_file
from swarm_integration.schemas import accept_schema, act_schema

SLOTS = 4
SCHEMAS = {"act": act_schema(), "accept": accept_schema()}


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMA_SERVER", "xllamacpp")


@pytest.fixture
def managed(demo_model: Path, tmp_path: Path) -> Path:
    config = {
        "scheduler": {"slots": SLOTS},
        "backend": {
            "kind": "llama_server",
            "managed": True,
            "model_path": str(demo_model),
            "threads": 1,
        },
    }
    path = tmp_path / "managed.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def swarm(scenario: str, run_dir: Path, *arguments: object) -> int:
    words = ["run", str(project_file(scenario)), "--run-dir", str(run_dir), *map(str, arguments)]
    return cli.main(words)


def check_answers(run_dir: Path) -> list[dict[str, Any]]:
    """Check that every line of the transcript is a valid answer, and return them."""
    lines = json_lines(run_dir / "transcript.jsonl")
    final = {(x["agent_id"], x["epoch"], x["step"], x["kind"], x["ordinal"]): x for x in lines}
    for line in final.values():
        assert line["outcome"] == "ok"
        assert SchemaChecker().violation(SCHEMAS[line["kind"]], line["text"]) == ""
    return list(final.values())


class SlotWatch:
    """Asks a run's own server, from a thread, how many of its slots are busy."""

    def __init__(self, run_dir: Path) -> None:
        self._log = run_dir / "inference.jsonl"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.seen: list[int] = []
        self.total: set[int] = set()

    def __enter__(self) -> SlotWatch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _address(self) -> str | None:
        while not self._over.wait(0.01):
            if self._log.exists():
                for line in self._log.read_text(encoding="utf-8").splitlines():
                    event = json.loads(line)
                    if event["event"] == "server.started":
                        return str(event["base_url"]).removesuffix("/v1")
        return None

    def _watch(self) -> None:
        address = self._address()
        with httpx.Client(trust_env=False, timeout=5) as client:
            while not self._over.wait(0.01):
                with contextlib.suppress(httpx.HTTPError):
                    slots = client.get(f"{address}/slots").json()
                    self.seen.append(sum(slot["is_processing"] for slot in slots))
                    self.total.add(len(slots))


def test_twelve_agents_on_four_slots_of_a_managed_server(
    managed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    with SlotWatch(run_dir) as watch:
        code = swarm(
            "scenarios/llm_batch_12.yaml",
            run_dir,
            *("--inference-scheduler", "batch", "--inference-config", managed),
            *("--seed", 42, "--epochs", 1, "--steps", 2),
        )
    out = capsys.readouterr().out
    assert code == 0, out
    manifest = json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))
    events = json_lines(run_dir / "inference.jsonl")

    assert watch.total == {SLOTS}
    assert max(watch.seen) == SLOTS
    dispatched = [event for event in events if event["event"] == "request.dispatched"]
    assert max(event["in_flight"] for event in dispatched) == SLOTS
    assert in_flight_by_events(events) == SLOTS
    assert manifest["inference"]["max_in_flight"] == SLOTS
    actions = manifest["actions"]
    assert sum(count["chosen"] for count in actions["by_action"].values()) == 24
    assert set(actions["by_action"]) > {"NOOP"}
    assert actions["executed_share"] >= 0.99

    answers = check_answers(run_dir)
    acts = [(x["step"], x["agent_id"]) for x in answers if x["kind"] == "act"]
    assert acts == [(step, f"llm_{n}") for step in (0, 1) for n in range(1, 13)]
    answered = [event for event in events if event["event"] == "request.answered"]
    assert {event["slot"] for event in answered} == set(range(SLOTS))
    assert all(event["prefill_ms"] > 0 and event["decode_ms"] > 0 for event in answered)
    assert sum(event["cached_tokens"] for event in answered) > 0

    backend = manifest["backends"]["default"]
    assert (backend["kind"], backend["slots"], manifest["state"]) == (
        "llama_server",
        SLOTS,
        "completed",
    )
    assert "--parallel" in manifest["server"]["flags"]
    assert f"Trace hash:    {manifest['trace_hash']}" in out
    assert server_is_gone(events)
    log = (run_dir / "server.log").read_text(encoding="utf-8", errors="replace")
    assert "cooperative agent" not in log


def in_flight_by_events(events: list[dict[str, Any]]) -> int:
    """The most requests between their dispatch and their settlement, from the log alone."""
    running: set[tuple[Any, ...]] = set()
    most = 0
    for event in events:
        key = tuple(event.get(name) for name in ("agent_id", "epoch", "step", "kind", "ordinal"))
        if event["event"] == "request.dispatched":
            running.add(key)
        elif event["event"] == "request.settled":
            running.discard(key)
        most = max(most, len(running))
    return most


def server_is_gone(events: list[dict[str, Any]]) -> bool:
    [started] = [event for event in events if event["event"] == "server.started"]
    try:
        os.kill(started["pid"], 0)
    except ProcessLookupError:
        return True
    return False


def test_two_serial_runs_on_managed_servers_do_not_disturb_each_other(
    managed: Path, tmp_path: Path
) -> None:
    """The second one is a process of its own, since a run owns its process's main thread."""
    arguments = ("--inference-scheduler", "serial", "--inference-config", managed)
    short = (*arguments, "--epochs", 1, "--steps", 1, "-q")
    scenario = str(project_file("scenarios/llm_llama_cpp.yaml"))
    words = ["run", scenario, "--run-dir", str(tmp_path / "other"), *map(str, short)]
    other = subprocess.Popen([sys.executable, "-m", "swarm_integration", *words])
    with other:
        code = swarm("scenarios/llm_llama_cpp.yaml", tmp_path / "run", *short)
        assert (code, other.wait(timeout=200)) == (0, 0)
    for name in ("run", "other"):
        events = json_lines(tmp_path / name / "inference.jsonl")
        assert in_flight_by_events(events) == 1
        answers = check_answers(tmp_path / name)
        acts = [x["agent_id"] for x in answers if x["kind"] == "act"]
        assert acts == ["llm_1", "llm_2", "llm_3"]
        assert server_is_gone(events)


@pytest.fixture
def own_server(demo_model: Path, tmp_path: Path) -> Iterator[ManagedServer]:
    """A server that a user has started, with the model that the scenario names."""
    spec = ServerSpec(demo_model, 2, 4096, threads=2, alias="llama-3.2-3b-instruct")
    server = ManagedServer(
        spec, binary=find_server("xllamacpp"), log_path=tmp_path / "own-server.log"
    )
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(server):
        yield server


def test_users_own_server_answers_the_scenario_as_it_stands(
    own_server: ManagedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `swarm run scenarios/llm_llama_cpp.yaml`, but for the port."""
    original = project_file("scenarios/llm_llama_cpp.yaml").read_text(encoding="utf-8")
    scenario = tmp_path / "llm_llama_cpp.yaml"
    scenario.write_text(
        original.replace("http://localhost:8080/v1", own_server.base_url), encoding="utf-8"
    )
    run_dir = tmp_path / "run"
    words = ["run", str(scenario), "--inference-scheduler", "batch", "--run-dir", str(run_dir)]
    code = cli.main([*words, "--epochs", "1", "--steps", "1"])
    assert code == 0, capsys.readouterr()
    acts = [x["agent_id"] for x in check_answers(run_dir) if x["kind"] == "act"]
    assert acts == ["llm_1", "llm_2", "llm_3"]
    assert own_server.poll() is None
    manifest = json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))
    assert list(manifest["backends"]) == [own_server.base_url]
    assert manifest["inference"]["max_in_flight"] == 2
