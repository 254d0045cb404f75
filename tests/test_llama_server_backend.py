"""The llama-server backend against a scripted server: every fault, and what it becomes."""

from __future__ import annotations

import copy
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.backends import openai_chat
from scheduler.backends.base import RawAnswer
from scheduler.backends.chat_answer import error_of, parse_answer, retry_after_s
from scheduler.backends.llama_probe import FIXED_SAMPLING
from scheduler.backends.llama_server import LlamaServerBackend
from scheduler.errors import (
    AttemptError,
    AuthenticationFailed,
    BackendUnavailable,
    ConfigError,
    ConnectionFailed,
    ContextExceeded,
    MalformedAnswer,
    RequestRejected,
    ServerBusy,
    ServerFault,
    ServerLoading,
)
from scheduler.types import FinishReason, Message, OutputSchema, Request, Sampling, Usage
from tests.wire.scripted_server import (
    CHAT,
    HEALTH,
    LOADING,
    MODELS,
    PATIENCE_S,
    PROPS,
    TEMPLATE,
    TOKENIZE,
    Reply,
    ScriptedServer,
    answer_body,
    error_body,
    props_body,
)

pytestmark = pytest.mark.anyio

JSON = "application/json"
REQUEST = Request("ann", (Message("system", "You are Ann."), Message("user", "Hi")), model="m")
SCHEMA = OutputSchema("act", {"type": "object", "properties": {"a": {"type": "integer"}}})


@pytest.fixture(scope="module")
def running_server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def server(running_server: ScriptedServer) -> ScriptedServer:
    running_server.reset()
    return running_server


@pytest.fixture
async def backend(server: ScriptedServer) -> AsyncIterator[LlamaServerBackend]:
    backend = LlamaServerBackend(server.base_url, ready_timeout_s=10)
    yield backend
    await backend.aclose()


async def ask(backend: LlamaServerBackend, request: Request = REQUEST, slot: int = 2) -> RawAnswer:
    return await backend.generate(request, seed=7, slot=slot)


async def failure(backend: LlamaServerBackend, request: Request = REQUEST) -> AttemptError:
    with pytest.raises(AttemptError) as caught:
        await ask(backend, request)
    return caught.value


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def test_answer_has_text_tokens_and_timings(backend: LlamaServerBackend) -> None:
    assert await ask(backend) == RawAnswer(
        "hello",
        FinishReason.STOP,
        Usage(39, 15, 38),
        prefill_ms=0.822,
        decode_ms=6.67,
        served_by="demo b0-unknown",
    )


async def test_every_sampling_parameter_is_sent(
    server: ScriptedServer, backend: LlamaServerBackend
) -> None:
    sampling = Sampling(0.5, 33, 7, 0.8, 0.02, 1.1, 0.2, 0.3)
    await ask(backend, Request("ann", REQUEST.messages, sampling=sampling, model="m"))
    assert server.requests()[0].json == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "You are Ann."},
            {"role": "user", "content": "Hi"},
        ],
        "temperature": 0.5,
        "max_tokens": 33,
        "top_k": 7,
        "top_p": 0.8,
        "min_p": 0.02,
        "repeat_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "seed": 7,
        "stream": False,
        "cache_prompt": True,
        "reasoning_format": "deepseek",
        **FIXED_SAMPLING,
    }


async def test_schema_slot_and_thinking_are_sent_when_asked_for(server: ScriptedServer) -> None:
    backend = LlamaServerBackend(server.base_url, pin_slots=True)
    request = Request("a", REQUEST.messages, sampling=Sampling(thinking=False), schema=SCHEMA)
    await ask(backend, request, slot=3)
    await backend.aclose()
    body = server.requests()[0].json
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "act", "schema": SCHEMA.schema, "strict": True},
    }
    assert body["id_slot"] == 3
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


async def test_tokens_are_asked_for_and_read_when_wanted(
    server: ScriptedServer, backend: LlamaServerBackend
) -> None:
    body = answer_body()
    tokens = [{"id": 7, "logprob": -0.10000000149011612}, {"id": 0, "logprob": 0}]
    body["choices"][0]["logprobs"] = {"content": tokens}
    server.on(CHAT, Reply(body))
    request = Request("ann", REQUEST.messages, report_tokens=True)
    answer = await backend.generate(request, seed=7, slot=0)
    assert (answer.token_ids, answer.logprobs) == ((7, 0), (-0.10000000149011612, 0.0))
    sent = server.requests()[0].json
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 1)


@pytest.mark.parametrize(
    "content",
    [
        None,
        7,
        [7],
        [{"id": 1, "logprob": -1.0}, {}],
        [{"id": True, "logprob": True}],
        [{"id": "1", "logprob": float("nan")}],
        [{"id": 1.5, "logprob": 10**400}],
    ],
)
def test_tokens_that_are_not_all_told_are_none(content: Any) -> None:
    body = answer_body()
    body["choices"][0]["logprobs"] = {"content": content}
    answer = parse_answer(json.dumps(body).encode(), JSON)
    assert (answer.token_ids, answer.logprobs) == ((), ())


async def test_one_connection_is_reused_and_nothing_foreign_is_sent(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    backend = LlamaServerBackend(server.base_url, api_key="key-1")
    for _ in range(5):
        await ask(backend)
    await backend.aclose()
    headers = server.requests()[0].headers
    assert server.connections == 1
    assert headers["authorization"] == "Bearer key-1"
    assert headers["accept-encoding"] == "identity"
    assert "openai-organization" not in headers
    assert "openai-project" not in headers


async def test_prompts_and_keys_are_not_logged(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="scheduler")
    caplog.set_level(logging.INFO)
    backend = LlamaServerBackend(server.base_url, api_key="key-1")
    await ask(backend)
    server.on(CHAT, Reply(error_body(400, "bad", "invalid_request_error"), status=400))
    said = str(await failure(backend))
    await backend.aclose()
    assert "You are Ann" not in caplog.text + said
    assert "key-1" not in caplog.text + said + repr(backend)


CONTEXT = error_body(400, "too long", "exceed_context_size_error", n_prompt_tokens=3015, n_ctx=512)
OVERFLOW = error_body(500, "Context size has been exceeded.", "server_error")
BUSY = error_body(503, "all slots busy", "server_error")
FAILURES: dict[str, tuple[Reply, type[AttemptError], str]] = {
    "hang-up": (Reply(raw=b""), ConnectionFailed, "check that the server runs"),
    "reset": (Reply(reset=True), ConnectionFailed, "check that the server runs"),
    "loading": (LOADING, ServerLoading, "still loads"),
    "busy": (Reply(BUSY, 503, {"Retry-After": "3"}), ServerBusy, "all slots busy"),
    "503": (Reply(BUSY, 503), ServerFault, "all slots busy"),
    "502 busy": (Reply(b"", 502, {"Retry-After": "1"}), ServerBusy, "502"),
    "429": (Reply(error_body(429, "slow down", "rate"), 429), ServerBusy, "slow down"),
    "context": (
        Reply(CONTEXT, 400),
        ContextExceeded,
        "ann's prompt has 3015 tokens.*512.*ctx-size",
    ),
    "overflow": (Reply(OVERFLOW, 500), ContextExceeded, "ann.*ctx-size"),
    "openai context": (
        Reply({"error": {"code": "context_length_exceeded"}}, 400),
        ContextExceeded,
        "ann",
    ),
    "no key": (Reply(error_body(401, "Invalid API Key", "auth"), 401), AuthenticationFailed, "key"),
    "forbidden": (Reply(b"", 403), AuthenticationFailed, "api_key_env"),
    "bad field": (Reply(error_body(400, "Field 'x'", "i"), 400), RequestRejected, "Field 'x'"),
    "no route": (Reply(b"", 404), RequestRejected, "/v1"),
    "teapot": (Reply({"error": "short"}, 418), RequestRejected, "short"),
    "not implemented": (Reply(b"", 501), RequestRejected, "501"),
    "redirect": (Reply(b"", 307, {"Location": "/x"}), RequestRejected, "redirects"),
    "fault": (Reply(error_body(500, "broke", "server_error"), 500), ServerFault, "broke"),
    "odd error": (Reply({"error": [1]}, 500), ServerFault, "500"),
    "no content": (Reply(b"", 204), MalformedAnswer, "204"),
    "broken JSON": (Reply(b'{"choices": ['), MalformedAnswer, "not a JSON object"),
    "not UTF-8": (Reply(b'{"a": "\xff"}'), MalformedAnswer, "not a JSON object"),
    "deep": (Reply(b"[" * 100_000), MalformedAnswer, "not a JSON object"),
    "list": (Reply([1]), MalformedAnswer, "not a JSON object"),
    "HTML": (Reply(b"<p>", content_type="text/html"), MalformedAnswer, "text/html"),
    "no type": (Reply(content_type=""), MalformedAnswer, "no content type"),
    "no choices": (Reply({"choices": []}), MalformedAnswer, "no text"),
    "null choice": (Reply({"choices": [None]}), MalformedAnswer, "no text"),
    "null content": (Reply(answer_body(content=None)), MalformedAnswer, "no text"),
    "content list": (Reply(answer_body(content=["a"])), MalformedAnswer, "no text"),
    "200 error": (Reply(OVERFLOW), MalformedAnswer, "200 with an error.*Context"),
    "200 odd error": (Reply({"error": 5}), MalformedAnswer, "200 with an error"),
    "short": (Reply(answer_body(), claimed_length=9999), MalformedAnswer, "broke off"),
    "short error": (Reply(b"{", 500, claimed_length=99), MalformedAnswer, "broke off"),
    "not HTTP": (Reply(raw=b"SSH-2.0-x\r\n\r\n"), MalformedAnswer, "does not speak HTTP"),
    "gzip lie": (Reply(b"{}", headers={"Content-Encoding": "gzip"}), MalformedAnswer, "compressed"),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_failure_becomes_its_error(
    server: ScriptedServer, backend: LlamaServerBackend, name: str
) -> None:
    reply, kind, says = FAILURES[name]
    server.on(CHAT, reply)
    with pytest.raises(AttemptError, match=says) as caught:
        await ask(backend)
    assert type(caught.value) is kind
    assert len(server.requests()) == 1
    server.on(CHAT, Reply(answer_body()))
    assert (await ask(backend)).text == "hello"


async def test_refused_connection_is_connection_failed() -> None:
    backend = LlamaServerBackend(f"http://user:pw@127.0.0.1:{unused_port()}/v1")
    error = await failure(backend)
    assert type(error) is ConnectionFailed
    assert "pw" not in str(error)
    await backend.aclose()


async def test_the_deadline_for_connecting_is_none_for_the_answer(server: ScriptedServer) -> None:
    server.on(CHAT, Reply(answer_body(), delay_s=1.5))
    backend = LlamaServerBackend(server.base_url, connect_timeout_s=0.75)
    assert (await ask(backend)).text == "hello"
    await backend.aclose()


async def test_a_server_that_speaks_no_tls_is_connection_failed(server: ScriptedServer) -> None:
    backend = LlamaServerBackend(server.base_url.replace("http:", "https:"), connect_timeout_s=0.1)
    error = await failure(backend)
    assert type(error) is ConnectionFailed
    await backend.aclose()


async def test_an_endless_answer_is_cut(
    server: ScriptedServer, backend: LlamaServerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_chat, "MAX_BODY_BYTES", 1000)
    for status, length in ((200, 2000), (500, 2000), (200, 3_000_000)):
        server.on(CHAT, Reply(b" " * length, status))
        assert "longer than 1000" in str(await failure(backend))


@pytest.mark.parametrize("value", [float("nan"), "\ud800", {1, 2}, object()])
async def test_what_json_cannot_hold_is_rejected(backend: LlamaServerBackend, value: Any) -> None:
    request = Request("ann", REQUEST.messages, schema=OutputSchema("s", {"const": value}))
    assert type(await failure(backend, request)) is RequestRejected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("3", 3.0),
        (" 0.5 ", 0.5),
        ("0", 0.0),
        ("Sat, 21 Nov 2026 10:00:07 GMT", 7.0),
        ("Sat, 21 Nov 2026 09:00:00 GMT", 0.0),
        ("-1", None),
        ("nan", None),
        ("1e9", None),
        ("9" * 400, None),
        ("soon", None),
        ("", None),
        ("Sat, 99 Nov 2026 10:00:07 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(given: str, expected: float | None) -> None:
    date = "Sat, 21 Nov 2026 10:00:00 GMT"
    assert retry_after_s({"retry-after": given, "date": date}) == expected


async def test_retry_after_reaches_the_error(
    server: ScriptedServer, backend: LlamaServerBackend
) -> None:
    server.on(CHAT, Reply(b"", 429, {"Retry-After": "2.5"}))
    error = await failure(backend)
    assert isinstance(error, ServerBusy)
    assert error.retry_after_s == 2.5


def parsed(**changes: Any) -> RawAnswer:
    return parse_answer(json.dumps(answer_body() | changes).encode(), JSON)


@pytest.mark.parametrize(
    ("text", "message", "expected"),
    [
        ("<think>a b</think>\n{}", {}, ("{}", "a b")),
        ("\n<think>\na</think>b<think>", {}, ("b<think>", "a")),
        ("<think>cut off", {}, ("", "cut off")),
        ("x <think>y</think>", {}, ("x <think>y</think>", "")),
        ("b", {"reasoning_content": "a"}, ("b", "a")),
        ("b", {"reasoning": "a"}, ("b", "a")),
        ("", {"content": None, "reasoning_content": "a"}, ("", "a")),
        ("a\ud83d b \ud83d\ude00", {"reasoning": "\udc00"}, ("a\ufffd b \U0001f600", "\ufffd")),
    ],
)
def test_thoughts_are_kept_apart(text: str, message: Any, expected: tuple[str, str]) -> None:
    answer = parse_answer(json.dumps(answer_body(text, **message)).encode(), JSON)
    assert (answer.text, answer.reasoning) == expected


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("tool_calls", FinishReason.OTHER),
        (None, FinishReason.OTHER),
        ([], FinishReason.OTHER),
    ],
)
def test_finish_reason_is_known_or_other(reason: Any, expected: FinishReason) -> None:
    choice = answer_body()["choices"][0] | {"finish_reason": reason}
    assert parsed(choices=[choice]).finish_reason is expected


@pytest.mark.parametrize("bad", [None, -1, True, "7", 1.5, 2**40, [], {}])
def test_nonsense_counts_are_zero(bad: Any) -> None:
    usage = {"prompt_tokens": bad, "completion_tokens": bad, "prompt_tokens_details": bad}
    assert parsed(usage=usage, timings=bad).usage == Usage(0, 0, 0)
    assert parsed(usage=None).usage == Usage(39, 15, 38)


@pytest.mark.parametrize(
    "bad", ["NaN", "Infinity", "-1", "true", '"5"', "null", "1e999", "9" * 400]
)
def test_nonsense_times_are_none(bad: str) -> None:
    body = json.dumps(answer_body() | {"timings": 0})
    times = f'{{"prompt_ms": {bad}, "predicted_ms": {bad}}}'
    answer = parse_answer(body.replace('"timings": 0', f'"timings": {times}').encode(), JSON)
    assert (answer.prefill_ms, answer.decode_ms) == (None, None)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    return [at] * bool(at) + [found for key in keys for found in places(value[key], (*at, key))]


@st.composite
def mutated(draw: st.DrawFn, body: dict[str, Any]) -> bytes:
    """A valid body with a few values replaced or gone, and sometimes a few bytes changed."""
    body = copy.deepcopy(body)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(body) or [("choices",)]))
        inner: Any = body
        for key in way:
            inner = inner[key]
        if draw(st.booleans()) or not isinstance(inner, dict) or last not in inner:
            inner[last] = draw(JUNK)
        else:
            del inner[last]
    content = json.dumps(body, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    start, removed = draw(st.integers(0, len(content))), draw(st.sampled_from([0, 0, 1, 9, 9999]))
    added = draw(st.binary(max_size=3)) if removed else b""
    return content[:start] + added + content[start + removed :]


@settings(max_examples=200, deadline=None)
@given(mutated(answer_body("hi", reasoning_content="hm")))
def test_any_body_is_an_answer_or_a_malformed_one(content: bytes) -> None:
    try:
        answer = parse_answer(content, JSON)
    except MalformedAnswer:
        return
    (answer.text + answer.reasoning).encode()
    assert answer.usage.prompt_tokens >= 0


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([100, 302, 400, 401, 429, 500, 503]), mutated(CONTEXT), st.text())
def test_any_error_body_is_an_attempt_error(status: int, content: bytes, header: str) -> None:
    error = error_of(status, {"retry-after": header}, content, agent_id="ann")
    assert isinstance(error, AttemptError)
    str(error).encode()


@settings(max_examples=25, deadline=None)
@given(content=mutated(answer_body()), status=st.sampled_from([200, 200, 200, 400, 500]))
def test_any_bytes_on_the_wire_are_an_answer_or_an_attempt_error(
    running_server: ScriptedServer, content: bytes, status: int
) -> None:
    running_server.on(CHAT, Reply(content, status))

    async def once() -> None:
        backend = LlamaServerBackend(running_server.base_url)
        try:
            await ask(backend)
        except AttemptError as exc:
            str(exc).encode()
        finally:
            await backend.aclose()

    anyio.run(once)


async def test_cancelling_hangs_up(server: ScriptedServer, backend: LlamaServerBackend) -> None:
    server.on(CHAT, Reply(hang=True))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, backend)
        await anyio.to_thread.run_sync(server.wait_for, CHAT)
        tasks.cancel_scope.cancel()
    assert tasks.cancel_scope.cancelled_caught
    assert await anyio.to_thread.run_sync(server.hung_up.wait, PATIENCE_S)
    server.on(CHAT, Reply(answer_body()))
    assert (await ask(backend)).text == "hello"


async def test_more_requests_than_connections_do_not_queue_in_the_client(
    server: ScriptedServer, backend: LlamaServerBackend
) -> None:
    together = threading.Event()
    server.on(CHAT, Reply(answer_body(), hold=together))
    async with anyio.create_task_group() as tasks:
        for _ in range(40):
            tasks.start_soon(ask, backend)
        # None is answered before all have come.
        await anyio.to_thread.run_sync(server.wait_for, CHAT, 40)
        together.set()
    assert len(server.requests()) == 40


async def test_start_reads_what_the_server_is(
    server: ScriptedServer, backend: LlamaServerBackend
) -> None:
    info = await backend.start()
    assert (info.kind, info.slots, info.context_per_slot) == ("llama_server", 4, 2048)
    assert (info.model, info.build) == ("demo", "b1234-abc")
    assert info.facts["model_file"] == "demo.gguf"
    assert len(info.facts["chat_template_sha256"]) == 64
    assert "secret" not in json.dumps(info.facts)
    server.on(PROPS, Reply(props_body(total_slots=1)))
    assert await backend.start() is info


@pytest.mark.parametrize(
    ("changes", "model"),
    [
        ({"model_alias": None}, "demo.gguf"),
        ({"model_alias": "", "model_path": "C:\\models\\win.gguf"}, "win.gguf"),
        ({"model_alias": None, "model_path": None}, "listed.gguf"),
    ],
)
async def test_model_name_is_never_a_path(
    server: ScriptedServer, backend: LlamaServerBackend, changes: Any, model: str
) -> None:
    server.on(PROPS, Reply(props_body(**changes)))
    assert (await backend.start()).model == model


async def test_missing_models_route_and_context_are_unknown(
    server: ScriptedServer, backend: LlamaServerBackend
) -> None:
    changes = {"model_alias": None, "model_path": 3, "default_generation_settings": None}
    server.on(PROPS, Reply(props_body(**changes)))
    server.on(MODELS, Reply(b"", 404))
    info = await backend.start()
    assert (info.model, info.context_per_slot) == ("", None)


async def test_start_waits_while_the_model_loads(
    server: ScriptedServer, backend: LlamaServerBackend
) -> None:
    server.on(HEALTH, LOADING, Reply({"status": "ok"}))
    assert (await backend.start()).slots == 4
    assert len(server.requests(HEALTH)) == 2


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (LOADING, "ready_timeout_s"),
        (Reply(hang=True), "hangs: it has answered nothing"),
        (Reply(b"", 502), "ready_timeout_s"),
    ],
)
async def test_start_gives_up_at_the_ready_timeout(
    server: ScriptedServer, reply: Reply, says: str
) -> None:
    backend = LlamaServerBackend(server.base_url, ready_timeout_s=0.5)
    server.on(HEALTH, reply)
    with anyio.fail_after(PATIENCE_S), pytest.raises(BackendUnavailable, match=says):
        await backend.start()
    await backend.aclose()


async def test_start_without_a_server_fails_soon_and_says_how_to_start_one() -> None:
    backend = LlamaServerBackend(f"http://127.0.0.1:{unused_port()}/v1", connect_grace_s=0.05)
    with (
        anyio.fail_after(PATIENCE_S),
        pytest.raises(BackendUnavailable, match="swarm-inference serve"),
    ):
        await backend.start()
    await backend.aclose()


@pytest.mark.parametrize(
    ("route", "reply", "says"),
    [
        (PROPS, Reply(b"", 404), "as a llama-server does"),
        (PROPS, Reply(b"", 501), "as a llama-server does"),
        (PROPS, Reply({"role": "router"}), "total_slots"),
        (PROPS, Reply(b"", 401), "api_key_env"),
        (HEALTH, Reply(b"", 404), "as a llama-server does"),
        (HEALTH, Reply(b"<html>", content_type="text/html"), "text/html"),
        (HEALTH, Reply(b"", 302, {"Location": "/x"}), "redirects"),
    ],
)
async def test_start_refuses_what_is_no_llama_server(
    server: ScriptedServer, route: str, reply: Reply, says: str
) -> None:
    backend = LlamaServerBackend(server.base_url, ready_timeout_s=10 * PATIENCE_S)
    server.on(route, reply)
    with anyio.fail_after(PATIENCE_S), pytest.raises(ConfigError, match=says):
        await backend.start()
    await backend.aclose()


@pytest.mark.parametrize("url", ["ftp://h/v1", "127.0.0.1:8080", "http://[", "http://h:99999/v1"])
def test_a_bad_address_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        LlamaServerBackend(url)


@pytest.mark.parametrize("key", ["", "caf\xe9", "a\nb"])
def test_a_key_that_no_header_holds_is_a_configuration_error(key: str) -> None:
    with pytest.raises(ConfigError, match="api_key_env"):
        LlamaServerBackend(api_key=key)


async def test_wait_ready_waits_for_a_server_that_is_restarting() -> None:
    port = unused_port()
    backend = LlamaServerBackend(
        f"http://127.0.0.1:{port}/v1", ready_timeout_s=PATIENCE_S, connect_grace_s=0.0
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend.wait_ready)
        await anyio.sleep(0.15)
        server = ScriptedServer(port)
        server.on(HEALTH, LOADING, Reply({"status": "ok"}))
        server.__enter__()
    server.__exit__(None, None, None)
    await backend.aclose()


async def test_wait_ready_gives_up_at_the_ready_timeout() -> None:
    backend = LlamaServerBackend(f"http://127.0.0.1:{unused_port()}/v1", ready_timeout_s=0.2)
    with anyio.fail_after(PATIENCE_S), pytest.raises(BackendUnavailable):
        await backend.wait_ready()
    await backend.aclose()


async def test_a_server_that_did_not_come_back_is_looked_for_once_and_not_waited_for(
    server: ScriptedServer,
) -> None:
    backend = LlamaServerBackend(server.base_url, ready_timeout_s=1.0)
    await backend.start()
    server.on(HEALTH, Reply(reset=True))
    probes = []
    for _ in range(3):
        before = len(server.requests(HEALTH))
        with pytest.raises(BackendUnavailable):
            await backend.wait_ready()
        probes.append(len(server.requests(HEALTH)) - before)
    assert probes[0] > 1
    assert probes[1:] == [1, 1]
    server.on(HEALTH, Reply({"status": "ok"}))
    await backend.wait_ready()
    server.on(HEALTH, Reply(reset=True))
    with pytest.raises(BackendUnavailable):
        await backend.wait_ready()
    assert len(server.requests(HEALTH)) > sum(probes) + 3, "is waited for again"
    await backend.aclose()


async def test_wait_ready_refuses_a_server_that_came_back_as_another(
    server: ScriptedServer, backend: LlamaServerBackend
) -> None:
    await backend.start()
    await backend.wait_ready()
    server.on(PROPS, Reply(props_body(model_alias="other", chat_template="x")))
    with pytest.raises(BackendUnavailable, match=r"model: 'demo', now 'other', chat_template"):
        await backend.wait_ready()


async def test_who_answers_is_asked_once_for_each_connection(
    server: ScriptedServer, backend: LlamaServerBackend
) -> None:
    await backend.start()
    for _ in range(5):
        await ask(backend)
    assert len(server.requests(PROPS)) == 2
    server.on(CHAT, Reply(answer_body(), close=True))
    for _ in range(5):
        await ask(backend)
    assert len(server.requests(PROPS)) <= server.connections + 2


async def test_an_answer_of_a_server_that_was_swapped_is_not_taken(
    server: ScriptedServer, backend: LlamaServerBackend
) -> None:
    await backend.start()
    server.on(CHAT, Reply(answer_body(), close=True))
    await ask(backend)
    server.on(PROPS, Reply(props_body(model_path="/models/other.gguf")))
    error = await failure(backend)
    assert isinstance(error, ConnectionFailed)
    assert "another server than the run began with" in str(error)
    assert "model_file: 'demo.gguf', now 'other.gguf'" in str(error)
    server.on(PROPS, Reply(props_body()))
    assert (await ask(backend)).text == "hello"


@pytest.mark.parametrize("change", [{"model": "other"}, {"system_fingerprint": "b2"}])
async def test_a_server_swapped_behind_an_open_connection_shows_in_its_answers(
    change: dict[str, str], server: ScriptedServer, backend: LlamaServerBackend
) -> None:
    await backend.start()
    await ask(backend)
    server.on(PROPS, Reply(props_body(model_alias="other")))
    assert (await ask(backend)).text == "hello"
    server.on(CHAT, Reply(answer_body() | change))
    for _ in range(2):
        assert isinstance(await failure(backend), ConnectionFailed)


async def test_a_server_that_gives_the_answer_another_name_is_still_the_same(
    server: ScriptedServer, backend: LlamaServerBackend
) -> None:
    await backend.start()
    for name in ("demo", "asked for", "demo", "asked for"):
        server.on(CHAT, Reply(answer_body() | {"model": name}))
        await ask(backend)
    assert len(server.requests(PROPS)) == 3


async def test_an_answer_is_not_taken_from_who_does_not_say_who_it_is(
    server: ScriptedServer, backend: LlamaServerBackend
) -> None:
    await backend.start()
    server.on(PROPS, LOADING)
    assert isinstance(await failure(backend), ServerLoading)


async def test_tokens_are_counted_with_the_chat_template(
    server: ScriptedServer, backend: LlamaServerBackend
) -> None:
    assert await backend.count_prompt_tokens(REQUEST.messages) == 3
    assert server.requests(TEMPLATE)[0].json == {
        "messages": server_messages(REQUEST.messages),
    }
    assert server.requests(TOKENIZE)[0].json == {
        "content": "<s>hi",
        "add_special": True,
        "parse_special": True,
    }


def server_messages(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


@pytest.mark.parametrize("route", [TEMPLATE, TOKENIZE])
@pytest.mark.parametrize("reply", [Reply(b"", 404), Reply({}), Reply({"prompt": 1, "tokens": 2})])
async def test_tokens_are_unknown_without_the_routes(
    server: ScriptedServer, backend: LlamaServerBackend, route: str, reply: Reply
) -> None:
    server.on(route, reply)
    assert await backend.count_prompt_tokens(REQUEST.messages) is None


async def test_token_count_fails_where_the_server_does(
    server: ScriptedServer, backend: LlamaServerBackend
) -> None:
    server.on(TEMPLATE, LOADING)
    with pytest.raises(ServerLoading):
        await backend.count_prompt_tokens(REQUEST.messages)
    server.on(TEMPLATE, Reply(b"", 401))
    with pytest.raises(AuthenticationFailed):
        await backend.count_prompt_tokens(REQUEST.messages)


async def test_closing_twice_is_fine(server: ScriptedServer) -> None:
    backend = LlamaServerBackend(server.base_url)
    await ask(backend)
    await backend.aclose()
    await backend.aclose()
