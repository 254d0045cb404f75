"""Which backend answers which agent, and with which parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scheduler.backends.fake import FakeBackend
from scheduler.backends.llama_server import LlamaServerBackend
from scheduler.config import BackendConfig
from scheduler.errors import ConfigError
from swarm_integration.errors import ScenarioError
from swarm_integration.scenario import rehearse
from swarm_integration.services import Fleet, muster
from tests.swarm.simulations import awm, council, llm, write_scenario


def fleet(
    tmp_path: Path, agents: list[Any], managed_url: str | None = None, **config: Any
) -> Fleet:
    scenario = write_scenario(tmp_path / "s.yaml", agents, awm={"enabled": True})
    return muster(rehearse(scenario, {}), BackendConfig(**config), managed_url=managed_url)


def test_auto_gives_each_server_of_the_scenario_one_backend(tmp_path: Path) -> None:
    agents = [
        llm(2, base_url="http://one:1/v1"),
        llm(base_url="http://two:2/v1/"),
        llm(base_url="http://one:1/v1/"),
    ]
    found = fleet(tmp_path, agents)
    assert list(found.backends) == ["http://one:1/v1", "http://two:2/v1"]
    served = [service.backend for service in found.services.values()]
    assert served == ["http://one:1/v1"] * 2 + ["http://two:2/v1", "http://one:1/v1"]
    assert found.names_must_match


def test_any_other_kind_serves_every_agent_whatever_it_names(tmp_path: Path) -> None:
    agents = [llm(provider="openai"), llm(model_path="x.gguf"), council(2), awm()]
    found = fleet(tmp_path, agents, kind="fake")
    assert {service.backend for service in found.services.values()} == {"default"}
    assert len(found.services) == 5
    assert isinstance(found.backends["default"], FakeBackend)
    assert not found.names_must_match


def test_scripted_agents_need_no_backend(tmp_path: Path) -> None:
    found = fleet(tmp_path, [{"type": "honest"}])
    assert (found.backends, found.services) == ({}, {})


def test_managed_server_is_used_instead_of_the_configured_address(tmp_path: Path) -> None:
    config = {"kind": "llama_server", "managed": True, "model_path": Path("m.gguf")}
    found = fleet(tmp_path, [llm()], managed_url="http://127.0.0.1:4/v1", **config)
    backend = found.backends["default"]
    assert isinstance(backend, LlamaServerBackend)
    assert "127.0.0.1:4" in repr(backend)
    assert "8080" not in repr(backend)


def test_parameters_come_from_the_agents_block_and_not_from_defaults(tmp_path: Path) -> None:
    block: dict[str, Any] = {
        "temperature": 0.0,
        "max_tokens": 9,
        "timeout": 3,
        "max_retries": 0,
        "seed": 4,
    }
    service = fleet(tmp_path, [llm(**block)], kind="fake", thinking=False).services["llm_1"]
    assert (service.sampling.temperature, service.sampling.max_tokens) == (0.0, 9)
    assert (service.timeout_s, service.max_retries, service.base_seed) == (3.0, 0, 4)
    assert service.sampling.thinking is False


@pytest.mark.parametrize(("limit", "timeout", "expected"), [(5, 60, 5.0), (90, 60, 60.0)])
def test_councils_limit_and_members_timeout_bound_an_attempt_together(
    limit: float, timeout: float, expected: float, tmp_path: Path
) -> None:
    section = council(2, timeout_per_member=limit)
    for member in section["council"]["members"]:
        member["llm"] = {**member["llm"], "timeout": timeout}
    found = fleet(tmp_path, [section], kind="fake")
    assert {service.timeout_s for service in found.services.values()} == {expected}


def test_two_logins_at_one_server_are_refused(tmp_path: Path) -> None:
    agents = [llm(base_url="http://a:b@one:1/v1"), llm(base_url="http://c:d@one:1/v1")]
    with pytest.raises(ScenarioError, match=r"llm_2 logs in at http://one:1/v1 otherwise"):
        fleet(tmp_path, agents)


def test_missing_api_key_is_named_by_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"SOME_KEY.*export SOME_KEY="):
        fleet(tmp_path, [llm()], kind="llama_server", api_key_env="SOME_KEY")
