"""A run's identity holds how its own server was started, where the server does not tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scheduler.config import validate
from scheduler.server import ManagedServer, ServerSpec
from swarm_integration.config import InferenceConfig
from swarm_integration.identity import answerers, asked_for, differences, explained
from tests.swarm.simulations import llm, write_scenario

MANAGED = {"kind": "llama_server", "managed": True, "model_path": "m.gguf", "threads": 2}


def identity_with(
    tmp_path: Path,
    backend: dict[str, Any],
    profile: str = "fast",
    server: ManagedServer | None = None,
) -> dict[str, Any]:
    data = {"backend": backend, "determinism": {"server_profile": profile}}
    config = validate(InferenceConfig, data, source="test")
    asked = asked_for(
        scenario=write_scenario(tmp_path / "s.yaml", [llm()]),
        epochs=1,
        steps_per_epoch=1,
        seed=1,
        mode="batch",
        config=config,
        repairs=(),
    )
    return {**asked, **answerers(config, {}, {}, server)}


@pytest.mark.parametrize(
    ("change", "profile", "says"),
    [
        ({}, "invariant", "managed_server.profile was 'fast', is 'invariant'"),
        ({"threads": 3}, "fast", "managed_server.threads was 2, is 3"),
        ({"n_gpu_layers": 9}, "fast", "managed_server.n_gpu_layers was 0, is 9"),
    ],
)
def test_a_managed_server_that_is_started_otherwise_is_another_run(
    change: dict[str, Any], profile: str, says: str, tmp_path: Path
) -> None:
    before = identity_with(tmp_path, MANAGED)
    now = identity_with(tmp_path, {**MANAGED, **change}, profile)
    assert list(differences(before, now)) == [says]


def test_kernels_that_a_server_has_by_its_build_make_another_run(tmp_path: Path) -> None:
    def identity_on(environment: dict[str, str], *flags: str) -> dict[str, Any]:
        spec = ServerSpec(tmp_path / "m.gguf", slots=1, ctx_per_slot=256)
        server = ManagedServer(spec, log_path=tmp_path / "log")
        server.environment, server.command = environment, ["llama-server", *flags]
        return identity_with(tmp_path, MANAGED, server=server)

    before = identity_on({}, "--no-repack")
    assert list(differences(before, identity_on({}, "--no-repack", "--slots"))) == []
    assert list(differences(before, identity_on({"A": "1"}))) == [
        "managed_server.environment.A was None, is '1'",
        "managed_server.repacking was False, is True",
    ]


def test_time_outs_and_restarts_of_a_managed_server_may_change(tmp_path: Path) -> None:
    mended = {**MANAGED, "ready_timeout_s": 9.0, "max_restarts": 7}
    assert identity_with(tmp_path, MANAGED) == identity_with(tmp_path, mended)


def test_without_a_managed_server_the_profile_does_not_count(tmp_path: Path) -> None:
    other = {"kind": "fake"}
    assert identity_with(tmp_path, other) == identity_with(tmp_path, other, "invariant")


def test_what_only_one_of_two_runs_has_is_a_difference() -> None:
    assert list(differences({"a": {}}, {"a": {"b": 1}})) == ["a.b was None, is 1"]
    assert list(differences({"a": {"b": 1}}, {"a": {}})) == ["a.b was 1, is None"]


def model(kind: str, name: str, build: str, fingerprint: str) -> dict[str, str]:
    return {"kind": kind, "model": name, "build": build, "fingerprint": fingerprint}


def answered_by(one: dict[str, str], agents: int, temperature: float = 1.0) -> dict[str, Any]:
    each = {"model": one, "sampling": {"temperature": temperature}}
    return {"seed": 1, "agents": {f"llm_{n}": each for n in range(1, agents + 1)}}


def test_agents_of_another_model_are_told_of_once() -> None:
    fake = answered_by(model("fake", "fake", "1", "a" * 64), 12)
    server = answered_by(model("llama_server", "demo.gguf", "", "b" * 64), 12, 0.5)
    assert explained(fake, fake) == ""
    assert explained(fake, server) == (
        "the model of llm_1, llm_10 and 10 more was 'fake' (build 1, kind fake), "
        "is 'demo.gguf' (kind llama_server); "
        "agents.llm_1.sampling.temperature was 1.0, is 0.5; "
        "agents.llm_10.sampling.temperature was 1.0, is 0.5 and 10 more"
    )
    assert fake["agents"]["llm_1"]["model"]["kind"] == "fake"


def test_a_model_of_the_same_name_is_told_by_its_fingerprint() -> None:
    one, other = (answered_by(model("k", "m", "1", each * 64), 1) for each in "ab")
    assert explained(one, other) == (
        "the model of llm_1 was 'm' (build 1, kind k) with the fingerprint aaaaaaaaaaaa, "
        "is 'm' (build 1, kind k) with the fingerprint bbbbbbbbbbbb"
    )


def test_what_is_not_known_yet_is_no_difference() -> None:
    assert explained({"seed": 1, "mode": "batch"}, {"mode": "batch"}) == ""
    assert explained({"seed": 1}, {"mode": "batch"}) == "mode was None, is 'batch'"


@pytest.mark.parametrize("agents", [None, [], 3, {"llm_1": 1}, {"llm_1": {"model": []}}])
def test_a_damaged_identity_is_another_one(agents: Any) -> None:
    now = answered_by(model("fake", "fake", "1", "a" * 64), 1)
    assert "agents" in explained({"seed": 1, "agents": agents}, now)
    assert explained(5, now).startswith("agents")
    odd = {"seed": 1, "agents": {"llm_1": {**now["agents"]["llm_1"], "model": {"fingerprint": 1}}}}
    assert "the model of llm_1 was None" in explained(odd, now)
