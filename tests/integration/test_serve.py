"""`swarm-inference serve` and the doctor with a real llama-server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from scheduler.server_command import default_threads
from swarm_integration.commands import main

pytest.importorskip("xllamacpp")
pytest.importorskip("swarm")

from tests.swarm.simulations import llm, write_scenario  # needs SWARM

ROOT = Path(__file__).parent.parent.parent

posix = pytest.mark.skipif(sys.platform == "win32", reason="sends the signals of POSIX")


@contextmanager
def serving(cwd: Path, *words: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "swarm_integration.commands", "serve", *map(str, words)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "LLAMA_SERVER": "xllamacpp"}
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@posix
def test_serve_says_where_it_is_and_ctrl_c_stops_it(demo_model: Path, tmp_path: Path) -> None:
    words = ("--model", demo_model, "--port", 0, "--slots", 2, "--context-per-slot", 512)
    with serving(tmp_path, *words, "--profile", "invariant", "--json") as process:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        assert facts["slots"] == 2
        assert facts["context_per_slot"] == 512
        assert facts["threads"] == default_threads()
        assert facts["profile"] == "invariant"
        props = httpx.get(facts["base_url"].removesuffix("/v1") + "/props").json()
        assert props["total_slots"] == 2
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "")
        assert err.splitlines()[-1] == "the server was stopped"
        with pytest.raises(httpx.ConnectError):
            httpx.get(facts["base_url"])
    assert (tmp_path / "runs/server.log").stat().st_size > 0


def test_serve_on_a_taken_port_says_so_and_what_to_type(
    demo_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--model", str(demo_model), "--port", str(port)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert f"error: can't listen on 127.0.0.1:{port}" in lines
    assert any(line.startswith("  type: stop what uses it, or take another") for line in lines)


def test_doctor_measures_the_context_of_a_real_server(
    openai_endpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    def checks(max_tokens: int, model: str) -> dict[str, dict[str, str]]:
        block = llm(1, base_url=openai_endpoint, max_tokens=max_tokens, model=model)
        scenario = write_scenario(tmp_path / "s.yaml", [block])
        main(["doctor", str(scenario), "--json"])
        data = json.loads(capsys.readouterr().out)
        return {one["check"]: one for one in data["checks"]}

    fits = f"scenario on {openai_endpoint}"
    healthy = checks(64, "demo")
    assert "3 slots of 4,096 tokens, model demo" in healthy[f"server {openai_endpoint}"]["says"]
    assert healthy[fits]["level"] == "ok"
    small = checks(4000, "demo")[fits]
    assert small["level"] == "error"
    assert "a slot of" in small["says"]
    assert "'demo'" in checks(64, "llama-3")[fits]["says"]
