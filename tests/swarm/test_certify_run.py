"""`certify --run`: a whole run in many ways, and what would make its answer worthless."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from swarm_integration import commands
from swarm_integration.certify_run import table
from swarm_integration.config import InferenceConfig
from swarm_integration.matrix import Cell, Plan, fake_cells, measure, model_cells
from tests.swarm.simulations import llm, write_config, write_scenario

REPRODUCIBLE = Path(__file__).parent / "reproducible"


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    return write_scenario(tmp_path / "s.yaml", [llm(3, persona="honest")], epochs=1, steps=2)


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    return write_config(tmp_path / "fake.yaml", backend={"kind": "fake"})


def test_a_run_on_the_fake_backend_is_one_and_writes_nothing_here(
    scenario: Path,
    fake: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Somebody may have certified this backend before.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    before = sorted(Path().iterdir())
    words = ["--inference-config", str(fake), "--slots", "1,2,3", "--quick", "--json"]
    code = commands.main(["certify", "--run", str(scenario), *words])
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    [one] = found["scenarios"]
    assert one["equal"]
    assert {run["slots"] for run in one["runs"]} == {1, 2, 3}
    assert {run["hash_seed"] for run in one["runs"]} == {"0", "1", "random"}
    assert len({run["trace_hash"] for run in one["runs"]}) == 1
    assert one["runs"][0]["backend"] == "default (not certified)"
    assert sorted(Path().iterdir()) == before


def test_runs_that_differ_are_told() -> None:
    cells = [Cell("0", repaired=False), Cell("1", repaired=False)]
    config = InferenceConfig.model_validate({"backend": {"kind": "fake"}})
    found = measure(Plan([REPRODUCIBLE / "tasks.yaml"], config, cells, at_once=2))
    assert not found["equal"]
    assert "DIFFERENT" in list(table(found))[-1]


def test_a_cell_that_cannot_be_run_is_named_and_says_why(
    scenario: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(Path("server.yaml"), backend={"kind": "llama_server"})
    backend = yaml.safe_load(config.read_text(encoding="utf-8"))["backend"]
    write_config(config, backend={**backend, "base_url": "http://127.0.0.1:9/v1"})
    code = commands.main(["certify", "--run", str(scenario), "--inference-config", str(config)])
    err = capsys.readouterr().err
    assert code == 2
    assert "PYTHONHASHSEED=0" in err
    assert "no llama-server could be reached" in err


def test_a_memory_that_each_run_would_change_is_refused(
    fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = str(tmp_path / "memory.json")
    path = write_scenario(tmp_path / "s.yaml", [llm(1)], outputs={"graph_memory_path": memory})
    code = commands.main(["certify", "--run", str(path), "--inference-config", str(fake)])
    assert code == 2
    assert "keeps its graph memory in" in capsys.readouterr().err


def test_cells_cover_hash_seeds_and_slots() -> None:
    cells = fake_cells((1, 4, 16))
    assert {cell.hash_seed for cell in cells} == {"0", "1", "random"}
    assert {cell.slots for cell in cells} == {1, 4, 16}
    assert any(cell.latency_s and cell.fault_rate for cell in cells)
    assert len(set(cells)) == len(cells) == 10
    real = model_cells((1, 4))
    assert {(cell.hash_seed, cell.slots) for cell in real} == {
        (seed, slots) for seed in ("0", "1", "random") for slots in (1, 4)
    }
    assert not any(cell.latency_s or cell.fault_rate for cell in real)
    assert [cell.slots for cell in model_cells((1, 4, 8, 16), quick=True)] == [1, 4, 8, 16]
    assert [cell.slots for cell in model_cells(())] == [None] * 3
    assert len({cell.slots for cell in fake_cells((2,), quick=True)}) == 1
