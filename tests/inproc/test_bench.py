"""All ways serve the same few prompts of a real simulation, on a real model."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swarm_integration import commands
from swarm_integration.bench.library import NativeClock
from swarm_integration.bench.models import preset_model
from swarm_integration.bench.results import WAYS

for module in ("llama_cpp", "swarm", "xllamacpp"):
    if importlib.util.find_spec(module) is None and os.environ.get("REQUIRE_LLAMA_CPP") != "1":
        pytest.skip(f"{module} is not installed", allow_module_level=True)

ROOT = Path(__file__).parents[2]
SMALL = ["--preset", "demo", "--agents", "4", "--steps", "1", "--rounds", "1", "--threads", "1"]


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    monkeypatch.setenv("LOCALAPPDATA", str(kept))
    # Each way is a process of its own; let it find this code and no other that is installed.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.timeout(900)
def test_all_ways_serve_the_same_work(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--requests", "3", "--slots", "2", "--output-tokens", "6", "--markdown", "found.md"]
    assert commands.main(["bench", "workload", *SMALL, *words, "--json", "found.json"]) == 0
    found = json.loads(Path("found.json").read_text())
    (case,) = found["cases"]
    assert list(case["served"]) == list(WAYS)
    for way, (turn,) in case["served"].items():
        assert (turn["requests"], turn["output_tokens"]) == (3, 18), way
        assert 0 < turn["computed_tokens"] <= turn["prompt_tokens"], way
        assert turn["instructions"], way
    # A server and the library read the same tokens, so the oracles know the same prompts.
    assert len({turn["prompt_tokens"] for (turn,) in case["served"].values()}) == 1
    oracles: dict[str, Any] = {}
    for (one,) in case["measured"].values():
        oracles |= one["oracles"]
    assert set(oracles) == {"e", "f", "g"}
    for way, oracle in oracles.items():
        served = case["served"][way][0]
        assert oracle["prompt_tokens"] == served["prompt_tokens"]
        assert oracle["fewest_tokens"] <= served["computed_tokens"]
    assert case["served"]["g"][0]["native_s"] <= case["served"]["g"][0]["seconds"]
    shown = capsys.readouterr().out
    for text in (shown, Path("found.md").read_text()):
        assert "(g)" in text
        assert "DIFFERENT" in text  # the server and the library are two builds


@pytest.mark.timeout(900)
def test_whole_runs_ask_as_often_with_and_without_the_scheduler() -> None:
    words = ["--ways", "f", "--requests", "1", "--output-tokens", "4", "--whole-runs"]
    assert commands.main(["bench", "workload", *SMALL, *words, "--json", "found.json"]) == 0
    runs = json.loads(Path("found.json").read_text())["whole_runs"]["runs"]["4"]
    assert set(runs) == {"upstream", "server", "inproc"}
    requests = {command: run["requests"] for command, (run,) in runs.items()}
    assert min(requests.values()) >= 4
    assert runs["upstream"][0]["output_tokens"] == 4 * requests["upstream"]
    assert runs["server"][0]["output_tokens"] == 4 * requests["server"]


def test_the_model_is_written_once(tmp_path: Path) -> None:
    path = preset_model("demo", tmp_path)
    written = path.stat().st_mtime_ns
    assert path.name == "demo-Q4_K_M.gguf"
    assert preset_model("demo", tmp_path) == path
    assert path.stat().st_mtime_ns == written
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_clock_counts_functions_of_the_library_alone() -> None:
    def native(value: int) -> int:
        return value + 1

    native.argtypes = []  # type: ignore[attr-defined]  # as ctypes' functions have
    lib = SimpleNamespace(llama_decode=native, llama_helper=lambda: 3, ggml_other=native)
    clock = NativeClock(lib)
    assert lib.llama_helper() == 3
    assert lib.ggml_other(1) == 2
    assert clock.seconds == 0
    assert lib.llama_decode(1) == 2
    assert clock.seconds > 0
