"""Whole SWARM runs in this process: one trace hash for any number of slots."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import anyio
import pytest
import yaml

from scheduler.backends.llama_inproc import LlamaInprocBackend
from scheduler.engine import Scheduler
from swarm_integration import cli
from swarm_integration.bench.workload import Workload, record
from swarm_integration.files import project_file
from swarm_integration.schemas import PromptLayout

for module in ("llama_cpp", "swarm"):
    if importlib.util.find_spec(module) is None and os.environ.get("REQUIRE_LLAMA_CPP") != "1":
        pytest.skip(f"{module} is not installed", allow_module_level=True)


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    monkeypatch.setenv("LOCALAPPDATA", str(kept))
    monkeypatch.setenv("SWARM_INFERENCE_KEEP_HASH_SEED", "1")


@pytest.fixture
def words(models: dict[str, Path], tmp_path: Path) -> list[str]:
    """Options of a run of three agents with short answers, on a small model."""
    scenario = yaml.safe_load(
        project_file("scenarios/llm_llama_cpp.yaml").read_text(encoding="utf-8")
    )
    for agent in scenario["agents"]:
        if agent["type"] == "llm":
            agent["llm"] |= {"max_tokens": 40, "timeout": 300, "temperature": 0.8}
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(scenario), encoding="utf-8")
    config = {
        "scheduler": {"max_reasks": 1},
        "backend": {
            "kind": "llama_inproc",
            "model_path": str(models["Q4_K_M"]),
            "threads": 1,
            "engine": "batched",
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    common = ["--inference-scheduler", "batch", "--inference-config", str(tmp_path / "config.yaml")]
    return ["run", str(path), *common, "--seed", "42", "--epochs", "1", "--steps", "2", "-q"]


def manifest(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    return found


def laid_out(tmp_path: Path) -> list[str]:
    """The same configuration, with what is shared in front."""
    config = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "shared_first.yaml"
    path.write_text(yaml.safe_dump({**config, "prompt_layout": "shared_first"}), encoding="utf-8")
    return ["--inference-config", str(path)]


def test_shared_first_has_one_trace_hash_too(words: list[str], tmp_path: Path) -> None:
    manifests = []
    for slots in (1, 4, 16):
        run = tmp_path / f"slots-{slots}"
        more = [*laid_out(tmp_path), "--slots", str(slots), "--run-dir", str(run)]
        assert cli.main([*words, *more]) == 0
        manifests.append(manifest(run))
    assert len({one["trace_hash"] for one in manifests}) == 1
    assert manifests[0]["prompts"]["laid_out"]["shared_first"] >= 6


@pytest.mark.parametrize("engine", ["batched", "locked"])
def test_shared_first_leaves_less_to_be_computed(
    models: dict[str, Path], kept: Path, tmp_path: Path, engine: Any
) -> None:
    computed: dict[PromptLayout, int] = {}

    async def ask(layout: PromptLayout, workload: Workload) -> None:
        backend = LlamaInprocBackend(
            models["Q8_0"], n_ctx=2048, n_threads=1, engine=engine, slots=4, cache_folder=kept
        )
        async with Scheduler(backend) as scheduler:
            acts = workload.rounds[0]
            asked = [one.request(backend="default", model="", timeout_s=300) for one in acts]
            usages = [one.answers[0].usage for one in await scheduler.run_step(asked)]
            computed[layout] = sum(one.prompt_tokens - one.cached_tokens for one in usages)
        await backend.aclose()

    for layout in get_args(PromptLayout):
        anyio.run(ask, layout, record(12, 1, layout, tmp_path).with_output_tokens(2))
    assert computed["shared_first"] < 0.6 * computed["upstream"]


def test_one_trace_hash_for_1_4_and_16_slots(words: list[str], tmp_path: Path) -> None:
    manifests = []
    for slots in (1, 4, 16):
        run = tmp_path / f"slots-{slots}"
        assert cli.main([*words, "--slots", str(slots), "--run-dir", str(run)]) == 0
        manifests.append(manifest(run))
    assert len({one["trace_hash"] for one in manifests}) == 1
    [facts] = [backend["facts"] for backend in manifests[0]["backends"].values()]
    assert facts["engine"] == "batched"
    assert facts["calibration"]["level"] == "invariant"
    transcript = (tmp_path / "slots-4" / "transcript.jsonl").read_text(encoding="utf-8")
    texts = [json.loads(line)["text"] for line in transcript.splitlines()]
    assert len(set(texts)) >= 6


def test_a_killed_run_is_resumed_with_other_slots(words: list[str], tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cli.main([*words, "--slots", "4", "--run-dir", str(whole)]) == 0
    command = [sys.executable, "-m", "swarm_integration", *words, "--slots", "2"]
    with subprocess.Popen([*command, "--run-dir", str(broken)], cwd=tmp_path) as process:
        log = broken / "inference.jsonl"
        until = time.monotonic() + 90
        while process.poll() is None and time.monotonic() < until:
            if log.exists() and log.read_text(encoding="utf-8").count("request.settled") >= 2:
                break
            time.sleep(0.005)
        process.kill()
    resumed = [*words, "--slots", "16", "--run-dir", str(broken), "--resume"]
    assert cli.main(resumed) == 0
    assert manifest(broken)["trace_hash"] == manifest(whole)["trace_hash"]


def test_runs_of_a_sweep_share_one_model_and_keep_their_hashes(
    words: list[str], tmp_path: Path
) -> None:
    """Three runs at a time on four slots; each as if it had the model to itself."""
    [_, scenario, *options] = words
    rest = [word for word in options if word not in ("--seed", "42")]
    output = tmp_path / "r.csv"
    sweep = ["sweep", scenario, *rest, "--seeds", "42-44", "--jobs", "3", "--output", str(output)]
    assert cli.main([*sweep, "--slots", "4"]) == 0
    hashes = {}
    for seed in (42, 43, 44):
        run = tmp_path / "r.runs" / f"base-seed{seed}"
        hashes[seed] = manifest(run)["trace_hash"]
    assert len(set(hashes.values())) == 3
    for seed in (42, 44):
        alone = tmp_path / f"alone-{seed}"
        again = ["run", scenario, *rest, "--seed", str(seed), "--slots", "4"]
        assert cli.main([*again, "--run-dir", str(alone)]) == 0
        assert manifest(alone)["trace_hash"] == hashes[seed]
