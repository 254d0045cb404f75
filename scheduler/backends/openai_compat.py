"""Any OpenAI-compatible endpoint as a backend: vLLM, SGLang, Ollama, LM Studio, a cloud.

Beside the llama-server backend because nothing can be asked here: slots and limits come
from the configuration, there is no health route, and what a server takes shows only when
it refuses. A refused parameter is left out from then on, told once, and never silently.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import anyio
import openai

from scheduler.backends.base import BackendInfo, RawAnswer
from scheduler.backends.openai_chat import ChatClient, messages_json
from scheduler.backends.openai_params import changed, next_change, refused_generation
from scheduler.backends.openai_probe import reach
from scheduler.errors import (
    AttemptError,
    AuthenticationFailed,
    ConfigError,
    MalformedAnswer,
    RequestRejected,
    SchedulerError,
)
from scheduler.observe import EventLog
from scheduler.types import Message, Request

SendSchema = Literal["auto", "always", "never"]

_CHARS_PER_TOKEN = 4
_LOOK_S = 5.0


class OpenAIBackend:
    """Answers by way of an OpenAI-compatible endpoint; works on asyncio and on trio.

    Args:
        base_url: Where `/chat/completions` is, usually ending in `/v1`.
        model: Sent in place of the model that a request names; None sends the request's.
        api_key: Sent as a bearer token; local servers ignore it.
        slots: How many requests it is asked at once.
        context_per_slot: Most tokens of prompt and answer together, if known.
        headers: Sent with each request.
        send_seed: Send each request's seed; False where a server would misread it.
        send_schema: `auto` sends a request's schema until the server refuses it, `always`
            takes a refusal for an error, `never` leaves the schema to the local check.
        requests_per_minute: Starts of requests are spaced by this rate, if given. The wait
            is part of an attempt's deadline.
        key_variable: The environment variable that the key came from, for messages.
        log: Is told once of each parameter that the server does not take.
        ready_timeout_s: How long the server may take to get ready, in seconds.
        connect_timeout_s: Deadline for connecting, in seconds.
        connect_grace_s: How long `start` waits for a server that can't be reached at all.

    Raises:
        ConfigError: `base_url`, `api_key` or `slots` can't be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        slots: int = 4,
        context_per_slot: int | None = None,
        headers: Mapping[str, str] | None = None,
        send_seed: bool = True,
        send_schema: SendSchema = "auto",
        requests_per_minute: int | None = None,
        key_variable: str | None = None,
        log: EventLog | None = None,
        ready_timeout_s: float = 120.0,
        connect_timeout_s: float = 5.0,
        connect_grace_s: float = 2.0,
    ) -> None:
        if slots < 1:
            raise ConfigError(f"an OpenAI-compatible backend needs 1 slot or more, got {slots}")
        self._client = ChatClient(
            base_url,
            api_key=api_key,
            connect_timeout_s=connect_timeout_s,
            headers=headers,
            # A cloud may be behind a proxy, this machine never is.
            trust_env=not _is_loopback(base_url),
        )
        self._model = model
        self._api_key = api_key
        self._slots = slots
        self._context_per_slot = context_per_slot
        self._send_seed = send_seed
        self._send_schema = send_schema
        self._spacing_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next_start = 0.0
        self._key_advice = _key_advice(key_variable, given=api_key is not None)
        self._log = log
        self._ready_timeout_s = ready_timeout_s
        self._connect_grace_s = connect_grace_s
        self._last_reached = -1.0
        self._given_up = False
        # By model and schema, so that what a request says never depends on what came before it.
        self._changes: dict[tuple[str, str], tuple[str, ...]] = {}
        self._told: set[tuple[str, str, str]] = set()

    def __repr__(self) -> str:
        return f"<OpenAIBackend {self._client.address}, {self._slots} slots>"

    @property
    def refused(self) -> dict[str, list[str]]:
        """What the server was found not to take, by model and schema."""
        named = {
            " ".join(key).strip(): list(found) for key, found in self._changes.items() if found
        }
        return dict(sorted(named.items()))

    async def start(self) -> BackendInfo:
        """See that the server is there, and say what this backend is.

        Raises:
            BackendUnavailable: It can't be reached, or did not get ready in time.
            ConfigError: It refuses the API key, or speaks no JSON.
        """
        if self._last_reached < 0:
            await self._reach(self._ready_timeout_s, self._connect_grace_s)
        return BackendInfo(
            kind="openai",
            slots=self._slots,
            context_per_slot=self._context_per_slot,
            model=self._model or "",
            facts={"send_seed": self._send_seed, "send_schema": self._send_schema},
        )

    async def wait_ready(self) -> None:
        """Return once the server answers again; one that is restarting is waited for.

        One that did not come back is not waited for a second time, only looked for.

        Raises:
            BackendUnavailable: It did not come back in time.
            ConfigError: It refuses the API key, or speaks no JSON.
        """
        timeout_s = self._ready_timeout_s
        if self._given_up:
            timeout_s = min(_LOOK_S, timeout_s)
        try:
            await self._reach(timeout_s, 0.0 if self._given_up else timeout_s)
        except SchedulerError:
            self._given_up = True
            raise
        self._given_up = False

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:  # noqa: ARG002  # such servers choose their slots themselves
        """Answer `request`; without a deadline, cancelling hangs up.

        What the server refuses to be sent is left out and the request sent again, within
        the same attempt; see `openai_params`.

        Raises:
            AttemptError: No answer; the subclass says why.
        """
        await self._turn()
        body = self._body(request, seed)
        key = (str(body["model"]), request.schema.name if request.schema else "")
        changes = self._changes.get(key, ())
        while True:
            said = changed(body, changes)
            try:
                answer = await self._client.ask(said, agent_id=request.agent_id)
            except AttemptError as exc:
                change = self._mended(exc, said)
                self._tell(key, change, exc)
                changes = (*changes, change)
            else:
                # Learnt from an answer only: a refusal alone may have meant something else.
                self._changes[key] = max(changes, self._changes.get(key, ()), key=len)
                return answer

    async def count_prompt_tokens(self, messages: Sequence[Message]) -> int | None:
        """Return a low guess, four characters a token: no route for it is common to all."""
        return sum(len(message.content) for message in messages) // _CHARS_PER_TOKEN

    async def aclose(self) -> None:
        """Close the connections; may be called twice."""
        await self._client.aclose()

    async def _reach(self, timeout_s: float, unreachable_s: float) -> None:
        await reach(
            self._client,
            timeout_s=timeout_s,
            unreachable_s=unreachable_s,
            key_advice=self._key_advice,
        )
        self._last_reached = anyio.current_time()

    async def _turn(self) -> None:
        """Return when the next request may start."""
        now = anyio.current_time()
        start = max(now, self._next_start)
        self._next_start = start + self._spacing_s
        await anyio.sleep(start - now)

    def _body(self, request: Request, seed: int) -> dict[str, Any]:
        """Return the request in the words that plain OpenAI servers know."""
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self._model or request.model or "default",
            "messages": messages_json(request.messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "stream": False,
        }
        if self._send_seed:
            body["seed"] = seed
        if request.report_tokens:
            body["logprobs"] = True
        if sampling.thinking is not None:
            body["chat_template_kwargs"] = {"enable_thinking": sampling.thinking}
        if request.schema is not None and self._send_schema != "never":
            schema = {"name": request.schema.name, "schema": request.schema.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _mended(self, error: AttemptError, said: Mapping[str, Any]) -> str:
        """Return what to change in the request that met `error`.

        Raises:
            AttemptError: Nothing; the error itself, without the key.
        """
        self._hide_key(error)
        cause = error.__cause__
        if isinstance(error, AuthenticationFailed):
            status = cause.status_code if isinstance(cause, openai.APIStatusError) else 401
            raise AuthenticationFailed(
                f"{self._client.address} {self._key_advice} (status {status})"
            ) from error
        if not (isinstance(cause, openai.APIStatusError) and cause.status_code in (400, 422)):
            raise error
        content = cause.response.content
        if refused_generation(content):
            raise MalformedAnswer(
                f"the server could not hold the model to JSON ({error})"
            ) from error
        keep = ("response_format",) if self._send_schema == "always" else ()
        change = next_change(said, content, keep=keep)
        if change is None or not isinstance(error, RequestRejected):
            raise error
        return change

    def _hide_key(self, error: AttemptError) -> None:
        if self._api_key:
            error.args = (str(error).replace(self._api_key, "***"),)

    def _tell(self, key: tuple[str, str], change: str, error: AttemptError) -> None:
        if self._log is None or (*key, change) in self._told:
            return
        self._told.add((*key, change))
        model, schema = key
        self._log.warning(
            "backend.parameter_refused",
            address=self._client.address,
            model=model,
            schema=schema or None,
            parameter=change,
            reason=str(error),
        )


def _is_loopback(base_url: str) -> bool:
    try:
        host = urlsplit(base_url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _key_advice(variable: str | None, *, given: bool) -> str:
    if variable is not None:
        return (
            f"does not accept the API key in {variable}. Set the right one: export {variable}=..."
        )
    if given:
        return "does not accept the API key. Give the right one"
    return (
        "wants an API key. Set backend.api_key_env to the name of the environment variable that "
        "holds it"
    )
