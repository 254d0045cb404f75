"""What the doctor says of servers, keys and models in process; servers answer by script."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from swarm.agents import llm_prompts

from scheduler.config import BackendConfig
from scheduler.gguf_models import ModelShape, write_model
from swarm_integration.commands import main
from swarm_integration.compat import replaced
from swarm_integration.doctor.case import DoctorOptions
from swarm_integration.doctor.examination import examine
from swarm_integration.doctor.findings import Finding
from swarm_integration.doctor.servers import (
    START_SERVER,
    check_configured_key,
    check_default_server,
    check_program,
)
from tests.swarm.simulations import llm, write_config, write_scenario
from tests.wire.scripted_server import (
    MODELS,
    PROPS,
    TOKENIZE,
    Reply,
    ScriptedServer,
    error_body,
    props_body,
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="programs and modes of POSIX")
NO_KEY = Reply(error_body(401, "Invalid API Key", "authentication_error"), status=401)
SHAPE = ModelShape("tiny", layers=1, width=64, heads=2, kv_heads=1, ff_width=96)


@pytest.fixture(autouse=True)
def quick_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the doctor imports in a child to see whether it works, without its half second."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "llama_cpp.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(site))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        yield scripted


def one(findings: list[Finding], check: str) -> Finding:
    [found] = [each for each in findings if each.check.startswith(check)]
    return found


def examined(scenario: Path, config: Path | None = None, part: str = "Servers") -> list[Finding]:
    return list(dict(examine(DoctorOptions(scenario, config))).get(part, []))


async def listed(findings: AsyncIterator[Finding]) -> list[Finding]:
    return [found async for found in findings]


# The program


def put_program(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    path.chmod(0o755)
    return path


@posix
@pytest.mark.parametrize("content", ["#!/bin/sh\necho hello\n", "no program\n"])
def test_a_program_that_does_not_tell_its_version_is_doubted(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = put_program(tmp_path / "llama-server", content)
    monkeypatch.setenv("LLAMA_SERVER", str(program))
    needed, unneeded = check_program(needed=True), check_program(needed=False)
    assert (needed.level, unneeded.level) == ("error", "warning")
    assert needed.says == f"{program} does not tell its version; does it start?"
    assert needed.mend == f"{program} --version"
    put_program(program, "#!/bin/sh\necho 'version: 1234 (abc)'\n")
    assert check_program(needed=True).says == f"{program}, version 1234 (abc)"


# A server where none need run


async def test_a_server_that_runs_already_is_named_with_what_it_is(server: ScriptedServer) -> None:
    [found] = await listed(check_default_server(server.base_url))
    assert found.level == "ok"
    assert found.says == "ready, 4 slots of 2,048 tokens, model demo, build b1234-abc"
    assert found.facts["slots"] == 4


async def test_a_server_that_wants_a_key_is_not_taken_for_another_program(
    server: ScriptedServer,
) -> None:
    server.on(PROPS, NO_KEY)
    [found] = await listed(check_default_server(server.base_url))
    assert (found.check, found.level) == (f"server {server.base_url}", "warning")
    assert found.mend == "set backend.api_key_env to the key's variable"


async def test_what_listens_and_is_no_server_is_named_by_its_port(server: ScriptedServer) -> None:
    server.on(PROPS, Reply([1, 2]))
    [found] = await listed(check_default_server(server.base_url))
    assert (found.check, found.level) == (f"port {server.port}", "warning")


async def test_where_nothing_listens_it_says_how_to_start_one() -> None:
    with ScriptedServer() as closed:
        url = closed.base_url
    ok, port = await listed(check_default_server(url))
    assert (ok.level, port.level) == ("ok", "ok")
    assert ok.says == f"none runs; to start one: {START_SERVER}"


# Keys


def test_the_key_of_a_known_cloud_is_looked_for_where_it_usually_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = BackendConfig(kind="openai", base_url="https://api.openai.com/v1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    [missing] = check_configured_key(config)
    assert (missing.check, missing.level) == ("API key OPENAI_API_KEY", "error")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    [there] = check_configured_key(config)
    assert there.level == "ok"
    assert "secret" not in str(there)
    local = BackendConfig(kind="openai", base_url="http://127.0.0.1:1/v1")
    assert list(check_configured_key(local)) == []


@posix
def test_a_keys_file_is_read_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-very-secret\n", encoding="utf-8")
    config = BackendConfig(kind="llama_server", api_key_file=path)
    path.chmod(0o644)
    [open_to_all] = check_configured_key(config)
    assert open_to_all.level == "error"
    assert open_to_all.mend.endswith(f"chmod 600 {path}")
    path.chmod(0o600)
    [there] = check_configured_key(config)
    assert (there.level, there.says) == ("ok", f"{path} holds a key")
    assert "secret" not in str(open_to_all) + str(there)


def test_a_key_that_an_agent_names_itself_is_not_missed(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    block = llm(1, provider="openai", base_url=server.base_url, api_key="sk-own", model="demo")
    found = examined(
        write_scenario(tmp_path / "s.yaml", [block]), part="Configuration and scenario"
    )
    assert [each for each in found if each.check.startswith("API key")] == []


# What a run would ask


def test_a_server_that_refuses_the_key_says_which_setting_names_it(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.on(PROPS, NO_KEY)
    scenario = write_scenario(tmp_path / "s.yaml", [llm(1, base_url=server.base_url)])
    found = one(examined(scenario), "server ")
    assert found.level == "error"
    assert found.mend == "set backend.api_key_env to the key's variable"


def test_a_server_that_does_not_count_tokens_is_an_error(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.on(PROPS, Reply(props_body(default_generation_settings={"n_ctx": 8192})))
    server.on(TOKENIZE, Reply(error_body(500, "out of luck", "server_error"), status=500))
    block = llm(1, base_url=server.base_url, model="demo")
    found = examined(write_scenario(tmp_path / "s.yaml", [block]))
    levels = [each.level for each in found if each.check == f"server {server.base_url}"]
    assert levels == ["ok", "error"]  # it is there, and then it fails
    assert "out of luck" in found[-1].says


def test_prompts_for_an_endpoint_of_unknown_context_are_not_measured(
    server: ScriptedServer, tmp_path: Path
) -> None:
    server.on(MODELS, Reply({"data": [{"id": "demo"}]}))
    backend = {"kind": "openai", "base_url": server.base_url}
    config = write_config(tmp_path / "c.yaml", backend=backend)
    scenario = write_scenario(tmp_path / "s.yaml", [llm(1, model="demo")])
    found = one(examined(scenario, config), "scenario on ")
    assert (found.level, found.says) == (
        "ok",
        "its context is not known, so prompts were not measured",
    )


def test_a_rate_at_which_requests_time_out_is_an_error_before_anyone_is_asked(
    server: ScriptedServer, tmp_path: Path
) -> None:
    limits = {"requests_per_minute": 1, "slots": 8}
    backend = {"kind": "openai", "base_url": server.base_url, "openai": limits}
    config = write_config(tmp_path / "c.yaml", backend=backend)
    scenario = write_scenario(tmp_path / "s.yaml", [llm(1)])
    found = one(examined(scenario, config), "backend")
    assert found.level == "error"
    assert "requests_per_minute = 1" in found.says
    assert found.mend.startswith("Set backend.openai.slots to ")
    assert server.connections == 0


def test_with_a_layout_that_can_not_be_had_no_server_is_asked(
    server: ScriptedServer, tmp_path: Path
) -> None:
    backend = {"kind": "llama_server", "base_url": server.base_url}
    config = write_config(tmp_path / "c.yaml", backend=backend, prompt_layout="shared_first")
    scenario = write_scenario(tmp_path / "s.yaml", [llm(1)])
    with replaced(llm_prompts, "format_observation", lambda seen: "nothing"):
        parts = dict(examine(DoctorOptions(scenario, config)))
    assert one(list(parts["Configuration and scenario"]), "prompt_layout").level == "error"
    assert server.connections == 0


@pytest.mark.parametrize("kind", ["auto", "llama_inproc"])
def test_too_small_a_context_in_process_is_a_warning_with_the_key_that_sets_it(
    kind: str, tmp_path: Path
) -> None:
    path = str(write_model(tmp_path / "m.gguf", SHAPE).path)
    scenario = write_scenario(tmp_path / "s.yaml", [llm(1, model_path=path, n_ctx=64)])
    backend = {"kind": kind}
    if kind != "auto":
        backend |= {"model_path": path}

    def warning(context: int) -> list[Finding]:
        held: dict[str, Any] = {} if kind == "auto" else {"context_per_slot": context}
        config = write_config(tmp_path / "c.yaml", backend={**backend, **held})
        write_scenario(scenario, [llm(1, model_path=path, n_ctx=context)])
        found = examined(scenario, config, "Configuration and scenario")
        return [each for each in found if each.check == "context in process"]

    [small] = warning(64)
    assert small.level == "warning"
    assert "n_ctx is 64" in small.says
    key = "n_ctx of the agents' llm block" if kind == "auto" else "backend.context_per_slot"
    assert small.mend.startswith(f"set {key} to ")
    assert warning(int(small.mend.rpartition(" ")[2])) == []


# As a whole


def test_what_was_mended_is_said_first_and_the_rest_is_looked_at_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = {"kind": "fake"}
    config = str(write_config(tmp_path / "c.yaml", backend=backend))
    main(["doctor", "--inference-config", config, "--fix"])
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[:3] == [f"fixed: made {Path.cwd() / name}" for name in ("runs", "models")] + [""]
    # Long lines are broken where the folder's name ends.
    assert f"ok folder runs: {Path.cwd() / 'runs'} can be written" in " ".join(said.split())
    main(["doctor", "--inference-config", config, "--fix", "--json"])
    assert json.loads(capsys.readouterr().out)["fixed"] == []
