"""`certify` on a real llama-server of each profile, and the run that quotes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler.gguf_models import ModelShape, write_model
from swarm_integration import cli, commands
from swarm_integration.files import project_file

SLOTS = 3


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setenv("LLAMA_SERVER", "xllamacpp")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quantized, and smaller than the demo's."""
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    shape = ModelShape("small", layers=2, width=128, heads=2, kv_heads=2, ff_width=256)
    write_model(path, shape)
    return path


def config(model: Path, profile: str) -> Path:
    backend = {"kind": "llama_server", "managed": True, "model_path": str(model), "threads": 1}
    data = {
        "scheduler": {"slots": SLOTS},
        "backend": backend,
        "determinism": {"server_profile": profile},
    }
    path = Path(f"{profile}.yaml")
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def certified(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    words = ["certify", "--quick", "--json", "--inference-config", str(path)]
    assert commands.main(words) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def quote(path: Path, name: str) -> dict[str, Any]:
    scenario = str(project_file("scenarios/llm_llama_cpp.yaml"))
    words = ["run", scenario, "--inference-scheduler", "batch", "--inference-config", str(path)]
    assert cli.main([*words, "--run-dir", name, "--epochs", "1", "--steps", "1", "-q"]) == 0
    manifest = json.loads((Path(name) / "manifest.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = manifest["determinism"]["backend"]["default"]
    return found


def test_the_invariant_profile_is_certified_and_quoted_for_itself_alone(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    invariant, fast = config(model, "invariant"), config(model, "fast")
    found = certified(invariant, capsys)
    assert (found["level"], found["slots"], found["most_in_flight"]) == ("invariant", SLOTS, SLOTS)
    assert found["compared"] == ["token ids", "log-probabilities"]
    assert all(one["cached"] and one["fresh"] for one in found["evidence"][::2])
    assert found["conditions"]["server"]["profile"] == "invariant"

    assert quote(invariant, "same")["level"] == "invariant"
    # Its fingerprint is the same: only the conditions tell the two profiles apart.
    other = quote(fast, "other")
    assert other["level"] == "not certified"
    assert "conditions" in other["summary"]


def test_the_fast_profile_gets_the_level_that_was_measured(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = certified(config(model, "fast"), capsys)
    varying = [one for one in found["evidence"] if one["varying"]]
    assert found["level"] == ("ordered" if varying else "invariant")
    assert found["conditions"]["server"]["profile"] == "fast"
