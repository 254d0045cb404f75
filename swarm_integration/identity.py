"""What a run's answers follow from: equal, or a run can't be resumed.

Time-outs, slots, URLs, ports and retries are not in it, since changing those is how
a broken run is mended.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scheduler.backends.base import BackendInfo
from scheduler.errors import ConfigError
from scheduler.server import ManagedServer
from scheduler.server_command import default_threads
from scheduler.yaml_text import load_yaml
from swarm_integration.agents import Service
from swarm_integration.compat import swarm_version
from swarm_integration.config import InferenceConfig

_MENDABLE = frozenset(
    {"timeout", "max_retries", "base_url", "api_key", "timeout_per_member"}
    | {"llm_timeout", "llm_max_retries", "llm_base_url", "llm_api_key"}
)
"""Keys of an agent that decide how its model is reached, not what it is asked."""

_MOST_TOLD = 3
"""How many differences a message names."""


def asked_for(
    *,
    scenario: Path,
    epochs: int,
    steps_per_epoch: int,
    seed: int | None,
    mode: str,
    config: InferenceConfig,
    repairs: Sequence[str],
) -> dict[str, Any]:
    """Return the part of an identity that is known before anything is started.

    Args:
        scenario: The scenario's file.
        epochs: How many epochs are run.
        steps_per_epoch: How many steps each has.
        seed: The run's seed.
        mode: `batch` or `serial`.
        config: The effective configuration.
        repairs: What was made reproducible.
    """
    return {
        "versions": versions(),
        "scenario_sha256": scenario_sha256(scenario),
        "epochs": epochs,
        "steps_per_epoch": steps_per_epoch,
        "seed": seed,
        "mode": mode,
        "prompt_layout": config.prompt_layout,
        "structured_output": config.scheduler.structured_output,
        "full_ids": config.actions.full_ids,
        "max_reasks": config.scheduler.max_reasks,
        "repairs": list(repairs),
    }


def answerers(
    config: InferenceConfig,
    services: Mapping[str, Service],
    backends: Mapping[str, BackendInfo],
    server: ManagedServer | None,
) -> dict[str, Any]:
    """Return the part of an identity that is known once the backends are up.

    Args:
        config: The effective configuration.
        services: Who answers each LLM agent.
        backends: What the backends said at their start, by name.
        server: The run's own server, as it was started.
    """
    return {
        "managed_server": _managed_server(config, server),
        "agents": {
            agent_id: {
                "base_seed": service.base_seed,
                "model": _model(backends[service.backend]),
                "sampling": asdict(service.sampling),
            }
            for agent_id, service in services.items()
        },
    }


def _managed_server(config: InferenceConfig, server: ManagedServer | None) -> dict[str, Any] | None:
    """Return how a server is started, as far as its bits follow from that and it does not tell."""
    if not config.backend.managed:
        return None
    return {
        "profile": config.determinism.server_profile,
        "threads": config.backend.threads or default_threads(),
        "n_gpu_layers": config.backend.n_gpu_layers,
        # Both follow from the processor and the build.
        "environment": server.environment if server else {},
        "repacking": server is None or "--no-repack" not in server.command,
    }


def scenario_sha256(path: Path) -> str:
    """Return the sha256 (hexadecimal) of what a scenario says, less what may be mended.

    Comments and layout do not count, and neither do the agents' time-outs, retries,
    addresses and keys.
    """
    data = load_yaml(path.read_text(encoding="utf-8"))
    if isinstance(data, dict) and "agents" in data:
        data = {**data, "agents": _without_mendable(data["agents"])}
    text = json.dumps(_with_text_keys(data), sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()


def _with_text_keys(data: Any) -> Any:
    """Return data whose keys can be sorted: YAML has numbers, dates and `on` among them."""
    if isinstance(data, dict):
        texts = {key: key if isinstance(key, str) else f"{key!r}" for key in data}
        return {texts[key]: _with_text_keys(value) for key, value in data.items()}
    return [_with_text_keys(value) for value in data] if isinstance(data, list) else data


def _without_mendable(data: Any) -> Any:
    if isinstance(data, dict):
        kept = {key: value for key, value in data.items() if key not in _MENDABLE}
        return {str(key): _without_mendable(value) for key, value in kept.items()}
    if isinstance(data, list):
        return [_without_mendable(value) for value in data]
    return data


def versions() -> dict[str, str]:
    """Return the versions of all that decides what a simulation asks."""
    return {
        "swarm-inference-scheduler": version("swarm-inference-scheduler"),
        "swarm-safety": swarm_version(),
        "python": ".".join(str(part) for part in sys.version_info[:2]),
    }


def check_same(before: Any, now: Mapping[str, Any], path: Path) -> None:
    """Check that the run in `path` goes on as what it was.

    Args:
        before: The earlier attempt's identity; None when it ended before it had one.
        now: This attempt's, or what is known of it yet.
        path: The run's directory.

    Raises:
        ConfigError: It would not; the message names what differs.
    """
    told = "" if before is None else explained(before, now)
    if told:
        raise ConfigError(
            f"the run in {path} can't be resumed, since its answers would not fit together: "
            f"{told}. Put that back as it was, or start a new run"
        )


def explained(before: Any, now: Mapping[str, Any]) -> str:
    """Return what differs, in words; nothing where all is the same.

    Args:
        before: An identity, as a manifest has it, which may be damaged.
        now: Another one, or a part of one, which is compared with the same part of `before`.
    """
    earlier = before if isinstance(before, dict) else {}
    then, here = (_plain({key: each.get(key) for key in now}) for each in (earlier, now))
    others = _other_models(_models(then), _models(here))
    found = [*others, *differences(then, here)]
    more = f" and {len(found) - _MOST_TOLD} more" if len(found) > _MOST_TOLD else ""
    return "; ".join(found[:_MOST_TOLD]) + more


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy as JSON has it."""
    copied: dict[str, Any] = json.loads(json.dumps(data))
    return copied


def _models(identity: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the agents whose model is told in words."""
    agents = identity.get("agents")
    found = agents.items() if isinstance(agents, dict) else ()
    return {
        name: agent
        for name, agent in found
        if isinstance(agent, dict) and isinstance(agent.get("model"), dict)
    }


def _other_models(
    before: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]
) -> Iterator[str]:
    """Yield which agents another model answers, and take these models out."""
    agents: dict[tuple[str, str], list[str]] = {}
    for name in sorted(before.keys() & now.keys()):
        old, new = before[name].pop("model"), now[name].pop("model")
        if old != new:
            length = 12 if _told(old) == _told(new) else 0  # of a fingerprint, when that is all
            agents.setdefault((_told(old, length), _told(new, length)), []).append(name)
    for (old, new), names in agents.items():
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        yield f"the model of {', '.join(names[:2])}{more} was {old}, is {new}"


def _told(model: Mapping[str, str], length: int = 0) -> str:
    build = f"build {model['build']}, " if model.get("build") else ""
    what = f"{model.get('model')!r} ({build}kind {model.get('kind')})"
    return (
        f"{what} with the fingerprint {str(model.get('fingerprint'))[:length]}" if length else what
    )


def differences(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """Yield what differs, each with its place, the old value and the new one."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            name = f"{place}.{key}" if place else str(key)
            yield from differences(before.get(key), now.get(key), name)
    elif before != now:
        yield f"{place} was {before!r}, is {now!r}"


def _model(info: BackendInfo) -> dict[str, str]:
    return {
        "kind": info.kind,
        "model": info.model,
        "build": info.build,
        "fingerprint": info.fingerprint,
    }
