"""The answers of a recording: valid actions whose length is that of a real model's.

They follow from a request's seed and schema, never from its prompt, so that the same agents do
the same things whatever the layout of the prompts is.
"""

from __future__ import annotations

import json
import math
import random

from scheduler.backends.base import RawAnswer
from scheduler.backends.fake import FakeBackend, example_of
from scheduler.seeds import derive_seed
from scheduler.types import FinishReason, Request, Usage

CHARS_PER_TOKEN = 4
_SLOTS = 64
_WORDS = (
    "agent", "audit", "balance", "because", "build", "cooperate", "expect", "fair", "history",
    "keep", "last", "market", "offer", "others", "partner", "payoff", "prefer", "propose", "reply",
    "reputation", "return", "review", "risk", "round", "share", "signal", "steady", "step", "task",
    "trade", "trust", "value", "wait", "while", "with",
)  # fmt: skip
_REASONING_CHARS = (60, 200)
_CONTENT_CHARS = (40, 140)


class CannedBackend(FakeBackend):
    """A fake backend whose answers are as long as those that SWARM's agents write."""

    def __init__(self) -> None:
        super().__init__(_SLOTS)

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
        """Answer from the request's seed and schema."""
        await super().generate(request, seed=seed, slot=slot)
        draw = random.Random(derive_seed("canned-answer/1", seed))
        text = _text(draw, _CONTENT_CHARS)
        if request.schema is not None:
            action = example_of(request.schema.schema, draw)
            action["reasoning"] = _text(draw, _REASONING_CHARS)
            if "content" in action.get("params", {}):
                action["params"]["content"] = text
            text = json.dumps(action)
        tokens = math.ceil(len(text) / CHARS_PER_TOKEN)
        prompt_tokens = request.prompt_chars // CHARS_PER_TOKEN
        return RawAnswer(text, FinishReason.STOP, Usage(prompt_tokens, tokens))


def _text(draw: random.Random, chars: tuple[int, int]) -> str:
    longest = draw.randint(*chars)
    words = draw.choice(_WORDS)
    while len(words) < longest:
        words += " " + draw.choice(_WORDS)
    return words[:longest].rstrip()
