"""Every provider of SWARM's LLM agents under one scheduler."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import anyio
import pytest
from swarm.agents.llm_agent import LLMAgent

from scheduler.backends.base import BackendInfo
from scheduler.backends.llama_inproc import LlamaInprocBackend
from scheduler.backends.llama_server import LlamaServerBackend
from scheduler.backends.openai_compat import OpenAIBackend
from scheduler.config import BackendConfig, SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import (
    AttemptError,
    AttemptTimeout,
    AuthenticationFailed,
    ConfigError,
    ConnectionFailed,
    MalformedAnswer,
    RequestFailed,
    RequestRejected,
    ServerBusy,
    ServerFault,
)
from scheduler.types import FinishReason, Message, Request, Sampling
from swarm_integration.errors import ScenarioError
from swarm_integration.scenario import Rehearsal, rehearse
from swarm_integration.services import Fleet, muster
from swarm_integration.upstream_provider import UpstreamProviderBackend, attempt_error
from tests.swarm.simulations import (
    NOOP,
    json_lines,
    llm,
    manifest,
    on_loop,
    swarm,
    write_config,
    write_scenario,
)
from tests.wire.scripted_server import CHAT, MODELS, Reply, ScriptedServer, answer_body

RUN = Path("the-run")
BATCH = ("--inference-scheduler", "batch", "--run-dir", RUN)
VARIABLES = {
    "openai": "OPENAI_API_KEY",
    "openrouter": "OPENROUTER_API_KEY",
    "groq": "GROQ_API_KEY",
    "together": "TOGETHER_API_KEY",
    "deepseek": "DEEPSEEK_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "google": "GOOGLE_API_KEY",
}
SECRETS = {provider: f"secret-of-{provider}" for provider in VARIABLES}


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*VARIABLES.values(), "OPENAI_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for provider, variable in VARIABLES.items():
        monkeypatch.setenv(variable, SECRETS[provider])


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        scripted.on(CHAT, Reply(answer_body(NOOP)))
        yield scripted


class StatusError(Exception):
    """As anthropic's errors are: a status code and the response."""

    def __init__(self, status_code: int, message: str = "it said no", **headers: str) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.response = SimpleNamespace(headers=headers)


class CodeError(Exception):
    """As google-genai's errors are."""

    def __init__(self, code: int) -> None:
        super().__init__(f"{code} STATUS. {{}}")
        self.code = code


class APIConnectionError(Exception):
    """As anthropic's."""


class APITimeoutError(APIConnectionError):
    """As anthropic's, which is a connection error too."""


class FakeAnthropic(ModuleType):
    """Stands for the SDK: `anthropic.Anthropic(...).messages.create(...)` blocks, then answers."""

    def __init__(self) -> None:
        super().__init__("anthropic")
        self.clients: list[SimpleNamespace] = []
        self.calls: list[dict[str, Any]] = []
        self.threads: set[str] = set()
        self.behave: Callable[[int], str] = lambda nth: NOOP
        self._lock = threading.Lock()

    def Anthropic(self, **settings: Any) -> Any:  # noqa: N802  # the SDK's name
        client = SimpleNamespace(**settings, max_retries=2, closed=False)
        client.messages = SimpleNamespace(create=self._create)
        client.close = lambda: setattr(client, "closed", True)
        self.clients.append(client)
        return client

    def _create(self, **call: Any) -> Any:
        with self._lock:
            self.calls.append(call)
            self.threads.add(threading.current_thread().name)
            nth = len(self.calls)
        text = self.behave(nth)
        usage = SimpleNamespace(input_tokens=1000, output_tokens=50)
        return SimpleNamespace(content=[SimpleNamespace(text=text)], usage=usage)


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> FakeAnthropic:
    fake = FakeAnthropic()
    monkeypatch.setitem(sys.modules, "anthropic", fake)
    return fake


def provider_calls(before: set[threading.Thread]) -> list[threading.Thread]:
    """Return the threads of calls that were not there before."""
    return [one for one in set(threading.enumerate()) - before if one.name == "provider call"]


def rehearsed(*agents: Any) -> Rehearsal:
    return rehearse(write_scenario(Path("s.yaml"), agents), {})


def fleet(*agents: Any, slots: Any = "auto", **config: Any) -> Fleet:
    return muster(rehearsed(*agents), BackendConfig(**config), managed_url=None, slots=slots)


def started(found: Fleet, name: str) -> BackendInfo:
    async def start_and_close() -> BackendInfo:
        info = await found.backends[name].start()
        await found.backends[name].aclose()
        return info

    return on_loop(start_and_close)


# Which backend serves whom


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    ("provider", "name"),
    [
        ("openai", "https://api.openai.com/v1"),
        ("openrouter", "https://openrouter.ai/api/v1"),
        ("groq", "https://api.groq.com/openai/v1"),
        ("together", "https://api.together.xyz/v1"),
        ("deepseek", "https://api.deepseek.com/v1"),
        ("ollama", "http://localhost:11434/v1"),
    ],
)
def test_openai_compatible_providers_have_their_own_address(provider: str, name: str) -> None:
    found = fleet(llm(2, provider=provider))
    assert list(found.backends) == [name]
    assert isinstance(found.backends[name], OpenAIBackend)
    assert {service.backend for service in found.services.values()} == {name}
    slots = 4 if provider == "ollama" else 8
    assert f", {slots} slots" in repr(found.backends[name])


@pytest.mark.usefixtures("keys")
def test_an_agents_base_url_beats_the_environments_and_that_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://proxy/v1/")
    agents = [llm(provider="openai"), llm(provider="openai", base_url="http://own:1/v1/")]
    assert list(fleet(*agents).backends) == ["http://proxy/v1", "http://own:1/v1"]
    ollama = llm(provider="ollama", base_url="http://box:2/v1")
    assert list(fleet(ollama).backends) == ["http://box:2/v1"]


@pytest.mark.usefixtures("keys")
def test_one_backend_for_each_address_and_key_and_no_key_in_its_name() -> None:
    agents = [
        llm(provider="openai"),
        llm(provider="openai", api_key="second-key"),
        llm(provider="openai", api_key=SECRETS["openai"]),
        llm(provider="anthropic"),
        llm(provider="anthropic", api_key="second-key"),
    ]
    found = fleet(*agents)
    served = [service.backend for service in found.services.values()]
    first, second = "https://api.openai.com/v1", "https://api.openai.com/v1 (key 2)"
    assert served == [first, second, first, "anthropic", "anthropic (key 2)"]
    assert "second-key" not in repr(found) + repr(list(found.backends))


def test_models_in_this_process_are_shared_by_path_context_and_threads() -> None:
    agents = [
        llm(2, model_path="m/a.gguf"),
        llm(model_path="m/./a.gguf"),
        llm(model_path="m/a.gguf", n_ctx=8192),
        llm(model_path="m/a.gguf", n_threads=2),
        llm(model_path="m/b.gguf"),
    ]
    found = fleet(*agents)
    assert list(found.backends) == [
        "m/a.gguf (n_ctx 4096, n_threads auto)",
        "m/a.gguf (n_ctx 8192, n_threads auto)",
        "m/a.gguf (n_ctx 4096, n_threads 2)",
        "m/b.gguf (n_ctx 4096, n_threads auto)",
    ]
    assert all(isinstance(backend, LlamaInprocBackend) for backend in found.backends.values())


@pytest.mark.parametrize("provider", VARIABLES)
def test_a_missing_key_is_named_by_its_variable_before_the_start(provider: str) -> None:
    variable = VARIABLES[provider]
    with pytest.raises(ScenarioError, match=rf"llm_2 .*{provider}.*export {variable}="):
        fleet(llm(), llm(provider=provider))


@pytest.mark.usefixtures("keys")
def test_memori_is_refused_where_upstream_would_use_it() -> None:
    with pytest.raises(ScenarioError, match="llm_1 uses memori"):
        fleet(llm(provider="anthropic", memori={"enabled": True}))
    fleet(llm(provider="anthropic", memori={"enabled": False}))
    fleet(llm(provider="groq", memori={"enabled": True}))


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    ("openai", "slots", "expected"),
    [({}, "auto", 8), ({}, 3, 3), ({}, 30, 30), ({"slots": 5}, "auto", 5), ({"slots": 5}, 3, 5)],
)
def test_slots_are_the_endpoints_the_schedulers_or_the_providers(
    openai: dict[str, Any], slots: Any, expected: int
) -> None:
    found = fleet(llm(provider="openai"), slots=slots, openai=openai)
    assert f", {expected} slots" in repr(next(iter(found.backends.values())))


def test_a_rate_that_outlasts_the_timeout_is_refused_and_the_advice_is_enough() -> None:
    block = llm(timeout=30)
    settings: dict[str, Any] = {"requests_per_minute": 6}
    with pytest.raises(ConfigError, match=r"may wait 40 s .* timeout is 30 s.*slots to 1,"):
        fleet(block, kind="openai", openai=settings)
    fleet(block, kind="openai", openai={**settings, "slots": 1})


def test_kind_openai_serves_every_agent(server: ScriptedServer) -> None:
    agents = [llm(2), llm(provider="anthropic"), llm(model_path="x.gguf")]
    config = {"openai": {"slots": 3, "model": "mine", "context_per_slot": 9000}}
    found = fleet(*agents, kind="openai", base_url=server.base_url, **config)
    assert list(found.backends) == ["default"]
    info = started(found, "default")
    assert (info.kind, info.slots, info.context_per_slot, info.model) == ("openai", 3, 9000, "mine")


def test_kind_openai_takes_the_key_of_a_cloud_that_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cloud = {"kind": "openai", "base_url": "https://api.groq.com/openai/v1"}
    with pytest.raises(ConfigError, match="GROQ_API_KEY"):
        fleet(llm(), **cloud)
    monkeypatch.setenv("GROQ_API_KEY", "k")
    fleet(llm(), **cloud)


# A mixed run


def mixed(server: ScriptedServer, local: ScriptedServer) -> Path:
    root = local.base_url.removesuffix("/v1")
    common: dict[str, Any] = {"model": "gpt-4o"}
    agents = [
        llm(base_url=local.base_url, model="demo"),
        llm(2, provider="openai", base_url=server.base_url, **common),
        llm(provider="ollama", base_url=root, model="llama3.2"),
        llm(2, provider="anthropic", model="claude-3-haiku-20240307"),
        llm(provider="openrouter", base_url=server.base_url, api_key="key-in-the-block", **common),
    ]
    return write_scenario(Path("s.yaml"), agents, epochs=1, steps=2)


@pytest.mark.usefixtures("keys")
def test_a_mixed_scenario_runs_in_order_counts_once_and_shows_no_key(
    server: ScriptedServer,
    sdk: FakeAnthropic,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sdk.behave = lambda nth: time.sleep(0.05) or NOOP  # type: ignore[func-returns-value]  # sleeps
    agents: dict[str, Any] = {}
    make = LLMAgent.__init__

    def remember(self: Any, agent_id: str, *args: Any, **kwargs: Any) -> None:
        agents[agent_id] = self  # of two with one id, the rehearsal's and the run's, the latter
        make(self, agent_id, *args, **kwargs)

    monkeypatch.setattr(LLMAgent, "__init__", remember)
    with ScriptedServer() as local:
        local.on(CHAT, Reply(answer_body(NOOP)))
        assert swarm("run", mixed(server, local), *BATCH, "--seed", 1) == 0
        ollama = [seen.json["model"] for seen in local.requests(CHAT)]
    captured = capsys.readouterr()

    acts = [line for line in json_lines(RUN / "transcript.jsonl") if line["kind"] == "act"]
    assert [(line["step"], line["agent_id"]) for line in acts] == [
        (step, f"llm_{n}") for step in (0, 1) for n in range(1, 8)
    ]
    assert {line["outcome"] for line in acts} == {"ok"}
    assert sorted(ollama) == ["demo", "demo", "llama3.2", "llama3.2"]

    bearers = [seen.headers["authorization"] for seen in server.requests(CHAT)]
    assert bearers.count(f"Bearer {SECRETS['openai']}") == 4
    assert bearers.count("Bearer key-in-the-block") == 2
    titles = [seen.headers.get("x-title") for seen in server.requests(CHAT)]
    assert titles.count("SWARM Council") == 2

    for n in range(1, 8):
        stats = agents[f"llm_{n}"].usage_stats.to_dict()
        assert (stats["total_requests"], stats["total_failures"]) == (2, 0), n
    claude = agents["llm_5"].usage_stats.to_dict()
    assert (claude["total_input_tokens"], claude["total_output_tokens"]) == (2000, 100)
    assert claude["estimated_cost_usd"] == pytest.approx(2000 * 0.25e-6 + 100 * 1.25e-6, abs=1e-4)
    assert len(sdk.calls) == 4
    assert all(call["model"] == "claude-3-haiku-20240307" for call in sdk.calls)
    assert {(client.api_key, client.max_retries) for client in sdk.clients} == {
        (SECRETS["anthropic"], 0)
    }
    assert all(client.closed for client in sdk.clients)

    files = list(RUN.iterdir())
    written = b"".join(path.read_bytes() for path in files).decode("utf-8", "replace")
    for secret in (*SECRETS.values(), "key-in-the-block"):
        assert secret not in written + captured.out + captured.err
    kinds = {name: one["kind"] for name, one in manifest(RUN)["backends"].items()}
    assert sorted(kinds.values()) == ["llama_server", *["openai"] * 3, "upstream_provider"]


def test_refused_parameters_are_in_log_and_manifest(server: ScriptedServer) -> None:
    no_seed = Reply({"error": {"message": "no seed", "param": "seed"}}, 400)
    server.on(CHAT, no_seed, Reply(answer_body(NOOP)))
    config = write_config(
        Path("c.yaml"),
        scheduler={"slots": 1},
        backend={"kind": "openai", "base_url": server.base_url},
    )
    scenario = write_scenario(Path("s.yaml"), [llm(2)])
    assert swarm("run", scenario, *BATCH, "--inference-config", config, "-q") == 0
    assert manifest(RUN)["refused_parameters"] == {"default": {"m act": ["seed"]}}
    told = [e for e in json_lines(RUN / "inference.jsonl") if "refused" in e["event"]]
    assert [(event["event"], event["parameter"]) for event in told] == [
        ("backend.parameter_refused", "seed")
    ]


def test_a_refused_key_ends_before_the_first_step(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-key")
    server.on(MODELS, Reply(b"", 401))
    path = write_scenario(Path("s.yaml"), [llm(provider="openai", base_url=server.base_url)])
    assert swarm("run", path, *BATCH) == 2
    errors = capsys.readouterr().err
    assert "export OPENAI_API_KEY=" in errors
    assert "wrong-key" not in errors
    assert server.requests(CHAT) == []


def test_a_missing_sdk_is_named_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "anthropic", None)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    path = write_scenario(Path("s.yaml"), [llm(provider="anthropic")])
    assert swarm("run", path, *BATCH) == 2
    assert "python -m pip install anthropic" in capsys.readouterr().err


# Upstream's own provider methods


def upstream(provider: str = "anthropic", slots: int = 2, **block: Any) -> UpstreamProviderBackend:
    rehearsal = rehearsed(llm(3, provider=provider, **block))
    agents = {key: block.agent for key, block in rehearsal.blocks.items()}
    return UpstreamProviderBackend(
        provider, agents, api_key=SECRETS[provider], key_variable=VARIABLES[provider], slots=slots
    )


def question(n: int = 1, **changes: Any) -> Request:
    messages = (Message("system", "be brief"), Message("user", f"hi {n}"))
    return Request(f"llm_{n}", messages, **{"sampling": Sampling(max_tokens=64), **changes})


@pytest.mark.usefixtures("keys")
def test_upstreams_method_makes_one_attempt_with_the_agents_parameters(sdk: FakeAnthropic) -> None:
    async def main() -> None:
        backend = upstream(temperature=0.25, timeout=12)
        info = await backend.start()
        assert (info.kind, info.slots, info.facts["send_seed"]) == ("upstream_provider", 2, False)
        answer = await backend.generate(question(), seed=1, slot=0)
        await backend.aclose()
        assert (answer.text, answer.finish_reason) == (NOOP, FinishReason.OTHER)
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (1000, 50)

    on_loop(main)
    assert sdk.calls == [
        {
            "model": "m",
            "max_tokens": 64,
            "temperature": 0.25,
            "system": "be brief",
            "messages": [{"role": "user", "content": "hi 1"}],
        }
    ]
    assert {client.timeout for client in sdk.clients} == {12}


@pytest.mark.usefixtures("keys")
def test_google_gets_its_timeout_in_its_own_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def generate(**call: Any) -> Any:
        usage = SimpleNamespace(prompt_token_count=9, candidates_token_count=64)
        return SimpleNamespace(text="hey", usage_metadata=usage)

    def client(**settings: Any) -> Any:
        seen.append(settings)
        return SimpleNamespace(models=SimpleNamespace(generate_content=generate))

    package, module = ModuleType("google"), ModuleType("google.genai")
    monkeypatch.setattr(module, "Client", client, raising=False)
    monkeypatch.setattr(package, "genai", module, raising=False)
    monkeypatch.setitem(sys.modules, "google", package)
    monkeypatch.setitem(sys.modules, "google.genai", module)

    async def main() -> None:
        backend = upstream("google", timeout=30)
        await backend.start()
        answer = await backend.generate(question(), seed=1, slot=0)
        await backend.aclose()
        assert (answer.text, answer.finish_reason) == ("hey", FinishReason.LENGTH)
        assert answer.usage.prompt_tokens == 9

    on_loop(main)
    assert seen == [{"api_key": SECRETS["google"], "http_options": {"timeout": 30_000}}]


ERRORS: list[tuple[Exception, type[AttemptError]]] = [
    (StatusError(429, **{"retry-after": "3"}), ServerBusy),
    (StatusError(529), ServerFault),
    (StatusError(500), ServerFault),
    (StatusError(503, **{"Retry-After": "3"}), ServerBusy),
    (StatusError(408), AttemptTimeout),
    (StatusError(409), ServerFault),
    (StatusError(400), RequestRejected),
    (StatusError(404), RequestRejected),
    (StatusError(401), AuthenticationFailed),
    (CodeError(429), ServerBusy),
    (CodeError(504), ServerFault),
    (CodeError(400), RequestRejected),
    (APITimeoutError("slow"), AttemptTimeout),
    (APIConnectionError("gone"), ConnectionFailed),
    (TimeoutError(), AttemptTimeout),
    (ConnectionResetError(), ConnectionFailed),
    (IndexError("content"), MalformedAnswer),
    (AttributeError("text"), MalformedAnswer),
    (ImportError("x"), RequestRejected),
    (OSError("odd"), ServerFault),
]


@pytest.mark.parametrize(("error", "kind"), ERRORS)
def test_errors_of_the_sdks_are_told_by_their_shape(
    error: Exception, kind: type[AttemptError]
) -> None:
    found = attempt_error(error, "anthropic", agent_id="ann")
    assert type(found) is kind
    if isinstance(found, ServerBusy) and hasattr(error, "response"):
        assert found.retry_after_s == 3.0


@pytest.mark.usefixtures("keys")
def test_retries_are_the_schedulers_and_keys_are_not_in_errors(sdk: FakeAnthropic) -> None:
    def behave(nth: int) -> str:
        if nth <= 2:
            raise StatusError(529, f"overloaded, {SECRETS['anthropic']}")
        raise StatusError(401)

    sdk.behave = behave

    async def main() -> RequestFailed | None:
        backend = upstream()
        config = SchedulerConfig(retry_base_s=0.001, on_failure="noop")
        async with Scheduler(backend, config) as scheduler:
            completion = await scheduler.submit(question())
        await backend.aclose()
        assert completion.attempts == 3
        return completion.error

    error = on_loop(main)
    assert "export ANTHROPIC_API_KEY=" in str(error)
    assert SECRETS["anthropic"] not in str(error)


@pytest.mark.usefixtures("keys")
def test_a_deadline_frees_the_slot_while_the_sdks_call_goes_on(sdk: FakeAnthropic) -> None:
    stuck = threading.Event()
    sdk.behave = lambda nth: NOOP if nth > 1 else str(stuck.wait(60))

    async def main() -> None:
        backend = upstream(slots=1)
        config = SchedulerConfig(retry_base_s=0.001)
        async with Scheduler(backend, config) as scheduler:
            with anyio.fail_after(50):
                completion = await scheduler.submit(question(timeout_s=1.0))
            assert completion.text == NOOP
            assert completion.attempts == 2
        stuck.set()
        await backend.aclose()

    on_loop(main)


@pytest.mark.usefixtures("keys")
def test_abandoned_calls_are_bounded_and_never_keep_the_process(sdk: FakeAnthropic) -> None:
    stuck = threading.Event()
    sdk.behave = lambda nth: str(stuck.wait(60))

    before = set(threading.enumerate())

    async def main() -> None:
        backend = upstream(slots=1)
        await backend.start()
        for n in (1, 2, 3):
            with anyio.move_on_after(0.3):
                await backend.generate(question(n), seed=1, slot=0)
        assert len(sdk.calls) == 2
        waiting = provider_calls(before)
        assert len(waiting) == 2
        assert all(thread.daemon for thread in waiting)
        stuck.set()
        with anyio.fail_after(50):
            await backend.generate(question(), seed=1, slot=0)
        await backend.aclose()

    on_loop(main)
    assert sdk.threads == {"provider call"}


@pytest.mark.usefixtures("keys", "sdk")
def test_it_works_on_trio_too() -> None:
    async def main() -> None:
        backend = upstream()
        async with Scheduler(backend) as scheduler:
            assert (await scheduler.submit(question())).text == NOOP
        await backend.aclose()

    anyio.run(main, backend="trio")


@pytest.mark.usefixtures("keys")
def test_a_call_that_ends_after_its_loop_does_no_harm(sdk: FakeAnthropic) -> None:
    stuck = threading.Event()
    sdk.behave = lambda nth: str(stuck.wait(60))
    before = set(threading.enumerate())

    async def main() -> None:
        backend = upstream()
        await backend.start()
        with anyio.move_on_after(0.3):
            await backend.generate(question(), seed=1, slot=0)
        await backend.aclose()

    on_loop(main)
    calls = provider_calls(before)
    stuck.set()
    for thread in calls:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.usefixtures("keys")
def test_the_backends_of_a_local_server_are_as_before() -> None:
    found = fleet(llm(base_url="http://one:1/v1"))
    assert isinstance(found.backends["http://one:1/v1"], LlamaServerBackend)
