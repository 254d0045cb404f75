"""A llama-server, its own or somebody else's, as a backend: one HTTP request per prompt.

The prompts of a batch do not travel as one prompt array, although `/completion` takes
one: all prompts of an array share one seed, and the first error cancels the rest. Each
agent needs its own seed and its own fate; the server's slots decode them together anyway.
It has no queue: the server's own is endless and says nothing, so the engine keeps one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio

from scheduler.backends.base import BackendInfo, RawAnswer
from scheduler.backends.chat_answer import encodable
from scheduler.backends.llama_probe import FIXED_SAMPLING, become_ready, difference, identify
from scheduler.backends.openai_chat import ChatClient, messages_json
from scheduler.errors import (
    AttemptTimeout,
    AuthenticationFailed,
    BackendUnavailable,
    ConnectionFailed,
    RequestRejected,
    SchedulerError,
)
from scheduler.restarts import Restarts
from scheduler.types import Message, Request

_NATIVE_TIMEOUT_S = 30.0
_LOOK_S = 5.0


class LlamaServerBackend:
    """Answers by way of a llama-server; works on asyncio and on trio.

    Args:
        base_url: Where its OpenAI-compatible routes are.
        api_key: What the server was started with as `--api-key`.
        pin_slots: Tell the server which slot serves a request. Only for a server that was
            started with `--cache-ram 0`: with a prompt cache in RAM, the server's default,
            pinning to a slot that is still busy corrupts the generation that runs there, and
            a slot whose request was cancelled may be busy for a second or more.
        ready_timeout_s: How long the server may take to get ready, in seconds.
        connect_timeout_s: Deadline for connecting, in seconds.
        connect_grace_s: How long `start` waits for a server that can't be reached at all.
        restarts: Starts the server again when it has died or hangs; None for a server of somebody
            else.

    Raises:
        ConfigError: `base_url` or `api_key` can't be used.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8080/v1",
        *,
        api_key: str | None = None,
        pin_slots: bool = False,
        ready_timeout_s: float = 120.0,
        connect_timeout_s: float = 5.0,
        connect_grace_s: float = 2.0,
        restarts: Restarts | None = None,
    ) -> None:
        self._client = ChatClient(
            base_url,
            api_key=api_key,
            connect_timeout_s=connect_timeout_s,
            verify=self._verify,
        )
        self._pin_slots = pin_slots
        self._ready_timeout_s = ready_timeout_s
        self._connect_grace_s = connect_grace_s
        self._restarts = restarts
        self._given_up = False
        self._info: BackendInfo | None = None

    def __repr__(self) -> str:
        return f"<LlamaServerBackend {self._client.address}>"

    async def start(self) -> BackendInfo:
        """Wait for the server and read what it is; called again, say the same.

        Raises:
            BackendUnavailable: It can't be reached, or did not get ready in time.
            ConfigError: It is no llama-server, or refuses the API key.
        """
        if self._info is None:
            self._info = await self._become_ready(self._ready_timeout_s, self._connect_grace_s)
        return self._info

    async def wait_ready(self) -> None:
        """Return once the server answers again; one that is restarting is waited for.

        A server of our own that has died or hangs is started again, as often as that is allowed.
        One that did not come back is not waited for a second time, only looked for.

        Raises:
            BackendUnavailable: It did not come back in time, or came back as another: with
                another model, template, build or number of slots.
            ConfigError: It is no llama-server any more, or refuses the API key.
        """
        timeout_s = self._ready_timeout_s
        if self._given_up:
            timeout_s = min(_LOOK_S, timeout_s)
        try:
            info = await self._become_ready(timeout_s, 0.0 if self._given_up else timeout_s)
            self._check_same(info)
        except SchedulerError:
            self._given_up = True
            raise
        self._given_up = False

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
        """Answer `request`; without a deadline, cancelling hangs up.

        The server frees the slot of a request that hung up only between two decodes.

        Raises:
            AttemptError: No answer; the subclass says why.
        """
        return await self._client.complete(request, seed=seed, extra=self._extra(request, slot))

    async def count_prompt_tokens(self, messages: Sequence[Message]) -> int | None:
        """Return the exact number of prompt tokens that the server will count.

        Returns:
            None for a server without `/apply-template` or `/tokenize`.

        Raises:
            AttemptError: The server did not answer.
        """
        try:
            with anyio.fail_after(_NATIVE_TIMEOUT_S):
                prompt = (
                    await self._client.fetch(
                        f"{self._client.root}/apply-template", {"messages": messages_json(messages)}
                    )
                ).get("prompt")
                if not isinstance(prompt, str):
                    return None
                # As the server reads a chat prompt: with BOS, with special tokens recognised.
                tokens = (
                    await self._client.fetch(
                        f"{self._client.root}/tokenize",
                        {"content": encodable(prompt), "add_special": True, "parse_special": True},
                    )
                ).get("tokens")
        except TimeoutError as exc:
            raise AttemptTimeout(
                f"{self._client.address} did not count a prompt's tokens within "
                f"{_NATIVE_TIMEOUT_S:g} s; see whether it hangs, and restart it"
            ) from exc
        except AuthenticationFailed:
            raise
        except RequestRejected:
            return None
        return len(tokens) if isinstance(tokens, list) else None

    async def aclose(self) -> None:
        """Close the connections; may be called twice."""
        await self._client.aclose()

    def _check_same(self, info: BackendInfo) -> None:
        if self._info is not None and info != self._info:
            raise BackendUnavailable(
                f"the server at {self._client.address} came back as another one "
                f"({difference(self._info, info)}), so its answers would not belong to this run; "
                "start it as it was, then resume"
            )

    async def _verify(self) -> None:
        """See that the server which has just answered is the one that this run began with."""
        info = await identify(self._client)
        if self._info is not None and info != self._info:
            raise ConnectionFailed(
                f"an answer came from another server than the run began with, and was not taken "
                f"({difference(self._info, info)}); start the server at {self._client.address} "
                "as it was, then resume"
            )

    async def _become_ready(self, timeout_s: float, unreachable_s: float) -> BackendInfo:
        return await become_ready(
            self._client,
            timeout_s=timeout_s,
            unreachable_s=unreachable_s,
            revive=None if self._restarts is None else self._revive,
        )

    async def _revive(self, hangs: bool) -> bool:
        base_url = None if self._restarts is None else await self._restarts.revive(hangs=hangs)
        if base_url is None:
            return False
        self._client.move(base_url)
        return True

    def _extra(self, request: Request, slot: int) -> dict[str, Any]:
        sampling = request.sampling
        extra: dict[str, Any] = {
            **FIXED_SAMPLING,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repeat_penalty,
            "cache_prompt": True,
            # Thoughts come apart from the answer, whatever the server was started with.
            "reasoning_format": "deepseek",
        }
        if sampling.thinking is not None:
            extra["chat_template_kwargs"] = {"enable_thinking": sampling.thinking}
        if request.schema is not None:
            schema = {"name": request.schema.name, "schema": request.schema.schema, "strict": True}
            extra["response_format"] = {"type": "json_schema", "json_schema": schema}
        if request.report_tokens:
            extra |= {"logprobs": True, "top_logprobs": 1}
        if self._pin_slots:
            extra["id_slot"] = slot
        return extra
