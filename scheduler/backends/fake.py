"""A backend without a model: answers that follow from the request and its seed.

Public, for users' own tests and for dry runs of a configuration. With a schema
it answers with a value that holds the schema; faults and delays are functions
of the request, so a test decides exactly what goes wrong and when.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio

from scheduler.backends.base import BackendInfo, RawAnswer
from scheduler.errors import AttemptError, ServerFault
from scheduler.seeds import derive_seed
from scheduler.types import FinishReason, Message, Request, Usage

Delay = Callable[[Request, int], float]
Fault = Callable[[Request, int], AttemptError | None]

_WORDS = ("trade", "trust", "share", "audit", "offer", "review", "build", "wait", "signal", "agree")
_CHARS_PER_TOKEN = 4


class FakeBackend:
    """Answers from the request alone.

    Args:
        slots: How many requests it takes at once; more is a `RuntimeError`.
        context_per_slot: Tokens that a slot holds.
        latency_s: Longest time that an answer takes; each draws its own share from
            its seed. Ignored when `delay` is given.
        fault_rate: Share of attempts that meet a server fault, chosen from the request's
            seed and the attempt; the last attempt that a request has never does.
            Ignored when `fault` is given.
        delay: Seconds that attempt n (1, 2, ...) of a request takes.
        fault: The error that attempt n of a request meets, or None.
    """

    def __init__(
        self,
        slots: int = 4,
        context_per_slot: int = 32768,
        *,
        latency_s: float = 0.0,
        fault_rate: float = 0.0,
        delay: Delay | None = None,
        fault: Fault | None = None,
    ) -> None:
        self._info = BackendInfo("fake", slots, context_per_slot, model="fake", build="1")
        self._latency_s = latency_s
        self._fault_rate = fault_rate
        self._delay = delay
        self._fault = fault
        self._attempts: dict[tuple[str, int, int, str, int], int] = {}
        self.in_flight = 0
        self.max_in_flight = 0
        self.calls = 0

    async def start(self) -> BackendInfo:
        """Return what this backend is."""
        return self._info

    async def wait_ready(self) -> None:
        """Return at once."""
        await anyio.lowlevel.checkpoint()

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:  # noqa: ARG002  # it has no slots to tell apart
        """Answer after the request's delay, or raise its fault."""
        if self.in_flight >= self._info.slots:
            raise RuntimeError(f"more than {self._info.slots} requests in flight")
        self.calls += 1
        key = (request.agent_id, request.epoch, request.step, request.kind, request.ordinal)
        attempt = self._attempts[key] = self._attempts.get(key, 0) + 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await anyio.sleep(self._seconds(request, attempt, seed))
            error = self._error(request, attempt, seed)
            if error is not None:
                raise error
            return _answer(request, seed)
        finally:
            self.in_flight -= 1

    async def count_prompt_tokens(self, messages: Sequence[Message]) -> int | None:
        """Return a count that takes four characters for a token."""
        return sum(len(message.content) for message in messages) // _CHARS_PER_TOKEN

    async def aclose(self) -> None:
        """Do nothing; there is nothing to give back."""

    def _seconds(self, request: Request, attempt: int, seed: int) -> float:
        if self._delay is not None:
            return self._delay(request, attempt)
        if not self._latency_s:
            return 0.0
        return self._latency_s * derive_seed("fake-latency/1", seed) / 2**31

    def _error(self, request: Request, attempt: int, seed: int) -> AttemptError | None:
        if self._fault is not None:
            return self._fault(request, attempt)
        if not self._fault_rate or attempt > request.max_retries:
            return None
        if derive_seed("fake-fault/1", seed, attempt) / 2**31 >= self._fault_rate:
            return None
        return ServerFault(f"a fault of the fake backend, on attempt {attempt}")


def _answer(request: Request, seed: int) -> RawAnswer:
    draw = random.Random(derive_seed("fake-answer/1", request.prompt_sha256, seed))
    if request.schema is None:
        text = " ".join(draw.choice(_WORDS) for _ in range(draw.randint(4, 12)))
    else:
        text = json.dumps(example_of(request.schema.schema, draw))
    tokens = max(1, len(text) // _CHARS_PER_TOKEN)
    usage = Usage(request.prompt_chars // _CHARS_PER_TOKEN, tokens)
    return RawAnswer(text, FinishReason.STOP, usage, prefill_ms=0.0, decode_ms=0.0)


def example_of(schema: Mapping[str, Any], draw: random.Random) -> Any:
    """Return a value that holds `schema`, chosen by `draw`.

    Knows the part of JSON schema that this project's own schemas use: const,
    enum, anyOf, oneOf, object, array, string, integer, number, boolean, null.
    """
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return draw.choice(list(schema["enum"]))
    branches = schema.get("anyOf") or schema.get("oneOf")
    if branches:
        return example_of(draw.choice(list(branches)), draw)
    return _EXAMPLES[schema.get("type", "string")](schema, draw)


def _object(schema: Mapping[str, Any], draw: random.Random) -> dict[str, Any]:
    required = schema.get("required", list(schema.get("properties", {})))
    return {name: example_of(schema["properties"][name], draw) for name in required}


def _array(schema: Mapping[str, Any], draw: random.Random) -> list[Any]:
    fewest = schema.get("minItems", 0)
    count = draw.randint(fewest, schema.get("maxItems", max(fewest, 3)))
    return [example_of(schema["items"], draw) for _ in range(count)]


def _text(schema: Mapping[str, Any], draw: random.Random) -> str:
    words = " ".join(draw.choice(_WORDS) for _ in range(draw.randint(2, 6)))
    longest, shortest = schema.get("maxLength", 200), schema.get("minLength", 0)
    return words[:longest].ljust(shortest, "x")


def _number(schema: Mapping[str, Any], draw: random.Random) -> float:
    return round(draw.uniform(*_range(schema, 1)), 6)


def _integer(schema: Mapping[str, Any], draw: random.Random) -> int:
    return draw.randint(*_range(schema, 100))


def _range(schema: Mapping[str, Any], usual: int) -> tuple[Any, Any]:
    """Return the bounds of a number, from 0 to `usual` where the schema allows that."""
    low = schema.get("minimum", min(0, schema.get("maximum", 0)))
    return low, schema.get("maximum", max(usual, low))


_EXAMPLES: Mapping[str, Callable[[Mapping[str, Any], random.Random], Any]] = {
    "object": _object,
    "array": _array,
    "string": _text,
    "number": _number,
    "integer": _integer,
    "boolean": lambda _, draw: draw.random() < 0.5,
    "null": lambda _, __: None,
}
