"""What the tests against real programs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from scheduler.gguf_models import write_model
from scheduler.server import ManagedServer, ServerSpec, find_server, server_flags
from scheduler.types import Sampling

ENDLESS = Sampling(max_tokens=10**9)
"""Asked of a server with `endless_flags`, an answer ends when nobody waits for it any more."""


def endless_flags(spec: ServerSpec) -> list[str]:
    """Return the flags of a server that no answer leaves, however fast it is.

    Not with the profile `invariant`: its cache, in BF16, is of a type that can't be shifted.
    """
    return [*server_flags(spec), "--ignore-eos", "--context-shift"]


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random-weight model that every llama.cpp can load."""
    path = tmp_path_factory.mktemp("model") / "demo.gguf"
    write_model(path, "demo")
    return path


@pytest.fixture(scope="module")
def openai_endpoint(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a real llama-server with 3 slots, to be used as any OpenAI endpoint."""
    pytest.importorskip("xllamacpp")
    spec = ServerSpec(demo_model, slots=3, ctx_per_slot=4096, threads=1, alias="demo")
    log_path = tmp_path_factory.mktemp("endpoint") / "server.log"
    server = ManagedServer(spec, binary=find_server("xllamacpp"), log_path=log_path)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(server):
        yield server.base_url
