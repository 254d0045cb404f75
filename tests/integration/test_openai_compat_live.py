"""The OpenAI-compatible backend against a real llama-server, which it knows nothing of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from scheduler.backends.openai_compat import OpenAIBackend
from scheduler.engine import Scheduler
from scheduler.errors import ContextExceeded
from scheduler.types import Message, OutputSchema, Request, Sampling

pytestmark = pytest.mark.anyio

SCHEMA = OutputSchema(
    "act",
    {
        "type": "object",
        "properties": {"action": {"enum": ["trade", "wait"]}},
        "required": ["action"],
        "additionalProperties": False,
    },
)
KEY = "key-of-the-endpoint"


@pytest.fixture
async def backend(openai_endpoint: str) -> AsyncIterator[OpenAIBackend]:
    backend = OpenAIBackend(openai_endpoint, slots=3, api_key=KEY)
    yield backend
    await backend.aclose()


def request(n: int = 0, **changes: Any) -> Request:
    messages = (Message("system", "You trade."), Message("user", f"Round {n}: trade or wait?"))
    plain = Request(f"agent_{n}", messages, sampling=Sampling(0.8, 24), base_seed=5, model="demo")
    return replace(plain, **changes)


async def test_start_reaches_it_and_takes_nothing_but_the_configuration(
    backend: OpenAIBackend,
) -> None:
    info = await backend.start()
    await backend.wait_ready()
    assert (info.kind, info.slots, info.context_per_slot, info.model) == ("openai", 3, None, "")


async def test_answer_has_text_and_usage(backend: OpenAIBackend) -> None:
    answer = await backend.generate(request(), seed=1, slot=0)
    assert answer.usage.prompt_tokens > 0
    assert 0 < answer.usage.completion_tokens <= 24


async def test_the_seed_decides_the_text(backend: OpenAIBackend) -> None:
    texts = [(await backend.generate(request(), seed=seed, slot=0)).text for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


async def test_a_step_keeps_order_slots_and_schema(backend: OpenAIBackend) -> None:
    requests = [request(n, schema=SCHEMA, sampling=Sampling(1.0, 64)) for n in range(9)]
    async with Scheduler(backend) as scheduler:
        completions = await scheduler.run_step(requests)
    assert [one.request.agent_id for one in completions] == [f"agent_{n}" for n in range(9)]
    for completion in completions:
        jsonschema.validate(json.loads(completion.text), SCHEMA.schema)
    assert scheduler.stats.max_in_flight == 3
    assert backend.refused == {}


async def test_a_prompt_too_long_is_told(backend: OpenAIBackend) -> None:
    with pytest.raises(ContextExceeded, match="agent_0"):
        await backend.generate(request(messages=(Message("user", "w " * 20000),)), seed=1, slot=0)


def test_a_scenario_of_openai_agents_runs_against_it(openai_endpoint: str, tmp_path: Path) -> None:
    block = {"provider": "openai", "base_url": openai_endpoint, "model": "demo", "max_tokens": 300}
    scenario = {
        "scenario_id": "openai_live",
        "agents": [{"type": "llm", "count": 2, "llm": block}],
        "simulation": {"n_epochs": 1, "steps_per_epoch": 1, "seed": 7},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(scenario), encoding="utf-8")
    words = ["run", "s.yaml", "--inference-scheduler", "batch", "--run-dir", "r", "--slots", "2"]
    ran = subprocess.run(
        [sys.executable, "-m", "swarm_integration", *words],
        cwd=tmp_path,
        env={**os.environ, "OPENAI_API_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    manifest = json.loads((tmp_path / "r" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["inference"]["requests"] >= 2
    assert sum(one["chosen"] for one in manifest["actions"]["by_action"].values()) == 2
    assert manifest["inference"]["max_in_flight"] == 2
    assert [one["kind"] for one in manifest["backends"].values()] == ["openai"]
    assert manifest["refused_parameters"] == {}
