"""Upstream's configuration, parsing, routing and health checks still hold beside us.

Each test runs upstream's own code after a whole run of ours in the same process, which
has replaced names of upstream meanwhile and must have put every one of them back.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import swarm.__main__ as upstream
from swarm.agents.llm_agent import LLMAgent
from swarm.agents.llm_config import LLMConfig, LLMProvider, LLMUsageStats
from swarm.agents.llm_health import check_llama_server, require_llama_server
from swarm.scenarios.loader import parse_llm_config

from tests.swarm.simulations import NOOP, llm, swarm, write_config, write_scenario
from tests.wire.scripted_server import CHAT, Reply, ScriptedServer, answer_body

SCENARIOS = sorted((Path(__file__).parent.parent / "equality/scenarios").glob("*.yaml"))[:3]


@pytest.fixture(scope="module", autouse=True)
def after_a_run_of_ours(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("before")
    scenario = write_scenario(folder / "s.yaml", [llm(2)])
    config = write_config(folder / "c.yaml", backend={"kind": "fake"})
    options = ("--inference-scheduler", "batch", "--inference-config", config)
    assert swarm("run", scenario, *options, "--run-dir", folder / "run", "--quiet") == 0


class RoutedAgent(LLMAgent):  # type: ignore[misc]  # SWARM has no types
    """Tells by which of upstream's ways a question would go."""

    async def _call_openai_compatible_async(self, system: str, user: str) -> tuple[str, int, int]:
        return "over HTTP", 1, 1

    async def _call_llama_cpp_direct_async(self, system: str, user: str) -> tuple[str, int, int]:
        return "in process", 1, 1


def config(**fields: Any) -> Any:
    return LLMConfig(provider=LLMProvider.LLAMA_CPP, model="m", **fields)


def test_llama_cpp_has_upstreams_defaults() -> None:
    plain = config()
    assert plain.base_url == "http://localhost:8080/v1"
    assert (plain.model_path, plain.n_ctx, plain.n_threads, plain.llama_seed) == (
        None,
        4096,
        None,
        -1,
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("llama_seed", -2),
        ("model_path", "../m.gguf"),
        ("model_path", "m.bin"),
        ("base_url", "file:///etc/passwd"),
        ("temperature", 1.5),
    ],
)
def test_bad_values_are_refused_by_upstream(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        config(**{field: value})


def test_a_block_of_yaml_becomes_upstreams_configuration() -> None:
    block = {"provider": "llama_cpp", "model": "m", "model_path": "./m.gguf", "n_ctx": 2048}
    parsed = parse_llm_config({**block, "n_threads": 3, "llama_seed": 9, "timeout": 7})
    assert parsed.provider is LLMProvider.LLAMA_CPP
    assert (parsed.model_path, parsed.n_ctx, parsed.n_threads) == ("./m.gguf", 2048, 3)
    assert (parsed.llama_seed, parsed.timeout, parsed.max_tokens) == (9, 7, 512)
    with pytest.raises(ValueError, match="Unknown LLM provider: nobody"):
        parse_llm_config({"provider": "nobody"})


@pytest.mark.parametrize(
    ("fields", "way"), [({}, "over HTTP"), ({"model_path": "./m.gguf"}, "in process")]
)
@pytest.mark.parametrize("blocking", [False, True])
def test_model_path_decides_upstreams_way(fields: dict[str, str], way: str, blocking: bool) -> None:
    agent = RoutedAgent("llm_1", config(**fields))
    if blocking:
        text, *_ = agent._call_llm_sync("system", "user")
    else:
        text, *_ = asyncio.run(agent._call_llm_async("system", "user"))
    assert text == way


def test_upstreams_agent_needs_no_key_and_asks_the_server_itself() -> None:
    with ScriptedServer() as server:
        server.on(CHAT, Reply(answer_body(NOOP)))
        agent = LLMAgent("llm_1", config(base_url=server.base_url, max_retries=0))
        text, *_ = asyncio.run(agent._call_llm_async("system", "user"))
        assert text == NOOP
        assert len(server.requests(CHAT)) == 1


def test_health_is_false_when_nothing_listens_and_true_when_a_server_answers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert not check_llama_server(address, timeout=1)
        with pytest.raises(ConnectionError, match=r"llama-server-setup\.sh start"):
            require_llama_server(address, timeout=1)
    with ScriptedServer() as server:
        assert check_llama_server(server.base_url, timeout=10)


def test_a_model_without_a_price_is_counted_by_upstream_as_before() -> None:
    stats = LLMUsageStats()
    stats.record_usage(model="llama-3.2-3b-instruct", input_tokens=10, output_tokens=5)
    assert (stats.total_requests, stats.total_input_tokens) == (1, 10)


@pytest.mark.parametrize(
    ("answer", "action"),
    [
        ('{"action_type": "POST", "params": {}}', "POST"),
        ('Sure:\n```json\n{"action_type": "VOTE"}\n```', "VOTE"),
        ('I think {"action_type": "NOOP"} is best', "NOOP"),
    ],
)
def test_upstream_finds_the_json_in_an_answer(answer: str, action: str) -> None:
    agent = LLMAgent("llm_1", config())
    assert agent._parse_action_response(answer)["action_type"] == action
    with pytest.raises(ValueError, match="No JSON"):
        agent._parse_action_response("nothing")


@pytest.mark.parametrize(
    "arguments", [*SCENARIOS, Path("missing.yaml")], ids=lambda path: path.stem
)
def test_without_our_option_output_and_exit_code_are_upstreams(
    arguments: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["run", str(arguments), "--seed", "42"]
    code, ours = swarm(*line), capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["swarm", *line])
    assert upstream.main() == code
    theirs = capsys.readouterr()
    assert (ours.out, ours.err) == (theirs.out, theirs.err)
    assert code == (1 if arguments.stem == "missing" else 0)
