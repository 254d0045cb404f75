"""SWARM's own way to a provider's SDK: its private names, behind plain methods.

`LLMAgent._call_anthropic_async` and `_call_google_async` are one attempt each, below
upstream's retry loop. They are coroutines that hand a blocking call of the SDK to their
loop's thread pool; here they run whole on the thread of whoever calls.
"""

from __future__ import annotations

import asyncio
import copy
import importlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from scheduler.errors import ConfigError
from swarm_integration.compat import require_names


@dataclass(frozen=True, slots=True)
class Sdk:
    """How upstream reaches a provider.

    Attributes:
        method: The method of `LLMAgent` that makes one attempt.
        module: What it imports.
        package: What to install for that.
        timeout_unit_s: The SDK's unit of time; upstream hands it seconds all the same.
    """

    method: str
    module: str
    package: str
    timeout_unit_s: float = 1.0


SDKS = {
    "anthropic": Sdk("_call_anthropic_async", "anthropic", "anthropic"),
    # `HttpOptions.timeout` is in milliseconds (google-genai, types.py): upstream's 30 would
    # end every call after 30 ms.
    "google": Sdk("_call_google_async", "google.genai", "google-genai", timeout_unit_s=0.001),
}


class ProviderClient:
    """One LLM agent's access to its provider, apart from the agent that takes part in a run.

    Upstream's methods count usage on the agent that they belong to. This is a copy with
    counters of its own, so that what the run's agents count is counted once.

    Args:
        provider: SWARM's name of the provider.
        agent: An `LLMAgent` of that provider.

    Raises:
        CompatError: This SWARM lacks a name that is needed.
    """

    def __init__(self, provider: str, agent: Any) -> None:
        self._sdk = SDKS[provider]
        require_names(agent, (self._sdk.method, "_get_anthropic_client", "_api_key"), "LLMAgent")
        config = agent.llm_config
        self._agent = copy.copy(agent)
        self._agent.usage_stats = type(agent.usage_stats)()
        self._agent.llm_config = replace(config, timeout=config.timeout / self._sdk.timeout_unit_s)

    def prepare(self) -> None:
        """Import the SDK and switch its own retries off.

        Raises:
            ConfigError: The SDK is not installed, or does not start.
        """
        try:
            importlib.import_module(self._sdk.module)
            if self._sdk.method == "_call_anthropic_async":
                self._agent._get_anthropic_client().max_retries = 0
        except ImportError as exc:
            raise ConfigError(
                f"{self._agent.agent_id} needs the package {self._sdk.package}, which can't be "
                f"imported ({exc}). Install it: python -m pip install {self._sdk.package}"
            ) from exc

    def call(self, system_prompt: str, user_prompt: str) -> tuple[str, int, int]:
        """Make one attempt on this thread; return text, prompt and completion tokens.

        Raises:
            Exception: Whatever the SDK or upstream raises.
        """
        loop = asyncio.new_event_loop()
        loop.set_default_executor(_SameThread())
        try:
            text, prompt_tokens, completion_tokens = loop.run_until_complete(
                getattr(self._agent, self._sdk.method)(system_prompt, user_prompt)
            )
        finally:
            loop.close()
        return text, prompt_tokens, completion_tokens

    def close(self) -> None:
        """Close the SDK's connections, if it keeps any."""
        client = self._agent._anthropic_client
        if client is not None and hasattr(client, "close"):
            client.close()


def sdk_version(provider: str) -> str:
    """Return the version of a provider's SDK, nothing if it is not known."""
    try:
        return version(SDKS[provider].package)
    except PackageNotFoundError:
        return ""


class _SameThread(ThreadPoolExecutor):
    """A pool that runs each call at once, where it was asked for.

    asyncio takes nothing but a `ThreadPoolExecutor`; a thread of such a one would keep
    the process from ending while the SDK waits for an answer.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as exc:  # noqa: BLE001  # raised again where the future is awaited
            future.set_exception(exc)
        return future
