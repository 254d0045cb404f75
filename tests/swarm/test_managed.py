"""How many slots a managed server gets, and in how many of them a prefix is held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scheduler.gguf_models import write_model
from scheduler.server import ManagedServer, ServerSpec
from swarm_integration.config import InferenceConfig
from swarm_integration.managed import managed_slots, prompt_prefixes, with_prefix_copies
from swarm_integration.scenario import Rehearsal, rehearse
from tests.swarm.simulations import llm, write_scenario


@pytest.fixture
def rehearsal(tmp_path: Path) -> Rehearsal:
    """Three personas, each with a prompt to act and one to accept."""
    agents = [llm(2, persona=one) for one in ("honest", "strategic", "open")]
    return rehearse(write_scenario(tmp_path / "s.yaml", agents), {})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "demo.gguf", "demo").path


def config(model: Path, n_gpu_layers: int = 0, **scheduler: Any) -> InferenceConfig:
    backend = {
        "kind": "llama_server",
        "managed": True,
        "model_path": model,
        "n_gpu_layers": n_gpu_layers,
    }
    return InferenceConfig.model_validate({"scheduler": scheduler, "backend": backend})


def copies(settings: InferenceConfig, rehearsal: Rehearsal, slots: int) -> int | str:
    path = settings.backend.model_path
    assert path is not None
    server = ManagedServer(ServerSpec(path, slots, 512), log_path=path.with_suffix(".log"))
    return with_prefix_copies(settings, rehearsal, server).prefix_copies


def test_on_a_cpu_each_prompt_prefix_gets_a_slot(rehearsal: Rehearsal, model: Path) -> None:
    assert prompt_prefixes(rehearsal) == 6
    assert managed_slots(config(model), rehearsal, 2048) == 6


def test_few_prefixes_and_no_scenario_get_four_slots(tmp_path: Path, model: Path) -> None:
    one = rehearse(write_scenario(tmp_path / "one.yaml", [llm()]), {})
    assert managed_slots(config(model), one, 2048) == 4
    assert managed_slots(config(model), None, 2048) == 4


def test_configured_slots_are_never_changed(rehearsal: Rehearsal, model: Path) -> None:
    for slots in (1, 3, 40):
        assert managed_slots(config(model, slots=slots), rehearsal, 2048) == slots


def test_a_gpu_gets_four_slots_and_no_limit(rehearsal: Rehearsal, model: Path) -> None:
    assert managed_slots(config(model, n_gpu_layers=99), rehearsal, 2048) == 4
    assert copies(config(model, n_gpu_layers=99), rehearsal, 12) == "auto"


@pytest.mark.parametrize(("available", "expected"), [(0, 4), (2**40, 6), (None, 6)])
def test_no_more_slots_are_chosen_than_fit_the_memory(
    rehearsal: Rehearsal, model: Path, available: int | None, expected: int
) -> None:
    assert managed_slots(config(model), rehearsal, 2048, lambda: available) == expected


def test_a_missing_model_file_is_left_to_who_loads_it(rehearsal: Rehearsal, tmp_path: Path) -> None:
    assert managed_slots(config(tmp_path / "none.gguf"), rehearsal, 2048) == 4


def test_copies_are_the_slots_divided_by_the_prefixes(rehearsal: Rehearsal, model: Path) -> None:
    found = [copies(config(model), rehearsal, slots) for slots in (1, 4, 6, 11, 12, 18)]
    assert found == [1, 1, 1, 1, 2, 3]


def test_a_configured_number_of_copies_stays(rehearsal: Rehearsal, model: Path) -> None:
    assert copies(config(model, prefix_copies=5), rehearsal, 6) == 5


def test_servers_of_others_have_no_limit(rehearsal: Rehearsal, model: Path) -> None:
    settings = config(model)
    assert with_prefix_copies(settings, rehearsal, None) is settings.scheduler
