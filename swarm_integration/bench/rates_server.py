"""What a llama-server needs for prompts and decode steps, from the timings in its own answers."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from swarm_integration.bench.chained_oracle import chained_oracle
from swarm_integration.bench.library import messages_of
from swarm_integration.bench.oracle import Ask, Rates, Tokens
from swarm_integration.bench.servers import ServerView, server_of
from swarm_integration.bench.turns import TIMEOUT_S, Measured, Turn
from swarm_integration.bench.workload import Workload
from swarm_integration.rundir import SERVER_LOG

POINTS = 4
REPEATS = 2
WRITTEN = 33
"""Tokens that each slot writes while a decode step is timed."""


async def measure_server(turn: Turn, workload: Workload) -> Measured:
    """Measure a server that is started as ours is, and return its oracle."""
    server = server_of(turn, workload)
    slots = server.spec.slots
    async with server:
        with ServerView(server, Path(turn.folder) / SERVER_LOG) as view:
            view.warm_up()
            steps = [
                [Ask(view.tokens(messages_of(each)), each.output_tokens) for each in one]
                for one in workload.rounds
            ]
            prompts = typical([ask.tokens for step in steps for ask in step], slots)
            prefill = tuple(_prefill(view, prompts[0]))
            step_s = await _steps(server.base_url.removesuffix("/v1"), prompts)
            build = view.build()
    oracles = {"e": chained_oracle(steps, slots, Rates(prefill, step_s))}
    return Measured(prefill, step_s, oracles, build.name, build.instructions)


def typical(prompts: Sequence[Tokens], count: int) -> list[Tokens]:
    """Return `count` prompts whose lengths are nearest to the median; some twice if need be."""
    middle = statistics.median(map(len, prompts))
    nearest = sorted(prompts, key=lambda tokens: abs(len(tokens) - middle))
    return [nearest[index % len(nearest)] for index in range(count)]


def rows_up_to(most: int) -> list[int]:
    """Return the numbers of rows that are timed: powers of two, and `most`."""
    powers = [2**power for power in range(most.bit_length()) if 2**power < most]
    return [*powers, most]


def _prefill(view: ServerView, prompt: Tokens) -> list[tuple[int, float]]:
    """Return the fastest reading of the prompt's beginnings, from nothing."""
    lengths = sorted({max(1, len(prompt) * part // POINTS) for part in range(1, POINTS + 1)})
    found = []
    for length in lengths:
        body = {**_body(prompt[:length], 0, 1), "cache_prompt": False}
        took = [view.post("/completion", body)["timings"]["prompt_ms"] for _ in range(REPEATS)]
        found.append((length, min(took) / 1000))
    return found


async def _steps(root: str, prompts: Sequence[Tokens]) -> dict[int, float]:
    """Return the seconds of a decode step, by the number of neighbouring slots that write."""
    async with httpx.AsyncClient(base_url=root, trust_env=False, timeout=TIMEOUT_S) as client:

        async def write(slot: int, tokens: int) -> dict[str, Any]:
            raw = await client.post("/completion", json=_body(prompts[slot], slot, tokens))
            raw.raise_for_status()
            timings: dict[str, Any] = raw.json()["timings"]
            return timings

        for slot in range(len(prompts)):  # each prompt is then in its slot, but for its last token
            await write(slot, 1)
        step_s = {}
        for rows in rows_up_to(len(prompts)):
            took = []
            for _ in range(REPEATS):
                timings = await asyncio.gather(*(write(slot, WRITTEN) for slot in range(rows)))
                # The first token comes from the prompt's own scores.
                times = [one["predicted_ms"] / (one["predicted_n"] - 1) for one in timings]
                took.append(statistics.median(times) / 1000)
            step_s[rows] = min(took)
    return step_s


def _body(prompt: Tokens, slot: int, tokens: int) -> dict[str, Any]:
    return {"prompt": list(prompt), "id_slot": slot, "n_predict": tokens, "cache_prompt": True}
