"""What the batched engine is asked in benchmarks, and the models that answer; nothing to run."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import llama_cpp

from scheduler.gguf_models import PRESETS, ensure_model
from scheduler.types import Message, Request, Sampling

N_CTX = 2048
TYPES = {"Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}
PERSONAS = ("honest", "greedy", "careful", "deceptive")


def question(n: int) -> Request:
    """Return question n: four personas, about 1,000 tokens, answers of 4 to 48."""
    rng = random.Random(n % len(PERSONAS))
    persona = PERSONAS[n % len(PERSONAS)]
    rules = " ".join(
        f"Rule {i}: a {persona} agent may offer {rng.randrange(90)} credits to agent_{i} and "
        f"posts, votes, proposes or waits as round {rng.randrange(9)} demands."
        for i in range(17)
    )
    rng = random.Random(1000 + n)
    events = " ".join(
        f"agent_{rng.randrange(12)} gave agent_{rng.randrange(12)} {rng.randrange(100)} credits."
        for _ in range(18 + n % 5)
    )
    messages = (
        Message("system", f"You are a {persona} agent in a market. {rules}"),
        Message("user", f"You are agent_{n}. What happened so far: {events} What do you do?"),
    )
    return Request(f"agent_{n}", messages, sampling=Sampling(0.8, 4 + 11 * n % 45), timeout_s=3600)


def models(folder: Path) -> dict[str, Path]:
    """Return the models in `folder` by their type, written where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"bench-{name}.gguf" for name in ("F16", *TYPES)}
    ensure_model(paths["F16"], replace(PRESETS["bench"], weight_type="F16"))
    for name, number in TYPES.items():
        if not paths[name].exists():
            params = llama_cpp.llama_model_quantize_default_params()
            params.ftype = number
            names = str(paths["F16"]).encode(), str(paths[name]).encode()
            if llama_cpp.llama_model_quantize(*names, params) != 0:
                raise SystemExit(f"{names[1]!r} could not be written")
    return paths
