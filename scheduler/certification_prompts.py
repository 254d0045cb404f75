"""What a backend is asked when its determinism is measured: which prompts, in which order.

Prompts are made of numbered sentences about a market, as a simulation's are, and scaled to
what a slot holds. Everything follows from the arguments, so that two measurements of equal
backends ask the same. Nothing here asks anybody.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from scheduler.types import Message, OutputSchema, Request, Sampling

BATCH, ORDER, PREFIX = "batch size", "shuffled order", "shared prefix"
"""The three questions."""

MOST_ANSWER_TOKENS = 48
LONGEST_PROMPT_TOKENS = 1000

_ANSWER_TOKENS = (4, 48, 16, 32, 9)
_MIXED_SHARES = (0.04, 1.0, 0.3, 0.08, 0.6, 0.12, 0.45, 0.2)
_QUICK_SHARES = (0.04, 0.4, 0.1, 0.2)
_FLUSH_TOKENS = 100
_SENTENCE_CHARS = 70
_SCHEMA = OutputSchema(
    "move",
    {
        "type": "object",
        "properties": {
            "action": {"enum": ["offer", "wait", "accept"]},
            "reason": {"type": "string", "maxLength": 120},
        },
        "required": ["action", "reason"],
        "additionalProperties": False,
    },
)


@dataclass(frozen=True, slots=True)
class Scale:
    """How many tokens prompts may have, and how to reach a number of them.

    Attributes:
        longest: Tokens of the longest prompt.
        per_sentence: Tokens of a sentence.
        overhead: Tokens of a prompt beside its sentences.
    """

    longest: int
    per_sentence: float = _SENTENCE_CHARS / 2
    overhead: float = 30.0

    def sentences(self, share: float) -> int:
        """Return how many sentences make a prompt of `share` of the longest."""
        return max(1, int((share * self.longest - self.overhead) / self.per_sentence))


@dataclass(frozen=True, slots=True)
class Round:
    """Requests that are handed over together.

    Attributes:
        question: One of the three, or empty where only the caches are to be changed.
        situation: What shares batch and cache, in words.
        requests: What is asked.
    """

    question: str
    situation: str
    requests: tuple[Request, ...]


def sentences(count: int, seed: int) -> str:
    """Return `count` sentences about a market, the same for the same arguments."""
    draw = random.Random(seed)
    return " ".join(
        f"Round {n + 1}: agent_{draw.randrange(90) + 10} offers agent_{draw.randrange(90) + 10} "
        f"{draw.choice(('grain', 'steel', 'cloth', 'paper'))} for 0.{draw.randrange(90) + 10}."
        for n in range(count)
    )


def program(
    scale: Scale, slots: int, temperature: float, *, quick: bool, timeout_s: float
) -> Iterator[Round]:
    """Yield one trial's rounds, in their order.

    Args:
        scale: How long prompts may be.
        slots: How many requests the backend answers at once.
        temperature: Sampled with.
        quick: Fewer, shorter prompts and fewer sizes.
        timeout_s: Deadline of one attempt.
    """
    make = _Maker(scale, temperature, timeout_s)
    yield from _flushed(make, slots)
    yield from _batch_rounds(make, slots, quick=quick)
    yield from _order_rounds(make, slots, quick=quick)
    yield from _prefix_rounds(make, slots, quick=quick)


def batch_sizes(slots: int, *, quick: bool) -> tuple[int, ...]:
    """Return how many copies of one prompt are asked together: 1 to `slots`, not all of many.

    At least up to 4: a backend with one slot answers them one after another, from its cache.
    """
    most = max(slots, 4)
    sizes = range(1, most + 1)
    if quick or most > 8:
        sizes_of_many = {1, 2, 3, 5, most // 2, most - 1, most}
        return tuple(sorted({1, 2, most} if quick else sizes_of_many))
    return tuple(sizes)


class _Maker:
    """Makes requests of one temperature.

    Args:
        scale: How long prompts may be.
        temperature: Sampled with.
        timeout_s: Deadline of one attempt.
    """

    def __init__(self, scale: Scale, temperature: float, timeout_s: float) -> None:
        self.scale = scale
        self._sampling = Sampling(temperature=temperature, max_tokens=MOST_ANSWER_TOKENS)
        self._timeout_s = timeout_s

    def request(
        self, name: str, system: str, user: str, *, answer_tokens: int, schema: bool = False
    ) -> Request:
        """Return a request whose seed follows from its name."""
        messages = [Message("user", user)]
        if system:
            messages.insert(0, Message("system", system))
        return Request(
            name,
            tuple(messages),
            kind="certify",
            sampling=replace(self._sampling, max_tokens=answer_tokens),
            schema=_SCHEMA if schema else None,
            timeout_s=self._timeout_s,
            report_tokens=True,
        )

    def agent(self, name: str, share: float, number: int, *, schema: bool = False) -> Request:
        """Return an agent's question of about `share` of the longest prompt."""
        return self.request(
            name,
            f"You are agent_{number}, one of several who trade at a market.",
            f"{sentences(self.scale.sentences(share), number)} What do you do next, and why?",
            answer_tokens=_ANSWER_TOKENS[number % len(_ANSWER_TOKENS)],
            schema=schema,
        )


def _flushed(make: _Maker, slots: int) -> Iterator[Round]:
    """Yield rounds that put something else into each slot's cache, twice.

    Twice, so that what the second one meets is the same whatever ran before the first.
    """
    count = max(1, round(_FLUSH_TOKENS / make.scale.per_sentence))
    for turn in ("Apples", "Boats"):
        requests = tuple(
            make.request(
                f"flush-{turn}-{n}",
                "",
                f"{turn} {n} {turn.lower()}. {sentences(count, 900 + n)}",
                answer_tokens=1,
            )
            for n in range(slots)
        )
        yield Round("", "other prompts", requests)


def _batch_rounds(make: _Maker, slots: int, *, quick: bool) -> Iterator[Round]:
    shares = (0.04, 0.3) if quick else (0.04, 0.3, 1.0)
    for number, share in enumerate(shares, start=1):
        request = make.request(
            f"copies-{number}",
            f"You are agent_{number}. You keep the books of a market.",
            f"{sentences(make.scale.sentences(share), number)} Sum up what happened.",
            answer_tokens=16 if quick else MOST_ANSWER_TOKENS,
        )
        for size in batch_sizes(slots, quick=quick):
            copies = f"{size} copies together" if size > 1 else "alone"
            yield Round(BATCH, copies, (request,) * size)


def _order_rounds(make: _Maker, slots: int, *, quick: bool) -> Iterator[Round]:
    shares = _QUICK_SHARES if quick else _MIXED_SHARES
    count = min(max(len(shares), slots + slots // 2), 24)
    mixed = [
        make.agent(f"mixed-{n}", shares[n % len(shares)], n, schema=n % 3 == 2)
        for n in range(count)
    ]
    for request in mixed:
        yield Round(ORDER, "alone", (request,))
    for turn in range(1 if quick else 3):
        shuffled = random.Random(turn).sample(mixed, len(mixed))
        yield Round(ORDER, f"among {count} in order {turn + 1}", tuple(shuffled))


def _prefix_rounds(make: _Maker, slots: int, *, quick: bool) -> Iterator[Round]:
    for number, share in enumerate((0.08, 0.3) if quick else (0.08, 0.3, 0.8), start=1):
        persona = sentences(make.scale.sentences(share), 500 + number)
        siblings = [
            make.request(
                f"prefix-{number}-sibling-{n}",
                f"You are a trader. What you remember: {persona}",
                f"Sibling {n} asks: {sentences(n + 1, 600 + n)} What now?",
                answer_tokens=16,
            )
            for n in range(2 if quick else 3)
        ]
        for order in (siblings, siblings[::-1]):
            yield from _flushed(make, slots)
            yield from _one_by_one(order)
        yield from _one_by_one(siblings, "asked before")
        yield Round(PREFIX, "siblings together", tuple(siblings))


def _one_by_one(requests: Sequence[Request], before: str = "") -> Iterator[Round]:
    for place, request in enumerate(requests):
        after = before or ("after a sibling" if place else "after other prompts")
        yield Round(PREFIX, after, (request,))
