"""The locked engine, certified: one answer after another, in any order, cached or not."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from scheduler.backends.llama_inproc import LlamaInprocBackend
from scheduler.certification import certify
from scheduler.gguf_models import ModelShape, write_model
from scheduler.verdict import Level

if importlib.util.find_spec("llama_cpp") is None and os.environ.get("REQUIRE_LLAMA_CPP") != "1":
    pytest.skip("llama-cpp-python is not installed", allow_module_level=True)

pytestmark = pytest.mark.anyio


async def test_the_locked_engine_is_invariant(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    write_model(path, ModelShape("small", layers=2, width=128, heads=2, kv_heads=2, ff_width=256))
    backend = LlamaInprocBackend(path, n_ctx=1024, n_threads=1)
    found = await certify(backend, quick=True)
    await backend.aclose()
    assert found.verdict.level is Level.INVARIANT, found.verdict.reason
    assert found.compared == ("token ids",)
    assert (found.slots, found.most_in_flight) == (1, 1)
    assert sum(one.cached for one in found.evidence) > 0
    assert sum(one.fresh for one in found.evidence) > 0
