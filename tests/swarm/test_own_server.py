"""`demo` and `serve` in this process, with a program in llama-server's place that answers."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from scheduler.gguf_models import ModelShape, write_model
from swarm_integration.commands import main
from swarm_integration.replay import replay
from tests.swarm.simulations import manifest
from tests.wire.flag_server import ENDS, put_program

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="scripts and signals of POSIX")
SHAPE = ModelShape("tiny", layers=1, width=64, heads=2, kv_heads=1, ff_width=96)


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_SERVER", str(put_program(tmp_path / "llama-server")))


def test_demo_writes_its_model_and_shows_a_run_on_its_own_server(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["demo", "--slots", "3", "--seed", "5", "--run-dir", "shown"]) == 0
    out = capfd.readouterr().out
    facts = manifest(Path("shown"))
    assert Path("models/demo.gguf").stat().st_size > 5_000_000
    assert "$ swarm run " in out
    assert "--seed 5 --inference-scheduler batch --slots 3" in out
    assert facts["trace_hash"] in out
    assert out.index("Demo model: models/demo.gguf (5.7 MB") < out.index("Inference\n")
    assert out.rstrip().endswith("Another processor or build may give another one.")
    assert (facts["state"], facts["identity"]["seed"]) == ("completed", 5)
    assert replay(Path("shown")).problem is None


def test_demo_with_json_prints_its_facts_alone(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--slots", "2", "--json"]) == 0
    out, err = capfd.readouterr()
    told = json.loads(out)
    facts = manifest(Path(told["run_dir"]))
    assert told["state"] == "completed"
    assert told["trace_hash"] == facts["trace_hash"]
    assert told["inference"]["max_in_flight"] == 2
    assert "About the model: " in err
    assert facts["identity"]["seed"] == 42


def test_demo_that_can_not_run_says_so_and_prints_no_facts(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_SERVER", "/nowhere/llama-server")
    assert main(["demo", "--run-dir", "shown", "--json"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "/nowhere/llama-server" in err
    assert "About the model" not in err


def serve(model: Path, *words: object) -> int:
    given = ["serve", "--model", model, "--port", 0, "--slots", 2, "--context-per-slot", 512]
    return main([str(word) for word in (*given, "--threads", 1, *words)])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny.gguf", SHAPE).path


def test_serve_says_what_to_type_next_and_that_its_server_has_ended(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve(model, "--alias", ENDS, "--log", "logs/server.log") == 1
    out, err = capsys.readouterr()
    ready, following, other, last = out.splitlines()
    url = ready.split()[1]
    assert ready == (
        f"ready: {url} (2 slots of 512 tokens, 1 thread, profile fast, log logs/server.log)"
    )
    assert "--inference-config configs/llama_server.yaml" in following
    assert other.strip() == f"with base_url: {url} in that file"
    assert last == "Ctrl-C stops it."
    assert err.splitlines()[0] == f"starting llama-server with {model} ..."
    assert err.splitlines()[1:] == [
        "error: the server has ended",
        "  why:  exit status 3",
        "  type: see logs/server.log",
    ]
    assert Path("logs/server.log").exists()


class InterruptingStream(io.StringIO):
    """Types Ctrl-C once, when it has been told where the server is."""

    typed = False

    def flush(self) -> None:
        if "pid" in self.getvalue() and not self.typed:
            self.typed = True
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_stops_the_server_and_is_no_error(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = InterruptingStream()
    monkeypatch.setattr(sys, "stdout", stream)
    assert serve(model, "--json") == 0
    facts = json.loads(stream.getvalue())
    assert (facts["slots"], facts["context_per_slot"], facts["threads"]) == (2, 512, 1)
    assert capsys.readouterr().err.splitlines()[-1] == "the server was stopped"
    with pytest.raises(ProcessLookupError):
        os.kill(facts["pid"], 0)
