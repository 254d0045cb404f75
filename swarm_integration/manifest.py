"""What the manifest of a run says, beside how it ended."""

from __future__ import annotations

import platform
import sys
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from scheduler.backends.base import BackendInfo
from swarm_integration.compat import swarm_version
from swarm_integration.config import InferenceConfig
from swarm_integration.reproducible import Reproducible
from swarm_integration.scenario import Rehearsal
from swarm_integration.services import without_login
from swarm_integration.startup import Started

if TYPE_CHECKING:
    from swarm_integration.run import RunOptions

_NAMED_PACKAGES = ("xllamacpp", "llama-cpp-python", "anyio", "openai")


def facts(options: RunOptions, scenario: Any) -> dict[str, Any]:
    """Return what is known before anything has started."""
    orchestrator = scenario.orchestrator_config
    return {
        "versions": {
            "swarm-inference-scheduler": version("swarm-inference-scheduler"),
            "swarm-safety": swarm_version(),
            "python": platform.python_version(),
            **{name: found for name in _NAMED_PACKAGES if (found := _version(name))},
        },
        "platform": platform_facts(),
        "command": sys.argv[1:],
        "scenario": {
            "file": options.scenario.name,
            "id": scenario.scenario_id,
            "sha256": sha256(options.scenario.read_bytes()).hexdigest(),
            "epochs": orchestrator.n_epochs,
            "steps_per_epoch": orchestrator.steps_per_epoch,
        },
        "seed": orchestrator.seed,
        "mode": options.mode,
        "configuration": written_configuration(options.config),
    }


def started_facts(started: Started, reproducible: Reproducible | None) -> dict[str, Any]:
    """Return what is known once the backends are up."""
    return {
        "backends": {name: backend_facts(info) for name, info in started.infos.items()},
        "server": None
        if started.server is None
        else {
            "flags": started.server.command[1:],
            "environment": started.server.environment,
        },
        "served_by": {agent_id: one.backend for agent_id, one in started.fleet.services.items()},
        "determinism": {
            "simulation": list(reproducible.repairs) if reproducible else "not repaired",
            "requests": "seeded from what they are, in the order of the agents",
            "backend": started.certified,
            "journal": "every answer is kept before it is used",
        },
    }


def agent_facts(rehearsal: Rehearsal) -> dict[str, dict[str, Any]]:
    """Return the persona of each LLM agent, by which a report groups."""
    return {
        agent_id: {"persona": str(getattr(persona, "value", persona))}
        for agent_id, block in rehearsal.blocks.items()
        if (persona := block.agent.llm_config.persona) is not None
    }


def platform_facts() -> dict[str, str]:
    """Return the kind of machine, where sums of floating point numbers are equal."""
    return {"system": platform.system(), "machine": platform.machine()}


def backend_facts(info: BackendInfo) -> dict[str, Any]:
    """Return what a backend said at its start, as plain data."""
    return {
        "kind": info.kind,
        "model": info.model,
        "build": info.build,
        "slots": info.slots,
        "context_per_slot": info.context_per_slot,
        "fingerprint": info.fingerprint,
        "facts": dict(info.facts),
    }


def written_configuration(config: InferenceConfig) -> dict[str, Any]:
    """Return the effective configuration, without what logs in anywhere."""
    data = config.model_dump(mode="json")
    urls = [without_login(url) for url in config.backend.base_urls]
    data["backend"]["base_url"] = urls if len(urls) > 1 else urls[0]
    return data


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
