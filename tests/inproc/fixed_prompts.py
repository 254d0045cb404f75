"""Fixed prompts and their answers in process; run as a program, in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import anyio

from scheduler.backends.llama_inproc import Engine, LlamaInprocBackend
from scheduler.engine import Scheduler
from scheduler.seeds import request_seed
from scheduler.types import Message, OutputSchema, Request, Sampling

ACT = OutputSchema(
    "act",
    {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "action": {"const": 'say "no"'},
                    "why": {"type": "string", "minLength": 1, "maxLength": 30},
                },
                "required": ["action", "why"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {"price": {"type": "integer"}, "to": {"enum": ["ada", "bob"]}},
                "required": ["to", "price"],
                "additionalProperties": False,
            },
        ]
    },
)
# Held to it, an answer can't end: it has 45,600 characters or more, a token of these models has 19
# or fewer, and no context here is longer than 2,048 tokens.
ENDLESS = OutputSchema(
    "endless", {"type": "array", "items": {"type": "string", "minLength": 1900}, "minItems": 24}
)
PERSONAS = ("honest", "greedy", "careful")


def fixed_request(n: int) -> Request:
    """Return request n: three personas of odd lengths, every second with a schema."""
    persona = PERSONAS[n % 3]
    system = f"You are a {persona} trader. " * (11 + 13 * (n % 3)) + "Be brief" + "!" * (n % 3)
    user = f"Round {n}: agent_{n} offers {7 * n} credits; the market is calm. " * (1 + n % 5)
    sampling = Sampling(0.8, 24, repeat_penalty=1.2 if n % 4 == 3 else 1.0)
    schema = ACT if n % 2 else None
    messages = (Message("system", system), Message("user", user))
    return Request(f"agent_{n}", messages, sampling=sampling, schema=schema, timeout_s=60)


def endless_request(n: int = 0, *, rounds: int = 1, max_tokens: int = 400) -> Request:
    """Return a request whose answer ends at `max_tokens` alone, after a prompt of any length."""
    messages = (Message("user", f"Round {n}. " * rounds),)
    sampling = Sampling(0.8, max_tokens)
    return Request(f"agent_{n}", messages, sampling=sampling, schema=ENDLESS, timeout_s=300)


def mixed_request(n: int) -> Request:
    """Return request n: prompts of 40 to 1,500 tokens, answers of 4 to 48."""
    request = fixed_request(n)
    *first, last = request.messages
    rounds = 50 // (1 + n % 5) if n % 11 == 5 else 1
    messages = (*first, Message("user", last.content * rounds))
    return replace(
        request,
        messages=messages,
        sampling=replace(request.sampling, max_tokens=4 + 13 * n % 45),
        timeout_s=300,
    )


async def answers_of(backend: LlamaInprocBackend, numbers: Sequence[int]) -> dict[int, str]:
    """Return the text that each fixed request is answered with, asked in this order."""
    texts = {}
    for n in numbers:
        request = fixed_request(n)
        texts[n] = (await backend.generate(request, seed=request_seed(request), slot=0)).text
    return texts


async def _main(path: Path, count: int, engine: Engine, slots: int, kept: Path | None) -> None:
    import resource

    backend = LlamaInprocBackend(
        path, n_ctx=2048, n_threads=1, engine=engine, slots=slots, cache_folder=kept
    )
    async with Scheduler(backend) as scheduler:
        done = await scheduler.run_step([fixed_request(n) for n in range(count)])
        fingerprint = scheduler.info["default"].fingerprint
    await backend.aclose()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mib = peak / (1 << 20) if sys.platform == "darwin" else peak / 1024
    texts = {n: done[n].answers[0].text for n in range(count)}
    print(json.dumps({"texts": texts, "peak_mib": peak_mib, "fingerprint": fingerprint}))


if __name__ == "__main__":
    path, count, *more = sys.argv[1:]
    engine, slots, kept = more or ("locked", "1", "")
    anyio.run(
        _main,
        Path(path),
        int(count),
        "batched" if engine == "batched" else "locked",
        int(slots),
        Path(kept) if kept else None,
    )
