"""Which backend answers which LLM agent, and with which parameters.

With `backend.kind: auto` an agent's own `llm:` block says where its model is;
any other kind serves all LLM agents of the run. What is sampled and how long is
waited always comes from the agent's block.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from scheduler.backends.base import Backend
from scheduler.backends.fake import FakeBackend
from scheduler.backends.llama_server import LlamaServerBackend
from scheduler.config import BackendConfig
from scheduler.errors import ConfigError
from scheduler.types import Sampling
from swarm_integration.agents import Service
from swarm_integration.errors import ScenarioError
from swarm_integration.scenario import LlmBlock, Rehearsal


@dataclass(frozen=True, slots=True)
class Fleet:
    """The backends of a run and the agents that they serve.

    Attributes:
        backends: By the name that requests give.
        services: By the LLM agent's id.
        names_must_match: Whether a server must serve the model that its agents name.
    """

    backends: dict[str, Backend]
    services: dict[str, Service]
    names_must_match: bool


def muster(rehearsal: Rehearsal, config: BackendConfig, *, managed_url: str | None) -> Fleet:
    """Make the backends that the LLM agents of a scenario need.

    Args:
        rehearsal: The scenario's LLM agents.
        config: The `backend` section.
        managed_url: Base URL of the server that was started for this run, or None.

    Raises:
        ScenarioError: An agent asks for a provider that is not served here.
        ConfigError: The API key's environment variable is not set.
    """
    backends: dict[str, Backend] = {}
    services: dict[str, Service] = {}
    urls: dict[str, str] = {}
    for agent_id, block in rehearsal.blocks.items():
        name, url = "default", managed_url or config.base_url
        if config.kind == "auto":
            url = _own_server(agent_id, block.agent.llm_config)
            name = without_login(url)
        if urls.setdefault(name, url) != url:
            raise ScenarioError(
                f"{agent_id} logs in at {name} otherwise than an agent before it; give all "
                "agents of one server the same base_url"
            )
        if name not in backends:
            backends[name] = _backend(url, config, pin_slots=managed_url is not None)
        services[agent_id] = _service(name, block, config, rehearsal.seed)
    return Fleet(backends, services, names_must_match=config.kind == "auto")


def _own_server(agent_id: str, llm_config: Any) -> str:
    """Return the base URL that an agent's own block names."""
    provider = llm_config.provider.value
    if provider != "llama_cpp" or llm_config.model_path:
        where = f"model_path {llm_config.model_path}" if llm_config.model_path else provider
        raise ScenarioError(
            f"{agent_id} is served by {where}, which the scheduler does not drive yet. "
            "Use `provider: llama_cpp` with a base_url, or let one server serve all agents: "
            "--inference-config configs/llama_server.yaml"
        )
    return str(llm_config.base_url).rstrip("/")


def _backend(url: str, config: BackendConfig, *, pin_slots: bool) -> Backend:
    if config.kind == "fake":
        fake = config.fake
        return FakeBackend(fake.slots, fake.context_per_slot, latency_s=fake.latency_s)
    return LlamaServerBackend(
        url,
        api_key=_api_key(config.api_key_env),
        pin_slots=pin_slots,
        ready_timeout_s=config.ready_timeout_s,
    )


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(
            f"backend.api_key_env names {variable}, which is not set. Set it: export {variable}=..."
        )
    return key


def _service(name: str, block: LlmBlock, config: BackendConfig, run_seed: int | None) -> Service:
    llm = block.agent.llm_config
    base_seed = block.seed if block.seed is not None else run_seed
    timeout_s = float(llm.timeout)
    return Service(
        backend=name,
        model=str(llm.model),
        base_seed=0 if base_seed is None else base_seed,
        sampling=Sampling(
            temperature=float(llm.temperature),
            max_tokens=int(llm.max_tokens),
            thinking=config.thinking,
        ),
        timeout_s=timeout_s if block.limit_s is None else min(timeout_s, block.limit_s),
        max_retries=int(llm.max_retries),
    )


def without_login(url: str) -> str:
    """Return a base URL without user name and password, for names, logs and messages."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
