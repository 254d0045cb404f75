"""A run's identity holds how its own server was started, where the server does not tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scheduler.config import validate
from scheduler.server import ManagedServer, ServerSpec
from swarm_integration.config import InferenceConfig
from swarm_integration.identity import differences, identity
from tests.swarm.simulations import llm, write_scenario

MANAGED = {"kind": "llama_server", "managed": True, "model_path": "m.gguf", "threads": 2}


def identity_with(
    tmp_path: Path,
    backend: dict[str, Any],
    profile: str = "fast",
    server: ManagedServer | None = None,
) -> dict[str, Any]:
    data = {"backend": backend, "determinism": {"server_profile": profile}}
    return identity(
        scenario=write_scenario(tmp_path / "s.yaml", [llm()]),
        epochs=1,
        steps_per_epoch=1,
        seed=1,
        mode="batch",
        config=validate(InferenceConfig, data, source="test"),
        services={},
        backends={},
        repairs=(),
        memory_sha256=None,
        server=server,
    )


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
