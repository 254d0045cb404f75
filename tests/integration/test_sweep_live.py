"""Runs of a sweep that share one real llama-server give the hash of each run alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from swarm_integration import cli
from swarm_integration.files import project_file


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp")
    pytest.importorskip("swarm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMA_SERVER", "xllamacpp")
    monkeypatch.setenv("SWARM_INFERENCE_KEEP_HASH_SEED", "1")


def test_a_managed_invariant_server_gives_each_run_of_a_sweep_its_own_hash(
    demo_model: Path,
) -> None:
    scenario = yaml.safe_load(
        project_file("scenarios/llm_batch_12.yaml").read_text(encoding="utf-8")
    )
    scenario["agents"] = [
        {**agent, "count": 1, "llm": {**agent["llm"], "max_tokens": 48, "timeout": 300}}
        for agent in scenario["agents"]
        if agent["type"] == "llm"
    ][:3]
    Path("s.yaml").write_text(yaml.safe_dump(scenario), encoding="utf-8")
    config = {
        "scheduler": {"slots": 3, "max_reasks": 1},
        "backend": {
            "kind": "llama_server",
            "managed": True,
            "model_path": str(demo_model),
            "threads": 1,
        },
        "determinism": {"server_profile": "invariant"},
    }
    Path("managed.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    common = ["--inference-config", "managed.yaml", "--epochs", "1", "--steps", "2", "-q"]
    words = ["sweep", "s.yaml", "--seeds", "5-7", "--jobs", "3", "--output", "r.csv", *common]
    assert cli.main([*words, "--inference-scheduler", "serial"]) == 0
    for seed in (5, 7):
        mode = ["--inference-scheduler", "serial", "--run-dir", f"alone-{seed}"]
        assert cli.main(["run", "s.yaml", "--seed", str(seed), *mode, *common]) == 0
        together, alone = manifest(Path(f"r.runs/base-seed{seed}")), manifest(Path(f"alone-{seed}"))
        assert together["trace_hash"] == alone["trace_hash"]
        assert together["server"]["flags"]
    logs = [path.read_text("utf-8") for path in Path("r.runs").glob("*/inference.jsonl")]
    told = [json.loads(line) for log in logs for line in log.splitlines()]
    most = max(one["in_flight"] for one in told if one["event"] == "request.dispatched")
    assert most == 3  # in serial order one run alone never has two in flight
    assert Path("r.runs/server.log").is_file()
    assert not list(Path("r.runs").glob("*/server.log"))


def manifest(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    return found
