"""Which backend answers which LLM agent, and with which parameters.

With `backend.kind: auto` an agent's own `llm:` block says where its model is;
any other kind serves all LLM agents of the run. What is sampled and how long is
waited always comes from the agent's block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scheduler.backends.base import Backend
from scheduler.backends.fake import FakeBackend
from scheduler.backends.llama_inproc import LlamaInprocBackend
from scheduler.config import BackendConfig
from scheduler.errors import ConfigError
from scheduler.observe import EventLog
from scheduler.restarts import Restarts
from scheduler.server_command import default_threads
from scheduler.types import Sampling
from swarm_integration.agents import Service
from swarm_integration.errors import ScenarioError
from swarm_integration.keys import configured_key
from swarm_integration.providers import (
    OTHER_SLOTS,
    PROVIDERS,
    Endpoint,
    Provider,
    endpoint_of,
    provider_at,
    without_login,
)
from swarm_integration.scenario import LlmBlock, Rehearsal
from swarm_integration.upstream_provider import UpstreamProviderBackend

__all__ = ["Fleet", "Slots", "muster", "without_login"]

_BETWEEN = "\n"  # the addresses of several servers in one endpoint; no address holds it
Slots = int | Literal["auto"]


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


def muster(
    rehearsal: Rehearsal,
    config: BackendConfig,
    *,
    managed_url: str | None,
    context: int = 0,
    slots: Slots = "auto",
    log: EventLog | None = None,
    restarts: Restarts | None = None,
    made: dict[Endpoint, Backend] | None = None,
) -> Fleet:
    """Make the backends that the LLM agents of a scenario need, one per place of a model.

    Args:
        rehearsal: The scenario's LLM agents.
        config: The `backend` section.
        managed_url: Base URL of the server that was started for this run, or None.
        context: Tokens that a model in this process holds, where the `backend` section names it.
        slots: `scheduler.slots`, for the endpoints that can't be asked for theirs.
        log: Is told what an endpoint does not take.
        restarts: Starts that server again when it has died.
        made: Backends that other runs have made and this one shares, to which it adds its
            own. Those that go through upstream's methods keep to one run's agents and are
            not shared. None: all of this run's are its own.

    Raises:
        ScenarioError: An agent's provider can't be used: no API key, unknown.
        ConfigError: The API key's environment variable is not set.
    """
    names = _Names()
    served: dict[Endpoint, dict[str, Any]] = {}
    for agent_id, block in rehearsal.blocks.items():
        endpoint = _endpoint(agent_id, block, config, managed_url, context)
        names.add(agent_id, endpoint)
        served.setdefault(endpoint, {})[agent_id] = block.agent
    maker = _Maker(config, slots, log, restarts, managed=managed_url is not None)
    services = {
        agent_id: service_of(names.of_agent[agent_id], block, config, rehearsal.seed)
        for agent_id, block in rehearsal.blocks.items()
    }
    backends: dict[str, Backend] = {}
    for endpoint, agents in served.items():
        backend = None if made is None else made.get(endpoint)
        if backend is None:
            backend = maker.backend(endpoint, agents, services)
            if made is not None and endpoint.engine != "upstream":
                made[endpoint] = backend
        backends[names.of_endpoint[endpoint]] = backend
    return Fleet(backends, services, names_must_match=config.kind == "auto")


def _endpoint(
    agent_id: str, block: LlmBlock, config: BackendConfig, managed_url: str | None, context: int
) -> Endpoint:
    if config.kind == "auto":
        return endpoint_of(agent_id, block.agent.llm_config)
    if config.kind == "llama_inproc":
        path, threads = str(config.model_path), config.threads or default_threads()
        return Endpoint("llama_inproc", address=path, n_ctx=context, n_threads=threads)
    url = managed_url or _BETWEEN.join(config.base_urls)
    return Endpoint(config.kind, address="" if config.kind == "fake" else url)


class _Names:
    """Gives each endpoint one name, in the order of the agents."""

    def __init__(self) -> None:
        self.of_endpoint: dict[Endpoint, str] = {}
        self.of_agent: dict[str, str] = {}

    def add(self, agent_id: str, endpoint: Endpoint) -> None:
        """Name the endpoint of an agent.

        Raises:
            ScenarioError: Two agents log in at one llama-server in different ways.
        """
        if endpoint not in self.of_endpoint:
            label = endpoint.label if endpoint.provider else "default"
            taken = sum(label in (name, name.rpartition(" (key ")[0]) for name in self._names)
            if taken and endpoint.engine == "llama_server":
                raise ScenarioError(
                    f"{agent_id} logs in at {label} otherwise than an agent before it; give all "
                    "agents of one server the same base_url"
                )
            self.of_endpoint[endpoint] = f"{label} (key {taken + 1})" if taken else label
        self.of_agent[agent_id] = self.of_endpoint[endpoint]

    @property
    def _names(self) -> list[str]:
        return list(self.of_endpoint.values())


class _Maker:
    """Makes the backend of an endpoint.

    Args:
        config: The `backend` section.
        slots: `scheduler.slots`.
        log: Given to backends that have something to tell.
        restarts: Given to the backend of the run's own server.
        managed: Whether the run has started the server itself.
    """

    def __init__(
        self,
        config: BackendConfig,
        slots: Slots,
        log: EventLog | None,
        restarts: Restarts | None,
        *,
        managed: bool,
    ) -> None:
        self._config = config
        self._slots = slots
        self._log = log
        self._restarts = restarts
        self._managed = managed

    def backend(
        self, endpoint: Endpoint, agents: Mapping[str, Any], services: Mapping[str, Service]
    ) -> Backend:
        """Return the backend of `endpoint`, which serves `agents`."""
        config = self._config
        match endpoint.engine:
            case "fake":
                fake = config.fake
                return FakeBackend(
                    fake.slots,
                    fake.context_per_slot,
                    latency_s=fake.latency_s,
                    fault_rate=fake.fault_rate,
                )
            case "llama_server":
                return self._llama_server(endpoint.address.split(_BETWEEN))
            case "llama_inproc":
                return LlamaInprocBackend(
                    Path(endpoint.address),
                    n_ctx=endpoint.n_ctx,
                    n_threads=endpoint.n_threads,
                    n_gpu_layers=config.n_gpu_layers,
                    engine=config.engine,
                    flash_attention=None
                    if config.flash_attention == "auto"
                    else config.flash_attention,
                    slots=self._slots,
                    log=self._log,
                )
            case "openai":
                timeout_s = min(services[agent_id].timeout_s for agent_id in agents)
                return self._openai(endpoint, timeout_s)
            case "upstream":
                provider = PROVIDERS[endpoint.provider]
                return UpstreamProviderBackend(
                    endpoint.provider,
                    agents,
                    api_key=endpoint.api_key or "",
                    key_variable=provider.key_variable or "",
                    slots=self._slots_of(provider),
                )

    # The backends that speak HTTP are imported where they are needed: the `openai` package
    # takes longer to import than all else that a command needs.
    def _llama_server(self, urls: Sequence[str]) -> Backend:
        from scheduler.backends.llama_server import LlamaServerBackend
        from scheduler.backends.server_pool import ServerPool

        config = self._config
        servers = [
            (
                without_login(url),
                LlamaServerBackend(
                    url,
                    api_key=configured_key(config, config.api_key_env),
                    pin_slots=self._managed,
                    ready_timeout_s=config.ready_timeout_s,
                    restarts=self._restarts,
                ),
            )
            for url in urls
        ]
        if len(servers) == 1:
            return servers[0][1]
        return ServerPool(servers, allow_different=config.allow_different_servers, log=self._log)

    def _openai(self, endpoint: Endpoint, timeout_s: float) -> Backend:
        from scheduler.backends.openai_compat import OpenAIBackend

        config, settings = self._config, self._config.openai
        cloud = provider_at(endpoint.address)
        provider = PROVIDERS.get(endpoint.provider) or cloud
        variable = provider.key_variable if provider else None
        key = endpoint.api_key
        if not endpoint.provider:
            variable = config.api_key_env or variable
            key = configured_key(config, variable)
        slots = self._slots_of(provider)
        _check_rate(settings.requests_per_minute, slots, timeout_s)
        return OpenAIBackend(
            endpoint.address,
            model=None if endpoint.provider else settings.model,
            api_key=key,
            slots=slots,
            context_per_slot=settings.context_per_slot,
            headers=provider.headers if provider else {},
            send_seed=settings.send_seed,
            send_schema=settings.send_schema,
            requests_per_minute=settings.requests_per_minute,
            key_variable=variable,
            log=self._log,
            ready_timeout_s=config.ready_timeout_s,
        )

    def _slots_of(self, provider: Provider | None) -> int:
        """Return how many requests an endpoint gets at once, which can't be asked for it."""
        for configured in (self._config.openai.slots, self._slots):
            if configured != "auto":
                return configured
        return provider.slots if provider else OTHER_SLOTS


def _check_rate(per_minute: int | None, slots: int, timeout_s: float) -> None:
    """Check that requests which wait for their turn are not timed out by that alone.

    Raises:
        ConfigError: They may be.
    """
    wait_s = slots * 60.0 / per_minute if per_minute else 0.0
    if wait_s >= timeout_s:
        most = max(1, int(timeout_s * (per_minute or 1) / 60.0 / 2))
        raise ConfigError(
            f"backend.openai.requests_per_minute = {per_minute}: with {slots} slots a request may "
            f"wait {wait_s:g} s for its turn, and an agent's timeout is {timeout_s:g} s. Set "
            f"backend.openai.slots to {most}, or raise the agents' timeout"
        )


def service_of(name: str, block: LlmBlock, config: BackendConfig, run_seed: int | None) -> Service:
    """Return how an agent is served by the backend `name`, as its own block says."""
    llm = block.agent.llm_config
    # Upstream's -1 means that no seed is given; 0 is one like any other.
    llama_seed = llm.llama_seed if llm.llama_seed >= 0 else None
    given = (seed for seed in (block.seed, llama_seed, run_seed) if seed is not None)
    base_seed = next(given, 0)
    timeout_s = float(llm.timeout)
    return Service(
        backend=name,
        model=str(llm.model),
        base_seed=base_seed,
        sampling=Sampling(
            temperature=float(llm.temperature),
            max_tokens=int(llm.max_tokens),
            thinking=config.thinking,
        ),
        timeout_s=timeout_s if block.limit_s is None else min(timeout_s, block.limit_s),
        max_retries=int(llm.max_retries),
    )
