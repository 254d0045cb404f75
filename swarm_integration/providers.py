"""Where each of SWARM's providers has its models, and what its agents need to get there.

The addresses and the environment variables are upstream's own (`LLMConfig`, `LLMAgent`).
How many requests a provider is sent at once is this project's choice: clouds limit the
rate per account, a server of one's own the memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from swarm_integration.errors import ScenarioError

Engine = Literal["fake", "llama_server", "llama_inproc", "openai", "upstream"]

CLOUD_SLOTS = 8
OTHER_SLOTS = 4
_SDK_SLOTS = 4


@dataclass(frozen=True, slots=True)
class Provider:
    """What is known of a provider.

    Attributes:
        engine: Which kind of backend speaks to it.
        base_url: Its address where the agent names none.
        key_variable: The environment variable of its API key, None for local servers.
        slots: How many requests it is sent at once.
        headers: Sent with each request.
    """

    engine: Engine
    base_url: str = ""
    key_variable: str | None = None
    slots: int = CLOUD_SLOTS
    headers: Mapping[str, str] = field(default_factory=dict)


PROVIDERS: Mapping[str, Provider] = {
    "llama_cpp": Provider("llama_server", "http://localhost:8080/v1", slots=OTHER_SLOTS),
    "ollama": Provider("openai", "http://localhost:11434", slots=OTHER_SLOTS),
    "openai": Provider("openai", "https://api.openai.com/v1", "OPENAI_API_KEY"),
    "openrouter": Provider(
        "openai",
        "https://openrouter.ai/api/v1",
        "OPENROUTER_API_KEY",
        headers={
            "HTTP-Referer": "https://github.com/swarm-ai-safety",
            "X-Title": "SWARM Council",
        },
    ),
    "groq": Provider("openai", "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "together": Provider("openai", "https://api.together.xyz/v1", "TOGETHER_API_KEY"),
    "deepseek": Provider("openai", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "anthropic": Provider("upstream", "", "ANTHROPIC_API_KEY", _SDK_SLOTS),
    "google": Provider("upstream", "", "GOOGLE_API_KEY", _SDK_SLOTS),
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one agent's model is; agents with equal ones share a backend.

    Attributes:
        engine: Which kind of backend speaks to it.
        provider: SWARM's name of the provider, empty where the configuration decides.
        address: The base URL, the model's file, or nothing.
        api_key: Never shown.
        n_ctx: Tokens that a model in this process holds.
        n_threads: Threads of such a model, None for its own choice.
    """

    engine: Engine
    provider: str = ""
    address: str = ""
    api_key: str | None = field(default=None, repr=False)
    n_ctx: int = 0
    n_threads: int | None = None

    @property
    def label(self) -> str:
        """The backend's name in the log and in messages, without what logs in anywhere."""
        if self.engine == "llama_inproc":
            threads = "auto" if self.n_threads is None else self.n_threads
            return f"{self.address} (n_ctx {self.n_ctx}, n_threads {threads})"
        return without_login(self.address) or self.provider


def endpoint_of(agent_id: str, llm_config: Any) -> Endpoint:
    """Return where an agent's own `llm:` block says that its model is.

    Raises:
        ScenarioError: Its provider is unknown here, has no API key, or uses memori.
    """
    name = str(llm_config.provider.value)
    provider = PROVIDERS.get(name)
    if provider is None:
        raise ScenarioError(
            f"{agent_id} has the provider {name}, which is unknown here (known: "
            f"{', '.join(sorted(PROVIDERS))}). Or let one server serve all agents: "
            "--inference-config configs/llama_server.yaml"
        )
    if name == "llama_cpp" and llm_config.model_path:
        path, threads = str(llm_config.model_path), llm_config.n_threads
        return Endpoint(
            "llama_inproc", name, os.path.normpath(path), n_ctx=llm_config.n_ctx, n_threads=threads
        )
    _refuse_memori(agent_id, name, llm_config.memori_config)
    key = _api_key(agent_id, name, provider, llm_config.api_key)
    if provider.engine == "upstream":
        return Endpoint("upstream", name, api_key=key)
    return Endpoint(provider.engine, name, _base_url(name, provider, llm_config.base_url), key)


def provider_at(base_url: str) -> Provider | None:
    """Return the cloud that has the host of `base_url`, None for any other server."""
    host = urlsplit(base_url).hostname
    clouds = (one for one in PROVIDERS.values() if one.key_variable and one.base_url)
    return next((one for one in clouds if urlsplit(one.base_url).hostname == host), None)


def without_login(url: str) -> str:
    """Return a base URL without user name and password, for names, logs and messages."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _base_url(name: str, provider: Provider, given: str | None) -> str:
    url = str(given or "").rstrip("/")
    if not url and name == "openai":
        url = os.environ.get("OPENAI_BASE_URL", "").rstrip("/")
    url = url or provider.base_url
    # Upstream speaks Ollama's own protocol, whose root is not that of the common one.
    return f"{url}/v1" if name == "ollama" and not url.endswith("/v1") else url


def _api_key(agent_id: str, name: str, provider: Provider, given: str | None) -> str | None:
    """Return the key of an agent's block, or else the environment's.

    Raises:
        ScenarioError: The provider needs one and there is none.
    """
    variable = provider.key_variable
    if variable is None:
        return given if provider.engine == "openai" else None
    key = given or os.environ.get(variable)
    if not key:
        raise ScenarioError(
            f"{agent_id} is served by {name}, but {variable} is not set. Set it: "
            f"export {variable}=..., or let a server of your own serve all agents: "
            "--inference-config configs/llama_server.yaml"
        )
    return key


def _refuse_memori(agent_id: str, name: str, settings: Mapping[str, Any] | None) -> None:
    """Refuse a memory that lives in an SDK's client, where upstream would use one."""
    if name in ("openai", "anthropic") and (settings or {}).get("enabled"):
        raise ScenarioError(
            f"{agent_id} uses memori, which keeps its memory inside the SDK's client, past the "
            "scheduler. Set `memori: {enabled: false}`, or run without --inference-scheduler"
        )
