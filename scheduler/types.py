"""The records that travel through the scheduler: a request and its completion.

Every module can import them. A request is what it asks and for whom, never when it ran.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from typing import Any

from scheduler.canonical import canonical_json
from scheduler.errors import ConfigError, RequestFailed


class FinishReason(StrEnum):
    """Why the model stopped: its own end, the token limit, or a filter."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    OTHER = "other"


class Outcome(StrEnum):
    """What became of one question put to a model."""

    OK = "ok"
    INVALID = "invalid"
    """The answer does not hold the request's output schema."""
    FAILED = "failed"
    """No answer: every attempt failed."""


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message.

    Attributes:
        role: `system`, `user` or `assistant`.
        content: Its text.
        shared_chars: How many characters at its start stand in other prompts too, as far as the
            caller knows: where an engine may cut what it keeps. No part of what is asked.
    """

    role: str
    content: str
    shared_chars: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        try:
            self.content.encode()
        except UnicodeEncodeError as exc:
            raise ConfigError(
                f"a {self.role} message holds half a surrogate pair, which no prompt can: "
                f"{exc.reason} at character {exc.start}"
            ) from exc


@dataclass(frozen=True)
class Sampling:
    """Every parameter that decides how tokens are drawn.

    All of them are sent with each request, so that no server default decides.
    The values beside `temperature` and `max_tokens` are llama.cpp's own defaults
    (`common/common.h`, `common_params_sampling`).

    Attributes:
        temperature: 0 takes the likeliest token.
        max_tokens: Most tokens that an answer may have.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the likeliest tokens whose probabilities sum to p; 1 keeps all.
        min_p: Drop tokens less likely than this share of the likeliest; 0 keeps all.
        repeat_penalty: 1 is off.
        presence_penalty: 0 is off.
        frequency_penalty: 0 is off.
        thinking: Whether a model that can think aloud may do so before it answers;
            None leaves the template's own default.
    """

    temperature: float = 0.7
    max_tokens: int = 512
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    thinking: bool | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be 1 or more, got {self.max_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature must be 0 or more, got {self.temperature}")

    @cached_property
    def canonical(self) -> str:
        """The parameters as canonical JSON."""
        return canonical_json(asdict(self))


@dataclass(frozen=True)
class OutputSchema:
    """A JSON schema that an answer must hold.

    Attributes:
        name: Short name, shown in logs and sent to servers that want one.
        schema: The JSON schema; it is never written into the prompt.
        accepted: What an answer must hold, where that is less than what is sent: a
            backend that takes no schema may say the same in other words. None: `schema`.
    """

    name: str
    schema: Mapping[str, Any]
    accepted: Mapping[str, Any] | None = None

    @cached_property
    def canonical(self) -> str:
        """The schema as canonical JSON."""
        return canonical_json(self.schema)

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hexadecimal) of the schema's canonical JSON."""
        return sha256(self.canonical.encode()).hexdigest()

    @property
    def checked(self) -> Mapping[str, Any]:
        """The JSON schema that an answer is checked against."""
        return self.schema if self.accepted is None else self.accepted

    @cached_property
    def checked_fingerprint(self) -> str:
        """The sha256 (hexadecimal) of the canonical JSON of `checked`."""
        return sha256(canonical_json(self.checked).encode()).hexdigest()


@dataclass(frozen=True)
class Request:
    """One question to a model.

    Attributes:
        agent_id: Who asks.
        epoch: The simulation's epoch, from 0.
        step: The step within the epoch, from 0.
        kind: What is asked for (`act`, `accept`, or any name of the caller's).
        ordinal: Which question of this kind by this agent in this step, from 0.
        messages: The chat so far.
        sampling: How tokens are drawn.
        base_seed: The seed from which this request's own is derived (`seeds.py`).
        schema: What the answer must look like, or None for free text.
        backend: The name of the backend that answers.
        model: The model name sent to the server.
        timeout_s: Deadline of one attempt in seconds, counted from its dispatch.
        max_retries: How many more attempts may follow a failed one.
        prefix_group: Requests of one group share a long prompt prefix; the plan
            keeps them together. Empty: the system message decides.
        report_tokens: Ask for the answer's token ids and log-probabilities, which a
            backend gives where it can; the answer itself does not depend on it.
    """

    agent_id: str
    messages: tuple[Message, ...]
    epoch: int = 0
    step: int = 0
    kind: str = "act"
    ordinal: int = 0
    sampling: Sampling = Sampling()
    base_seed: int = 0
    schema: OutputSchema | None = None
    backend: str = "default"
    model: str = ""
    timeout_s: float = 30.0
    max_retries: int = 3
    prefix_group: str = ""
    report_tokens: bool = False

    def __post_init__(self) -> None:
        if not self.messages:
            raise ConfigError(f"request of {self.agent_id!r} has no messages")
        if not self.timeout_s > 0:  # NaN is not above 0 either
            raise ConfigError(f"timeout_s of {self.agent_id!r} must be above 0: {self.timeout_s}")
        if self.max_retries < 0:
            raise ConfigError(f"max_retries of {self.agent_id!r} must be 0 or more")

    @property
    def label(self) -> str:
        """How errors and logs name this request."""
        nth = f" #{self.ordinal}" if self.ordinal else ""
        return f"{self.agent_id} {self.kind}{nth} (epoch {self.epoch}, step {self.step})"

    @cached_property
    def group(self) -> str:
        """The prefix group, taken from the system message where none is given."""
        if self.prefix_group:
            return self.prefix_group
        first = self.messages[0]
        text = first.content if first.role == "system" else ""
        return sha256(f"{self.backend}\0{text}".encode()).hexdigest()[:16]

    @cached_property
    def prompt_chars(self) -> int:
        """Length of the prompt in characters, the plan's measure of prefill cost."""
        return sum(len(message.content) for message in self.messages)

    @cached_property
    def prompt_sha256(self) -> str:
        """The sha256 of the canonical JSON of messages, sampling and schema, by these names."""
        messages = canonical_json([{"role": m.role, "content": m.content} for m in self.messages])
        schema = "null" if self.schema is None else self.schema.canonical
        text = f'{{"messages":{messages},"sampling":{self.sampling.canonical},"schema":{schema}}}'
        return sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one answer; `cached_tokens` of the prompt were not prefilled."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds that one answer took; None where the backend does not say.

    Attributes:
        queue_ms: From `run_step` or `submit` to the first dispatch.
        service_ms: From an attempt's dispatch to its answer.
        prefill_ms: Reading the prompt, as the backend measured it.
        decode_ms: Writing the answer, as the backend measured it.
    """

    queue_ms: float = 0.0
    service_ms: float = 0.0
    prefill_ms: float | None = None
    decode_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one question: the request itself, or a re-ask of it.

    Attributes:
        text: The answer's text, without the model's thinking.
        outcome: Whether it holds the request's schema.
        finish_reason: Why the model stopped.
        seed: The seed it was sampled with.
        reask: 0 for the first question, n for the n-th re-ask.
        reasoning: What a thinking model wrote before its answer.
        violation: What the schema check objected to, without the text itself.
        token_ids: Its tokens, where the backend tells them and the journal did not answer.
        logprobs: The log-probability of each token, where the backend gives it and it was
            asked for; not kept by the journal.
    """

    text: str
    outcome: Outcome
    finish_reason: FinishReason
    seed: int
    reask: int = 0
    usage: Usage = Usage()
    timings: Timings = Timings()
    reasoning: str = ""
    violation: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """How a request was settled: with answers, the last one counting, or an error.

    Attributes:
        request: What was asked.
        answers: One per question put, in order; more than one after re-asks.
        error: Why there is no answer, or None.
        attempts: Attempts dispatched, over all re-asks.
        slot: The slot that served it last, or -1.
    """

    request: Request
    answers: tuple[Answer, ...] = ()
    error: RequestFailed | None = None
    attempts: int = 0
    slot: int = -1

    @property
    def ok(self) -> bool:
        """Whether there is an answer and it holds the request's schema."""
        return self.error is None and self.answers[-1].outcome is Outcome.OK

    @property
    def text(self) -> str:
        """The last answer's text.

        Raises:
            RequestFailed: When the request has no answer.
        """
        if self.error is not None:
            raise self.error
        return self.answers[-1].text
