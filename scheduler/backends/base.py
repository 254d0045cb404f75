"""What the engine asks of a backend, and the two records that cross that line.

A backend turns one request into one answer and raises an `AttemptError` when it
can't. It has no queue, no retries, no deadlines and no order: those are the
engine's. Many `generate` calls may run at once, never more than `info.slots`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Protocol, runtime_checkable

from scheduler.canonical import canonical_json
from scheduler.types import FinishReason, Message, Request, Usage


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What a started backend is.

    Attributes:
        kind: `llama_server`, `llama_inproc`, `openai` or `fake`.
        slots: How many requests it answers at once.
        context_per_slot: Most tokens of prompt and answer together, or None if unknown.
        model: The model's name as the backend reports it.
        build: The backend's version.
        facts: What else the run's manifest should say, as plain JSON data.
        serial: Whether it answers one request at a time however many slots are configured.
    """

    kind: str
    slots: int
    context_per_slot: int | None
    model: str
    build: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    serial: bool = False

    @property
    def fingerprint(self) -> str:
        """The sha256 (hexadecimal) of all that its answers may depend on.

        Neither where it is nor how many slots it has: those may change when a
        broken run is mended.
        """
        identity = [self.kind, self.model, self.build, dict(self.facts)]
        return sha256(canonical_json(identity).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """One answer as the backend gave it, before the schema check.

    Token ids and log-probabilities are empty where the backend does not give them; they
    are owed only to a request with `report_tokens`. `served_by` is what the answer says of who
    gave it: model and build.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage = Usage()
    prefill_ms: float | None = None
    decode_ms: float | None = None
    reasoning: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    served_by: str = ""


def how_to_get_slots(kind: str, slots: int) -> str:
    """Return what to do for `slots` slots of a backend of this kind, for an error's end."""
    ways = {
        "llama_server": f"start the server with --parallel {slots}",
        "openai": f"set backend.openai.slots to {slots}",
        "fake": f"set backend.fake.slots to {slots}",
    }
    return ways.get(kind, f"give it {slots}")


class Backend(Protocol):
    """A model that answers requests."""

    async def start(self) -> BackendInfo:
        """Get ready and say what this backend is; called again, say the same.

        Raises:
            BackendUnavailable: It did not get ready in time.
            ConfigError: It can't be used as configured.
        """
        ...

    async def wait_ready(self) -> None:
        """Return once requests can be sent again, after a failed connection or a missed deadline.

        After it has raised, the next call does not wait as long again: it looks whether the
        backend is back and answers within a few seconds.

        Raises:
            BackendUnavailable: It did not come back in time.
        """
        ...

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
        """Answer `request`, sampled with `seed`, on the slot with number `slot`.

        Raises:
            AttemptError: No answer; the subclass says why.
        """
        ...

    async def count_prompt_tokens(self, messages: Sequence[Message]) -> int | None:
        """Return how many tokens `messages` are with the chat template, None if unknown."""
        ...

    async def aclose(self) -> None:
        """Give back connections, threads and memory; may be called twice."""
        ...


@runtime_checkable
class Placement(Protocol):
    """What a backend adds whose slots are in several places: which are there, and for whom."""

    def has_slot(self, slot: int) -> bool:
        """Whether `slot` can be used now."""
        ...

    def is_home(self, slot: int, group: str) -> bool:
        """Whether requests of the prefix group are best answered on `slot`."""
        ...

    async def watch(self, changed: Callable[[], object]) -> None:
        """Run until cancelled; call `changed` when slots can be used again."""
        ...
