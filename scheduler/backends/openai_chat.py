"""One OpenAI-compatible server over HTTP: a client that is reused, and its errors made ours.

What every backend with `/v1/chat/completions` shares. It retries nothing, follows no
redirect, asks no proxy unless told to, and has no deadline but the one for connecting:
retries, deadlines and the number of requests in flight are the engine's. Works on asyncio
and on trio.
Prompts and keys are never logged here; the `openai` logger writes prompts at level DEBUG.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx2
import openai

from scheduler.backends.base import RawAnswer
from scheduler.backends.chat_answer import (
    JsonObject,
    error_of,
    json_object,
    parse_answer,
)
from scheduler.backends.same_server import SameServer
from scheduler.config import check_base_url
from scheduler.errors import (
    AttemptError,
    ConfigError,
    ConnectionFailed,
    MalformedAnswer,
    RequestRejected,
)
from scheduler.types import Message, Request

MAX_BODY_BYTES = 32 * 2**20
"""Longest body that is read; a longer one is a `MalformedAnswer`."""

# llama-server closes a connection that was idle for 5 s. Ours go first, or a request that is
# sent at that moment finds the connection closed.
_KEEPALIVE_S = 2.0


class ChatClient:
    """One server's chat completions and JSON routes.

    Args:
        base_url: Where the OpenAI-compatible routes are, such as `http://127.0.0.1:8080/v1`.
        api_key: Sent as a bearer token; local servers ignore it.
        connect_timeout_s: Deadline for connecting, in seconds.
        headers: Sent with each request, beside the protocol's own.
        trust_env: Go through the proxy that the environment names (`HTTPS_PROXY`).
        verify: Is called before an answer is taken by whose side the server may be another one
            than before; what it raises is raised.

    Raises:
        ConfigError: The address or the key can't be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        connect_timeout_s: float,
        headers: Mapping[str, str] | None = None,
        trust_env: bool = False,
        verify: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._same = None if verify is None else SameServer(verify)
        parts = self._take_address(base_url)
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key):
            raise ConfigError(
                "backend.api_key_env: the key is empty or has characters that no HTTP header holds"
            )
        timeout = httpx2.Timeout(None, connect=connect_timeout_s)
        self._openai = openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=api_key or "not-needed",
            max_retries=0,
            timeout=timeout,
            default_headers={**(headers or {}), "Accept-Encoding": "identity"},
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=timeout,
                limits=httpx2.Limits(
                    max_connections=None,
                    max_keepalive_connections=None,
                    keepalive_expiry=_KEEPALIVE_S,
                ),
                follow_redirects=False,
                trust_env=trust_env,
                # Reading the certificates takes longer than many a prompt; http needs none.
                verify=parts.scheme == "https",
                event_hooks={"response": [_bound_body]},
            ),
        )
        # Taken from OPENAI_ORG_ID and OPENAI_PROJECT_ID, which are not this server's business.
        self._openai.organization = self._openai.project = None

    def move(self, base_url: str) -> None:
        """Speak to the same server at another address from now on.

        Raises:
            ConfigError: The address can't be used.
        """
        self._take_address(base_url)
        self._openai.base_url = self.base_url

    async def complete(self, request: Request, *, seed: int, extra: Mapping[str, Any]) -> RawAnswer:
        """Ask for one chat completion.

        Args:
            request: Gives messages, model and the sampling that OpenAI's protocol knows.
            seed: Sampled with.
            extra: Further keys of the body.

        Raises:
            AttemptError: No answer; the subclass says why.
        """
        sampling = request.sampling
        body = {
            "model": request.model or "default",
            "messages": messages_json(request.messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "seed": seed,
            "stream": False,
            **extra,
        }
        return await self.ask(body, agent_id=request.agent_id)

    async def ask(self, body: Mapping[str, Any], *, agent_id: str) -> RawAnswer:
        """Post `body` to the chat completions and return the answer.

        Args:
            body: The whole request.
            agent_id: Who asks, for the errors that only its own prompt can mend.

        Raises:
            AttemptError: No answer; the subclass says why. What the server itself said is
                its `__cause__`, an `openai.APIStatusError`, where the server said something.
        """
        try:
            raw = await self._openai.post("/chat/completions", cast_to=httpx2.Response, body=body)
        except (openai.OpenAIError, ValueError, TypeError) as exc:
            raise self._translated(exc, agent_id=agent_id) from exc
        if raw.status_code != 200:
            raise error_of(raw.status_code, raw.headers, raw.content, agent_id=agent_id)
        answer = parse_answer(raw.content, raw.headers.get("content-type", ""))
        if self._same is not None:
            connection = raw.extensions.get("network_stream")
            await self._same.check(connection, str(body.get("model")), answer.served_by)
        return answer

    async def fetch(self, url: str, body: Mapping[str, Any] | None = None) -> JsonObject:
        """Return the JSON object at `url`, a path under `base_url` or a whole address.

        Args:
            url: What to get, or to post `body` to.
            body: Posted as JSON if given.

        Raises:
            AttemptError: No such object; the subclass says why.
        """
        try:
            if body is None:
                raw = await self._openai.get(url, cast_to=httpx2.Response)
            else:
                raw = await self._openai.post(url, cast_to=httpx2.Response, body=body)
        except (openai.OpenAIError, ValueError, TypeError) as exc:
            raise self._translated(exc, agent_id="") from exc
        return json_object(raw.content, raw.headers.get("content-type", ""))

    async def aclose(self) -> None:
        """Close the connections; may be called twice."""
        await self._openai.close()

    def _take_address(self, base_url: str) -> SplitResult:
        try:
            self.base_url = check_base_url(base_url)
            httpx2.URL(self.base_url)
            parts = urlsplit(self.base_url)
            where = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
        except (ValueError, httpx2.InvalidURL) as exc:
            raise ConfigError(f"backend.base_url: {exc}") from exc
        self.root = self.base_url.removesuffix("/v1")
        # For messages: without the user name and password that an address may hold.
        self.address = f"{parts.scheme}://{where}{parts.path}"
        return parts

    def _translated(self, error: Exception, *, agent_id: str) -> AttemptError:
        if isinstance(error, openai.APIStatusError):
            answer = error.response
            return error_of(answer.status_code, answer.headers, answer.content, agent_id=agent_id)
        if not isinstance(error, openai.OpenAIError):
            return RequestRejected(
                f"the request can't be written as JSON ({type(error).__name__}); check the schema "
                "and the sampling settings for values such as NaN"
            )
        cause = error.__cause__ or error
        if _is_broken_http(cause):
            return MalformedAnswer(
                f"{self.address} does not speak HTTP as it should ({type(cause).__name__}); check "
                "that base_url names an OpenAI-compatible server"
            )
        return ConnectionFailed(
            f"no answer from {self.address} ({str(cause) or type(cause).__name__}); check that the "
            "server runs and that base_url is its address"
        )


def messages_json(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return chat messages as the protocol's JSON."""
    return [{"role": message.role, "content": message.content} for message in messages]


def _is_broken_http(cause: BaseException) -> bool:
    if isinstance(cause, httpx2.RemoteProtocolError):
        # The one text that httpcore has for a connection closed before any answer.
        return "disconnected" not in str(cause)
    return isinstance(cause, httpx2.LocalProtocolError)


async def _bound_body(response: httpx2.Response) -> None:
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise MalformedAnswer(
            f"the answer is compressed ({encoding[:40]!r}), although nobody asked for that; check "
            "the proxy in front of the server"
        )
    if isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _BoundedBody(response.stream)


class _BoundedBody(httpx2.AsyncByteStream):
    """A response's body that ends with an error where it is cut short or too long.

    Only here can a body that broke off be told from a connection that never answered.
    """

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        received = 0
        try:
            async for chunk in self._stream:
                received += len(chunk)
                if received <= MAX_BODY_BYTES:
                    yield chunk
                else:
                    # Closed and read on to its error, not left: trio warns about each of
                    # httpx2's nested generators that is not run to its end.
                    await self._stream.aclose()
        except httpx2.RequestError as exc:
            if received <= MAX_BODY_BYTES:
                raise _broken_body(exc, received) from exc
        if received > MAX_BODY_BYTES:
            raise MalformedAnswer(
                f"the answer is longer than {MAX_BODY_BYTES} bytes; lower max_tokens or look into "
                "the server's log"
            )

    async def aclose(self) -> None:
        await self._stream.aclose()


def _broken_body(error: httpx2.RequestError, received: int) -> AttemptError:
    advice = "if this happens again, look into the server's log"
    if isinstance(error, httpx2.RemoteProtocolError):
        return MalformedAnswer(f"the answer broke off after {received} bytes; {advice}")
    return ConnectionFailed(f"the connection broke after {received} bytes ({error}); {advice}")
