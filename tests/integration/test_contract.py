"""The servers of the tests speak as a real llama-server does: the same cases, put to both.

What a double answers, a real server answers with the same status, the same kind of error and
the same fields of the same types. A double may know less, never something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from scheduler.backends.llama_server import LlamaServerBackend
from scheduler.errors import AttemptError, ContextExceeded
from scheduler.server import ManagedServer, ServerSpec, find_server
from scheduler.types import Message, Request, Sampling
from tests.wire.chaos import chaos
from tests.wire.chaos_server import FAULTS
from tests.wire.scripted_server import Reply, answer_body

SLOTS = 2
CONTEXT = 2048
CHAT = "/v1/chat/completions"
PROMPT = {"messages": [{"role": "user", "content": "I am agent-000. What now?"}], "max_tokens": 8}


@pytest.fixture(scope="module")
def real(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("xllamacpp")
    spec = ServerSpec(demo_model, SLOTS, CONTEXT, threads=1, alias="demo")
    log_path = tmp_path_factory.mktemp("real") / "server.log"
    server = ManagedServer(spec, binary=find_server("xllamacpp"), log_path=log_path)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(server):
        yield server.base_url


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with chaos(tmp_path_factory.mktemp("double") / "record", slots=SLOTS) as server:
        yield server.base_url


@pytest.fixture(params=["real", "double"])
def address(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def client(address: str) -> httpx.Client:
    return httpx.Client(base_url=address.removesuffix("/v1"), trust_env=False, timeout=60)


def check_is_part_of(double: Any, real: Any, place: str = "$") -> None:
    """Check that each field of `double` is in `real` too, with a value of the same type."""
    if isinstance(double, dict):
        assert isinstance(real, dict), place
        for key, value in double.items():
            assert key in real, f"{place}.{key} is in no real answer"
            check_is_part_of(value, real[key], f"{place}.{key}")
    elif isinstance(double, list):
        assert isinstance(real, list), place
        if double:
            assert real, place
            check_is_part_of(double[0], real[0], f"{place}[0]")
    elif isinstance(double, int | float) and not isinstance(double, bool):
        assert isinstance(real, int | float), place
    elif double is not None:
        assert type(double) is type(real), place


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/health", None),
        ("GET", "/props", None),
        ("GET", "/v1/models", None),
        ("POST", "/apply-template", {"messages": PROMPT["messages"]}),
        ("POST", "/tokenize", {"content": "hello", "add_special": True}),
        ("POST", CHAT, PROMPT),
        ("GET", "/no/such/route", None),
    ],
)
def test_a_double_answers_a_part_of_what_a_real_server_answers(
    real: str, double: str, method: str, path: str, body: Any
) -> None:
    with client(real) as one, client(double) as other:
        said = one.request(method, path, json=body)
        doubled = other.request(method, path, json=body)
    assert said.status_code == doubled.status_code
    assert "json" in said.headers["content-type"]
    assert "json" in doubled.headers["content-type"]
    check_is_part_of(doubled.json(), said.json())


def test_a_prompt_that_is_too_long_is_refused_as_the_double_does(real: str) -> None:
    words = [{"role": "user", "content": "word " * 4 * CONTEXT}]
    with client(real) as one:
        said = one.post(CHAT, json={**PROMPT, "messages": words})
    doubled = FAULTS["400 too long"](Reply(answer_body()))
    assert said.status_code == doubled.status == 400
    check_is_part_of(doubled.body, said.json())
    assert said.json()["error"]["type"] == doubled.body["error"]["type"]


def test_a_request_that_makes_no_sense_is_refused_as_the_double_does(real: str) -> None:
    with client(real) as one:
        said = one.post(CHAT, json={**PROMPT, "messages": "not a list"})
    doubled = FAULTS["400"](Reply(answer_body()))
    assert said.status_code == doubled.status == 400
    check_is_part_of(doubled.body, said.json())


# --- the backend, put before both


def request(words: str = "What now?", max_tokens: int = 8) -> Request:
    return Request("ann", (Message("user", words),), sampling=Sampling(max_tokens=max_tokens))


@pytest.mark.anyio
async def test_a_backend_cannot_tell_them_apart(address: str) -> None:
    backend = LlamaServerBackend(address)
    info = await backend.start()
    answer = await backend.generate(request(), seed=7, slot=0)
    again = await backend.generate(request(), seed=7, slot=0)
    tokens = await backend.count_prompt_tokens(request().messages)
    await backend.wait_ready()
    await backend.aclose()
    assert (info.kind, info.slots, info.context_per_slot) == ("llama_server", SLOTS, CONTEXT)
    assert info.model == "demo"
    assert answer.text == again.text
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.completion_tokens > 0
    assert answer.prefill_ms is not None
    assert tokens is not None
    assert tokens > 0


@pytest.mark.anyio
async def test_a_request_that_hangs_up_leaves_the_server_usable(address: str) -> None:
    backend = LlamaServerBackend(address)
    await backend.start()
    for _ in range(3):
        with anyio.move_on_after(0.02):
            await backend.generate(request(max_tokens=1500), seed=7, slot=0)
    with anyio.fail_after(60):
        assert (await backend.generate(request(), seed=7, slot=1)).text
    await backend.aclose()


@pytest.mark.anyio
async def test_a_prompt_that_is_too_long_is_the_same_error(real: str, tmp_path: Path) -> None:
    said = await failure(real, request("word " * 4 * CONTEXT))
    with chaos(tmp_path / "record", script={"word": ["400 too long"]}) as server:
        doubled = await failure(server.base_url, request("word"))
    assert type(said) is type(doubled) is ContextExceeded
    assert "ann's prompt has" in str(said)
    assert "ann's prompt has" in str(doubled)


async def failure(address: str, asked: Request) -> AttemptError:
    backend = LlamaServerBackend(address)
    with pytest.raises(AttemptError) as caught:
        await backend.generate(asked, seed=7, slot=0)
    await backend.aclose()
    return caught.value
