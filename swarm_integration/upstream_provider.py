"""Anthropic's and Google's models as a backend, by way of upstream's own provider methods.

One attempt is one call of upstream's method, inside a slot; retries, deadlines, journal
and order are the scheduler's. Those methods block a thread and send neither seed nor
schema, so answers are sampled anew each time and the schema is checked here alone.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import anyio
from anyio.lowlevel import current_token

from scheduler.backends.base import BackendInfo, RawAnswer
from scheduler.backends.chat_answer import encodable, error_of
from scheduler.errors import (
    AttemptError,
    AttemptTimeout,
    AuthenticationFailed,
    ConnectionFailed,
    MalformedAnswer,
    RequestRejected,
    ServerFault,
)
from scheduler.types import FinishReason, Message, Request, Usage
from scheduler.wake import wake
from swarm_integration.compat_providers import ProviderClient, sdk_version

T = TypeVar("T")

_TIMEOUTS = {"APITimeoutError", "TimeoutException", "Timeout", "TimeoutError"}
_CONNECTIONS = {"APIConnectionError", "TransportError", "ConnectionError"}
_LONGEST_QUOTE = 300


class UpstreamProviderBackend:
    """Answers by way of the SDK that upstream uses; works on asyncio and on trio.

    A deadline, or a cancelled caller, ends the attempt and frees its slot at once. The SDK's
    call can't be stopped: it goes on, on a daemon thread, until the SDK's own time-out (the
    agent's `timeout`), and its answer, which the provider charges for, is thrown away. At
    most as many such calls as there are slots run beside the live ones; past that an attempt
    waits for one of them to end, within its own deadline.

    Args:
        provider: `anthropic` or `google`.
        agents: The LLM agents that it serves, by id; they are copied and not changed.
        api_key: For taking it out of messages.
        key_variable: The environment variable of the key, for messages.
        slots: How many calls run at once.
    """

    def __init__(
        self,
        provider: str,
        agents: Mapping[str, Any],
        *,
        api_key: str,
        key_variable: str,
        slots: int,
    ) -> None:
        self._provider = provider
        self._clients = {key: ProviderClient(provider, agent) for key, agent in agents.items()}
        self._api_key = api_key
        self._key_variable = key_variable
        self._slots = slots
        self._threads = anyio.CapacityLimiter(2 * slots)
        self._ready = False

    def __repr__(self) -> str:
        return f"<UpstreamProviderBackend {self._provider}, {self._slots} slots>"

    async def start(self) -> BackendInfo:
        """Import the SDK and say what this backend is; nothing is sent.

        Raises:
            ConfigError: The SDK is not installed.
        """
        if not self._ready:
            for client in self._clients.values():
                client.prepare()
            self._ready = True
        return BackendInfo(
            kind="upstream_provider",
            slots=self._slots,
            context_per_slot=None,
            model="",
            build=sdk_version(self._provider),
            facts={"provider": self._provider, "send_seed": False, "send_schema": "never"},
        )

    async def wait_ready(self) -> None:
        """Return at once: there is nothing that could be asked for its health."""
        await anyio.lowlevel.checkpoint()

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:  # noqa: ARG002  # upstream's methods take no seed
        """Answer `request` with the client of its agent.

        Raises:
            AttemptError: No answer; the subclass says why.
        """
        system, user = _pair(request.messages)
        call = _Call(partial(self._clients[request.agent_id].call, system, user))
        try:
            text, prompt_tokens, completion_tokens = await call.run(self._threads)
        except Exception as exc:
            raise self._attempt_error(exc, request) from exc
        if not isinstance(text, str):
            raise MalformedAnswer(f"{self._provider} answered without text")
        full = completion_tokens >= request.sampling.max_tokens
        return RawAnswer(
            encodable(text),
            FinishReason.LENGTH if full else FinishReason.OTHER,
            Usage(prompt_tokens, completion_tokens),
        )

    async def count_prompt_tokens(self, messages: Sequence[Message]) -> int | None:  # noqa: ARG002  # nobody to ask
        """Return None: unknown without sending the prompt."""
        return None

    async def aclose(self) -> None:
        """Close the SDK's connections; a call that still runs is not waited for."""
        for client in self._clients.values():
            client.close()

    def _attempt_error(self, error: Exception, request: Request) -> AttemptError:
        found = attempt_error(error, self._provider, agent_id=request.agent_id)
        if isinstance(found, AuthenticationFailed):
            return AuthenticationFailed(
                f"{self._provider} does not accept the API key in {self._key_variable}. Set the "
                f"right one: export {self._key_variable}=..."
            )
        if self._api_key:
            found.args = (str(found).replace(self._api_key, "***"),)
        return found


def attempt_error(error: Exception, provider: str, *, agent_id: str) -> AttemptError:
    """Return what an exception of an SDK, or of upstream, means; told by its shape alone.

    anthropic's errors have a `status_code`, google-genai's a `code`; both have a `response`
    with headers where there was one. Their connections are httpx's.
    """
    quoted = f"{provider}: {type(error).__name__}: {str(error)[:_LONGEST_QUOTE]}"
    status = _status(error)
    names = {kind.__name__ for kind in type(error).__mro__}
    if status == 408 or (status is None and names & _TIMEOUTS):
        return AttemptTimeout(f"{quoted}; raise the agent's timeout if this happens often")
    if status == 409:
        return ServerFault(quoted)
    if status is not None:
        headers = getattr(getattr(error, "response", None), "headers", None) or {}
        plain = {str(name).lower(): str(value) for name, value in headers.items()}
        body = json.dumps({"error": {"message": quoted}}).encode()
        return error_of(status, plain, body, agent_id=agent_id)
    if names & _CONNECTIONS:
        return ConnectionFailed(f"{quoted}; check the network")
    if isinstance(error, ImportError):
        return RequestRejected(quoted)
    if isinstance(error, LookupError | AttributeError | TypeError | ValueError):
        return MalformedAnswer(f"{quoted}; the answer has not the shape that SWARM reads")
    return ServerFault(quoted)


def _status(error: Exception) -> int | None:
    for name in ("status_code", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int) and 400 <= value < 600:
            return value
    return None


def _pair(messages: Sequence[Message]) -> tuple[str, str]:
    """Return the system prompt and the user prompt, which is all that upstream's methods take."""
    system = [message.content for message in messages if message.role == "system"]
    others = [message.content for message in messages if message.role != "system"]
    return "\n\n".join(system), "\n\n".join(others)


class _Call(Generic[T]):
    """One blocking call on a daemon thread of its own, which may outlive who waits for it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._done = anyio.Event()
        self._outcome: list[T] = []
        self._error: BaseException | None = None

    async def run(self, threads: anyio.CapacityLimiter) -> T:
        """Return what the work returns; cancelled, leave it to itself.

        Args:
            threads: Bounds how many calls run, those that nobody waits for included.

        Raises:
            BaseException: What the work raised.
        """
        await threads.acquire_on_behalf_of(self)
        token = current_token()

        def finish() -> None:
            threads.release_on_behalf_of(self)
            self._done.set()

        def live() -> None:
            try:
                self._outcome.append(self._work())
            except BaseException as exc:  # noqa: BLE001  # raised again where it is waited for
                self._error = exc
            wake(token, finish)

        threading.Thread(target=live, name="provider call", daemon=True).start()
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._outcome[0]
