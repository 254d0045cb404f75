"""One run on two real llama-servers: the same trace hash as on one, also when one is killed."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from anyio.from_thread import start_blocking_portal

from scheduler.server import ManagedServer, ServerSpec, find_server
from swarm_integration import cli
from swarm_integration.files import project_file

pytest.importorskip("xllamacpp")


@pytest.fixture
def servers(demo_model: Path, tmp_path: Path) -> Iterator[list[ManagedServer]]:
    """Two servers of equal build, model and settings, whose arithmetic is invariant."""
    spec = ServerSpec(demo_model, slots=2, ctx_per_slot=4096, threads=1, profile="invariant")
    binary = find_server("xllamacpp")
    made = [ManagedServer(spec, binary=binary, log_path=tmp_path / f"{n}.log") for n in range(2)]
    with start_blocking_portal() as portal, ExitStack() as stack:
        yield [stack.enter_context(portal.wrap_async_context_manager(one)) for one in made]


def run(tmp_path: Path, name: str, servers: list[ManagedServer]) -> dict[str, Any]:
    """Run the 12 agents for a step and return the manifest."""
    backend = {"kind": "llama_server", "base_url": [one.base_url for one in servers]}
    config = tmp_path / f"{name}.yaml"
    config.write_text(yaml.safe_dump({"backend": backend}), encoding="utf-8")
    words = ["run", str(project_file("scenarios/llm_batch_12.yaml")), "--seed", "42", "--quiet"]
    words += ["--epochs", "1", "--steps", "1", "--inference-scheduler", "batch"]
    words += ["--inference-config", str(config), "--run-dir", str(tmp_path / name)]
    assert cli.main(words) == 0
    data: dict[str, Any] = json.loads((tmp_path / name / "manifest.json").read_text("utf-8"))
    return data


def events(tmp_path: Path, name: str) -> list[dict[str, Any]]:
    text = (tmp_path / name / "inference.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def kill_after(path: Path, answers: int, server: ManagedServer) -> threading.Thread:
    """Kill a server once the run in `path` has that many answers."""

    def watch() -> None:
        log, pause = path / "inference.jsonl", threading.Event()
        while not log.exists() or log.read_text("utf-8").count('"request.answered"') < answers:
            pause.wait(0.02)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.timeout(400)
def test_two_servers_share_a_run_and_its_hash_is_that_of_one(
    servers: list[ManagedServer], tmp_path: Path
) -> None:
    one = run(tmp_path, "one", servers[:1])
    two = run(tmp_path, "two", servers)
    assert two["trace_hash"] == one["trace_hash"]
    assert two["backends"]["default"]["slots"] == 4
    assert two["backends"]["default"]["fingerprint"] == one["backends"]["default"]["fingerprint"]
    slots = {
        line["slot"] for line in events(tmp_path, "two") if line["event"] == "request.answered"
    }
    assert slots == {0, 1, 2, 3}
    killer = kill_after(tmp_path / "killed", 3, servers[1])
    killed = run(tmp_path, "killed", servers)
    killer.join(10)
    assert killed["trace_hash"] == one["trace_hash"]
    lost = [line for line in events(tmp_path, "killed") if line["event"] == "server.lost"]
    assert [line["server"] for line in lost] == [servers[1].base_url]
