"""The OpenAI-compatible backend against a scripted server: dialects, limits, refusals."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.backends.openai_compat import OpenAIBackend
from scheduler.backends.openai_params import CHANGEABLE, changed, next_change
from scheduler.backends.rate_limit import duration_s, limit_reset_s
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import (
    AuthenticationFailed,
    BackendUnavailable,
    ConfigError,
    MalformedAnswer,
    RequestRejected,
    ServerBusy,
    ServerFault,
)
from scheduler.types import Message, OutputSchema, Request, Sampling
from tests.wire.scripted_server import (
    CHAT,
    HEALTH,
    LOADING,
    MODELS,
    PATIENCE_S,
    PROPS,
    Reply,
    ScriptedServer,
    answer_body,
    error_body,
)

pytestmark = pytest.mark.anyio

OBJECT = OutputSchema("act", {"type": "object", "properties": {"a": {"type": "integer"}}})
BRANCHES = OutputSchema("move", {"anyOf": [OBJECT.schema, {"type": "object"}]})
WORD = OutputSchema("word", {"enum": ["yes", "no"]})
KEY = "sk-very-secret"


class Log:
    """Keeps the events that it is told of."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    info = error = warning


@pytest.fixture(scope="module")
def running_server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def server(running_server: ScriptedServer) -> ScriptedServer:
    running_server.reset()
    return running_server


@pytest.fixture
async def backend(server: ScriptedServer) -> AsyncIterator[OpenAIBackend]:
    async with opened(OpenAIBackend(server.base_url)) as backend:
        yield backend


class opened:  # noqa: N801  # reads as what it does
    """Closes a backend at the end of the block."""

    def __init__(self, backend: OpenAIBackend) -> None:
        self._backend = backend

    async def __aenter__(self) -> OpenAIBackend:
        return self._backend

    async def __aexit__(self, *_: object) -> None:
        await self._backend.aclose()


def request(**changes: Any) -> Request:
    messages = (Message("system", "You are Ann."), Message("user", "Hi"))
    return replace(Request("ann", messages, model="m"), **changes)


async def ask(backend: OpenAIBackend, asked: Request | None = None) -> str:
    return (await backend.generate(asked or request(), seed=7, slot=0)).text


def refusal(param: str | None, message: str = "no", status: int = 400, **more: Any) -> Reply:
    return Reply({"error": {"message": message, "param": param, **more}}, status)


def sent(server: ScriptedServer) -> list[Any]:
    return [seen.json for seen in server.requests()]


# What is sent


async def test_only_what_plain_openai_servers_know_is_sent(
    server: ScriptedServer, backend: OpenAIBackend
) -> None:
    sampling = Sampling(0.5, 33, 7, 0.8, 0.02, 1.1, 0.2, 0.3)
    await ask(backend, request(sampling=sampling, schema=OBJECT))
    assert sent(server) == [
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "You are Ann."},
                {"role": "user", "content": "Hi"},
            ],
            "temperature": 0.5,
            "max_tokens": 33,
            "top_p": 0.8,
            "presence_penalty": 0.2,
            "frequency_penalty": 0.3,
            "seed": 7,
            "stream": False,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "act", "schema": OBJECT.schema, "strict": True},
            },
        }
    ]


async def test_key_headers_and_model_are_the_configured_ones(server: ScriptedServer) -> None:
    backend = OpenAIBackend(
        server.base_url, model="mine", api_key=KEY, headers={"X-Title": "SWARM Council"}
    )
    async with opened(backend):
        assert (await backend.start()).model == "mine"
        await ask(backend)
    headers = server.requests()[0].headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["x-title"] == "SWARM Council"
    assert sent(server)[0]["model"] == "mine"
    assert KEY not in repr(backend)


async def test_seed_and_schema_are_left_out_where_so_configured(server: ScriptedServer) -> None:
    async with opened(
        OpenAIBackend(server.base_url, send_seed=False, send_schema="never")
    ) as backend:
        await ask(backend, request(schema=OBJECT))
    assert not {"seed", "response_format"} & set(sent(server)[0])


async def test_thinking_is_switched_by_the_templates_argument(
    server: ScriptedServer, backend: OpenAIBackend
) -> None:
    await ask(backend, request(sampling=Sampling(thinking=False)))
    assert sent(server)[0]["chat_template_kwargs"] == {"enable_thinking": False}


# What a server refuses


UNSUPPORTED = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
PYDANTIC = [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs"}]
FORMAT = {"type": "json_object"}
REFUSALS: dict[str, tuple[Reply, str, Any]] = {
    "OpenAI, seed": (refusal("seed"), "seed", None),
    "a message alone": (refusal(None, "unknown argument: seed"), "seed", None),
    "FastAPI": (Reply({"detail": PYDANTIC}, 422), "seed", None),
    "vLLM": (
        Reply({"object": "error", "message": "('body', 'seed') Extra inputs", "param": None}, 400),
        "seed",
        None,
    ),
    "a plain text": (Reply({"error": "seed is not supported"}, 400), "seed", None),
    "top_p": (refusal("top_p", code="unsupported_parameter"), "top_p", None),
    "thinking": (refusal(None, "unrecognized: chat_template_kwargs"), "chat_template_kwargs", None),
    "OpenAI, schema": (refusal("response_format", "Invalid schema"), "response_format", FORMAT),
    "Groq, schema": (refusal(None, "'response_format.type' : not"), "response_format", FORMAT),
    "DeepSeek, schema": (
        refusal(None, "This response_format type is unavailable now"),
        "response_format",
        FORMAT,
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_refused_field_is_left_out_and_the_answer_still_comes(
    server: ScriptedServer, backend: OpenAIBackend, name: str
) -> None:
    reply, field, instead = REFUSALS[name]
    server.on(CHAT, reply, Reply(answer_body()))
    asked = request(schema=OBJECT, sampling=Sampling(thinking=True))
    assert await ask(backend, asked) == "hello"
    first, second = sent(server)
    assert field in first
    assert second.get(field) == instead
    assert {**first, field: None} == {**second, field: None}


async def test_max_tokens_gets_its_newer_name(
    server: ScriptedServer, backend: OpenAIBackend
) -> None:
    server.on(CHAT, refusal("max_tokens", UNSUPPORTED), Reply(answer_body()))
    await ask(backend)
    assert "max_tokens" not in sent(server)[1]
    assert sent(server)[1]["max_completion_tokens"] == 512


async def test_several_refused_fields_go_one_after_the_other(
    server: ScriptedServer, backend: OpenAIBackend
) -> None:
    server.on(
        CHAT,
        refusal("max_tokens", UNSUPPORTED),
        refusal("seed"),
        *[refusal("response_format")] * 2,
        Reply(answer_body()),
    )
    await ask(backend, request(schema=BRANCHES))
    assert [body.get("response_format", {}).get("type") for body in sent(server)] == [
        *["json_schema"] * 3,
        "json_object",
        None,
    ]
    assert backend.refused == {
        "m move": ["max_tokens", "seed", "response_format", "response_format"]
    }


async def test_a_schema_of_other_things_than_objects_never_becomes_json_object(
    server: ScriptedServer, backend: OpenAIBackend
) -> None:
    server.on(CHAT, refusal("response_format"), Reply(answer_body()))
    await ask(backend, request(schema=WORD))
    assert "response_format" not in sent(server)[1]


async def test_what_was_refused_is_remembered_by_model_and_schema(
    server: ScriptedServer, backend: OpenAIBackend
) -> None:
    server.on(CHAT, refusal("seed"), Reply(answer_body()))
    for asked in (request(), request(), request(model="other"), request(schema=OBJECT)):
        await ask(backend, asked)
    assert ["seed" in body for body in sent(server)] == [True, False, False, True, True]
    assert backend.refused == {"m": ["seed"]}


async def test_a_refusal_that_leaving_out_does_not_mend_teaches_nothing(
    server: ScriptedServer, backend: OpenAIBackend
) -> None:
    server.on(CHAT, refusal("seed"), refusal("messages"), Reply(answer_body()))
    with pytest.raises(RequestRejected):
        await ask(backend)
    await ask(backend)
    assert ["seed" in body for body in sent(server)] == [True, False, True]
    assert backend.refused == {}


async def test_each_refused_field_is_told_once(server: ScriptedServer) -> None:
    log = Log()
    async with opened(OpenAIBackend(server.base_url, log=log)) as backend:
        server.on(
            CHAT,
            lambda seen: (
                refusal("seed", "seed: no") if "seed" in seen.json else Reply(answer_body())
            ),
        )
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ask, backend)
    assert [event["event"] for event in log.events] == ["backend.parameter_refused"]
    assert log.events[0]["parameter"] == "seed"
    assert "seed: no" in log.events[0]["reason"]


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (refusal("temperature", "only 1 is supported"), "only 1 is supported"),
        (refusal("max_tokens", "max_tokens is too large: 512"), "too large"),
        (refusal("messages", "no word of seed"), "no word of seed"),
        (refusal("seed", status=404), "404"),
        (Reply(b"no JSON", 400), "400"),
        (Reply(b'{"error": {"param": ["seed"], "message": 3}}', 400), "400"),
    ],
)
async def test_what_does_not_name_a_field_to_leave_out_is_rejected(
    server: ScriptedServer, backend: OpenAIBackend, reply: Reply, says: str
) -> None:
    server.on(CHAT, reply)
    with pytest.raises(RequestRejected, match=says):
        await ask(backend)
    assert len(server.requests()) == 1


async def test_a_schema_that_must_be_sent_is_not_left_out(server: ScriptedServer) -> None:
    server.on(CHAT, refusal("response_format", "Invalid schema"))
    async with opened(OpenAIBackend(server.base_url, send_schema="always")) as backend:
        with pytest.raises(RequestRejected, match="Invalid schema"):
            await ask(backend, request(schema=OBJECT))
    assert len(server.requests()) == 1


async def test_log_probabilities_are_asked_for_only_when_wanted_and_left_out_when_refused(
    server: ScriptedServer, backend: OpenAIBackend
) -> None:
    await ask(backend, request())
    server.on(CHAT, refusal("logprobs", "no logprobs here"), Reply(answer_body()))
    answer = await backend.generate(request(report_tokens=True), seed=7, slot=0)
    assert answer.logprobs == ()
    assert ["logprobs" in one for one in sent(server)] == [False, True, False]


async def test_a_server_that_refuses_everything_ends(
    server: ScriptedServer, backend: OpenAIBackend
) -> None:
    words = " ".join(CHANGEABLE) + " max_completion_tokens"
    server.on(CHAT, refusal(None, words))
    asked = request(schema=OBJECT, sampling=Sampling(thinking=True), report_tokens=True)
    with pytest.raises(RequestRejected):
        await ask(backend, asked)
    assert len(server.requests()) == 2 + len(CHANGEABLE)  # the schema has two lesser forms


async def test_a_generation_that_missed_json_is_asked_again(
    server: ScriptedServer, backend: OpenAIBackend
) -> None:
    server.on(CHAT, refusal("response_format", "Failed", code="json_validate_failed"))
    with pytest.raises(MalformedAnswer, match="hold the model to JSON"):
        await ask(backend)


BODY = {"max_tokens": 1, "seed": 2, "response_format": {}, "messages": [], "top_p": 1.0}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([*BODY, "detail", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "param", "message", "detail", "loc", "code"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(JSON | st.binary())
def test_any_refusal_names_a_field_of_the_request_or_none(content: Any) -> None:
    refused = content if isinstance(content, bytes) else json.dumps(content).encode()
    change = next_change(BODY, refused)
    assert change is None or change in BODY
    if change is not None:
        assert change not in changed(BODY, [change])


# Keys and limits


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_named_by_its_variable_and_not_shown(
    server: ScriptedServer, status: int
) -> None:
    server.on(CHAT, Reply(error_body(status, f"bad key {KEY}", "auth"), status))
    backend = OpenAIBackend(server.base_url, api_key=KEY, key_variable="OPENAI_API_KEY")
    async with opened(backend):
        with pytest.raises(AuthenticationFailed, match="export OPENAI_API_KEY=") as caught:
            await ask(backend)
    assert KEY not in str(caught.value)


async def test_a_key_that_the_server_repeats_is_not_in_the_error(server: ScriptedServer) -> None:
    server.on(CHAT, Reply(error_body(500, f"proxy failed for {KEY}", "x"), 500))
    async with opened(OpenAIBackend(server.base_url, api_key=KEY)) as backend:
        with pytest.raises(ServerFault, match=r"proxy failed for \*\*\*"):
            await ask(backend)


LIMITS: list[tuple[dict[str, str], float | None]] = [
    ({"Retry-After": "2.5"}, 2.5),
    ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, 360.0),
    (
        {
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "120ms",
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": "7.66s",
        },
        7.66,
    ),
    ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "9h"}, None),
    ({"x-ratelimit-remaining-tokens": "0"}, None),
    ({}, None),
]


@pytest.mark.parametrize(("headers", "wait_s"), LIMITS)
async def test_a_rate_limit_says_when_to_come_back(
    server: ScriptedServer, backend: OpenAIBackend, headers: dict[str, str], wait_s: float | None
) -> None:
    server.on(CHAT, Reply(error_body(429, "slow down", "rate"), 429, headers))
    with pytest.raises(ServerBusy) as caught:
        await ask(backend)
    assert caught.value.retry_after_s == wait_s


async def test_an_account_without_credit_is_not_asked_again(
    server: ScriptedServer, backend: OpenAIBackend
) -> None:
    server.on(CHAT, refusal(None, "quota", 429, code="insufficient_quota"))
    with pytest.raises(RequestRejected, match="no credit left"):
        await ask(backend)


@pytest.mark.parametrize("text", ["", "s", "1", "1s2", "-1s", "1e9s", "9" * 12 + "s", "1 s", "1w"])
def test_what_is_no_duration_is_none(text: str) -> None:
    assert duration_s(text) is None
    assert (
        limit_reset_s({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": text})
        is None
    )


async def test_starts_are_spaced_by_the_configured_rate(server: ScriptedServer) -> None:
    async with opened(OpenAIBackend(server.base_url, requests_per_minute=1200)) as backend:
        started = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ask, backend)
        assert anyio.current_time() - started >= 0.2


# Start and readiness


@pytest.mark.parametrize(
    "reply",
    [Reply({"data": []}), Reply(b"", 404), Reply(b"", 405), Reply(b"", 403), Reply(b"", 429)],
)
async def test_start_asks_for_the_models_alone_and_takes_the_configured_slots(
    server: ScriptedServer, reply: Reply
) -> None:
    server.on(MODELS, reply)
    backend = OpenAIBackend(server.base_url, slots=11, context_per_slot=4096)
    async with opened(backend):
        info = await backend.start()
        assert await backend.start() == info
    assert (info.kind, info.slots, info.context_per_slot) == ("openai", 11, 4096)
    assert [seen.route for seen in server.seen] == [MODELS]
    assert not server.requests(HEALTH) + server.requests(PROPS)


async def test_start_refuses_a_bad_key_and_names_its_variable(server: ScriptedServer) -> None:
    server.on(MODELS, Reply(b"", 401))
    for variable, says in (("GROQ_API_KEY", "export GROQ_API_KEY="), (None, "api_key_env")):
        async with opened(OpenAIBackend(server.base_url, key_variable=variable)) as backend:
            with pytest.raises(ConfigError, match=says):
                await backend.start()


async def test_start_refuses_what_speaks_no_json(server: ScriptedServer) -> None:
    server.on(MODELS, Reply(b"<html>", content_type="text/html"))
    async with opened(OpenAIBackend(server.base_url)) as backend:
        with pytest.raises(ConfigError, match="no OpenAI-compatible server"):
            await backend.start()


async def test_start_says_what_to_do_when_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    async with opened(OpenAIBackend(url, connect_grace_s=0.2)) as backend:
        with (
            anyio.fail_after(PATIENCE_S),
            pytest.raises(BackendUnavailable, match="vllm serve MODEL"),
        ):
            await backend.start()


async def test_a_loading_server_is_waited_for_until_the_ready_timeout(
    server: ScriptedServer,
) -> None:
    server.on(MODELS, LOADING, Reply({"data": []}))
    async with opened(OpenAIBackend(server.base_url)) as backend:
        await backend.start()
    server.on(MODELS, LOADING)
    async with opened(OpenAIBackend(server.base_url, ready_timeout_s=0.3)) as backend:
        with pytest.raises(BackendUnavailable, match="ready_timeout_s"):
            await backend.start()


async def test_a_server_that_hangs_is_not_ready(server: ScriptedServer) -> None:
    server.on(MODELS, Reply(hang=True))
    async with opened(OpenAIBackend(server.base_url, ready_timeout_s=0.3)) as backend:
        with anyio.fail_after(PATIENCE_S), pytest.raises(BackendUnavailable):
            await backend.wait_ready()


@pytest.mark.parametrize(("url", "slots"), [("ftp://h/v1", 4), ("http://h/v1", 0)])
def test_bad_settings_are_configuration_errors(url: str, slots: int) -> None:
    with pytest.raises(ConfigError):
        OpenAIBackend(url, slots=slots)


async def test_tokens_are_guessed_low(backend: OpenAIBackend) -> None:
    assert await backend.count_prompt_tokens((Message("user", "x" * 400),)) == 100


# In the engine


async def test_the_engine_honours_patience_order_and_slots(server: ScriptedServer) -> None:
    server.on(CHAT, Reply(b"", 429, {"Retry-After": "0.05"}), Reply(raw=b""), Reply(answer_body()))
    requests = [request(agent_id=f"agent_{n}") for n in range(8)]
    config = SchedulerConfig(retry_base_s=0.01)
    async with (
        opened(OpenAIBackend(server.base_url, slots=3)) as backend,
        Scheduler(backend, config) as scheduler,
    ):
        completions = await scheduler.run_step(requests)
    assert [one.request.agent_id for one in completions] == [f"agent_{n}" for n in range(8)]
    assert all(one.text == "hello" for one in completions)
    assert scheduler.stats.retries == 2
    assert scheduler.stats.max_in_flight == 3


async def test_an_answer_without_its_schema_is_asked_again_whatever_was_left_out(
    server: ScriptedServer,
) -> None:
    server.on(
        CHAT,
        refusal("response_format"),
        refusal("response_format"),
        Reply(answer_body("free text")),
        Reply(answer_body('{"a": 1}')),
    )
    async with (
        opened(OpenAIBackend(server.base_url)) as backend,
        Scheduler(backend) as scheduler,
    ):
        completion = await scheduler.submit(request(schema=OBJECT))
    assert [answer.text for answer in completion.answers] == ["free text", '{"a": 1}']
    assert completion.ok
    assert completion.attempts == 2


async def test_cancelling_hangs_up(server: ScriptedServer, backend: OpenAIBackend) -> None:
    server.on(CHAT, Reply(hang=True))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, backend)
        await anyio.to_thread.run_sync(server.wait_for, CHAT)
        tasks.cancel_scope.cancel()
    assert await anyio.to_thread.run_sync(server.hung_up.wait, PATIENCE_S)


async def test_cancelled_between_refusal_and_answer_leaves_the_backend_usable(
    server: ScriptedServer, backend: OpenAIBackend
) -> None:
    server.on(CHAT, refusal("seed"), Reply(hang=True))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, backend)
        await anyio.to_thread.run_sync(server.wait_for, CHAT, 2)
        tasks.cancel_scope.cancel()
    server.on(CHAT, Reply(answer_body()))
    assert await ask(backend) == "hello"
    assert backend.refused == {}


def test_it_works_on_trio_too(server: ScriptedServer) -> None:
    server.on(CHAT, refusal("seed"), Reply(answer_body()))

    async def main() -> None:
        async with (
            opened(OpenAIBackend(server.base_url)) as backend,
            Scheduler(backend) as scheduler,
        ):
            assert (await scheduler.submit(request())).text == "hello"
            assert backend.refused == {"m": ["seed"]}

    anyio.run(main, backend="trio")
