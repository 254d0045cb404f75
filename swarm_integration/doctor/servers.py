"""Who would answer: the program that serves, the server that runs, what it has for a scenario.

Asks servers what they are, and sends no prompt; a model in this process is not loaded.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scheduler.backends.base import BackendInfo
from scheduler.backends.llama_inproc import LlamaInprocBackend
from scheduler.config import BackendConfig
from scheduler.errors import (
    AttemptError,
    AuthenticationFailed,
    BackendUnavailable,
    ConfigError,
    ServerError,
)
from scheduler.server_command import find_server
from swarm_integration.doctor.findings import Finding
from swarm_integration.doctor.machine import check_port
from swarm_integration.doctor.packages import installed
from swarm_integration.errors import FitnessError
from swarm_integration.fitness import check_fitness
from swarm_integration.keys import configured_key
from swarm_integration.providers import PROVIDERS, provider_at
from swarm_integration.scenario import Rehearsal
from swarm_integration.schemas import Instructions
from swarm_integration.services import Fleet, Slots

START_SERVER = "swarm-inference serve --model FILE --slots 4"

PATIENCE_S = 5.0
"""How long a server may load its model before the doctor goes on, in seconds."""

_VERSION_TIMEOUT_S = 20.0


def check_program(*, needed: bool) -> Finding:
    """Return which llama-server would be started here.

    Args:
        needed: Whether the configuration asks for one.
    """
    check = "llama-server program"
    try:
        binary = find_server()
    except ServerError as exc:
        what, _, mend = str(exc).partition(" Get one with ")
        mend = mend.rstrip(".") or "unset LLAMA_SERVER, or let it name an executable"
        return Finding(check, "error" if needed else "warning", what.rstrip("."), mend)
    if binary.kind == "xllamacpp":
        found = installed("xllamacpp") or ""
        says = f"the one in the wheel xllamacpp {found}"
        return Finding(check, "ok", says, facts={"kind": binary.kind, "version": found})
    program = binary.argv[0]
    build = _build_of(program)
    facts = {"kind": binary.kind, "path": program, "version": build}
    if not build:
        says = f"{program} does not tell its version; does it start?"
        return Finding(check, "error" if needed else "warning", says, f"{program} --version", facts)
    return Finding(check, "ok", f"{program}, {build}", facts=facts)


async def check_default_server(base_url: str) -> AsyncIterator[Finding]:
    """Yield whether a server runs at an address where none need run yet."""
    from scheduler.backends.llama_server import LlamaServerBackend

    backend = LlamaServerBackend(base_url, ready_timeout_s=PATIENCE_S, connect_grace_s=0.3)
    parts = urlsplit(base_url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    try:
        info = await backend.start()
    except BackendUnavailable as exc:
        if "could be reached" not in str(exc):
            yield _unavailable(base_url, exc)
            return
        yield Finding(f"server {base_url}", "ok", f"none runs; to start one: {START_SERVER}")
        yield check_port(host, port)
    except ConfigError as exc:
        if isinstance(exc.__cause__, AuthenticationFailed):
            yield replace(_unavailable(base_url, exc), level="warning")
        else:
            yield check_port(host, port)
    else:
        yield _running(base_url, info)
    finally:
        await backend.aclose()


async def check_fleet(
    rehearsal: Rehearsal,
    fleet: Fleet,
    instructions: Instructions,
    slots: Slots,
    *,
    address: str | None,
    fits: bool,
) -> AsyncIterator[Finding]:
    """Yield of each backend what it is, and whether the scenario's prompts fit it.

    Args:
        rehearsal: The scenario's LLM agents and prompts.
        fleet: Who would answer them.
        instructions: How prompts are laid out.
        slots: `scheduler.slots`.
        address: Of the one server that serves all agents, None where each has its own.
        fits: Also check whether the prompts fit.
    """
    for key, backend in fleet.backends.items():
        name = address or key
        if isinstance(backend, LlamaInprocBackend):
            continue
        try:
            info = await backend.start()
        except (ConfigError, BackendUnavailable, AttemptError) as exc:
            yield _unavailable(name, exc)
        else:
            yield _running(name, info)
            if fits:
                services = {
                    agent_id: replace(one, backend=name)
                    for agent_id, one in fleet.services.items()
                    if one.backend == key
                }
                alone = Fleet({name: backend}, services, fleet.names_must_match)
                yield await _fits(name, info, rehearsal, alone, instructions, slots)


def check_configured_key(config: BackendConfig) -> Iterator[Finding]:
    """Yield whether the key of the server that serves all agents is there; never what it is."""
    variable = config.api_key_env
    if variable is None and config.kind == "openai":
        cloud = provider_at(config.base_urls[0])
        variable = cloud.key_variable if cloud else None
    if config.api_key_file is not None:
        try:
            configured_key(config, variable)
        except ConfigError as exc:
            what, _, mend = str(exc).partition(". ")
            yield Finding("API key file", "error", what, mend)
        else:
            yield Finding("API key file", "ok", f"{config.api_key_file} holds a key")
    elif variable is not None:
        yield _key(variable, "the server at backend.base_url")


def check_agents_keys(rehearsal: Rehearsal) -> Iterator[Finding]:
    """Yield of each API key that agents need whether it is there; never what it is."""
    agents: dict[str, list[str]] = {}
    for agent_id, block in rehearsal.blocks.items():
        variable = lacking_key(block.agent.llm_config)
        if variable is not None:
            agents.setdefault(variable, []).append(agent_id)
    for variable, ids in agents.items():
        more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
        yield _key(variable, ", ".join(ids[:3]) + more)


def lacking_key(llm_config: Any) -> str | None:
    """Return the variable that an agent's API key has to come from, None if none has to."""
    provider = PROVIDERS.get(str(llm_config.provider.value))
    if provider is None or llm_config.api_key:
        return None
    return provider.key_variable


def _key(variable: str, who: str) -> Finding:
    check = f"API key {variable}"
    facts = {"variable": variable, "set": bool(os.environ.get(variable))}
    if facts["set"]:
        return Finding(check, "ok", f"set; {who} needs it", facts=facts)
    return Finding(check, "error", f"not set; {who} needs it", f"export {variable}=...", facts)


async def _fits(
    name: str,
    info: BackendInfo,
    rehearsal: Rehearsal,
    fleet: Fleet,
    instructions: Instructions,
    slots: Slots,
) -> Finding:
    check = f"scenario on {name}"
    try:
        await check_fitness(rehearsal, fleet, instructions, slots)
    except FitnessError as exc:
        what, _, mend = str(exc).partition(". ")
        return Finding(check, "error", what, mend)
    except (ConfigError, BackendUnavailable, AttemptError) as exc:
        return _unavailable(name, exc)
    if info.context_per_slot is None:
        return Finding(check, "ok", "its context is not known, so prompts were not measured")
    return Finding(
        check, "ok", f"the longest prompts, their growth and answers fit {info.context_per_slot}"
    )


def _running(name: str, info: BackendInfo) -> Finding:
    facts = {
        "kind": info.kind,
        "slots": info.slots,
        "context_per_slot": info.context_per_slot,
        "model": info.model,
        "build": info.build,
    }
    context = "" if info.context_per_slot is None else f" of {info.context_per_slot:,} tokens"
    model = f", model {info.model}" if info.model else ""
    build = f", build {info.build}" if info.build else ""
    says = f"ready, {info.slots} slots{context}{model}{build}"
    return Finding(f"server {name}" if "://" in name else name, "ok", says, facts=facts)


def _unavailable(name: str, error: Exception) -> Finding:
    check = f"server {name}"
    if isinstance(error.__cause__, AuthenticationFailed):
        return Finding(check, "error", str(error), "set backend.api_key_env to the key's variable")
    if isinstance(error, ConfigError) and "does not answer as a llama-server" in str(error):
        says = "another program listens there, which does not answer as a llama-server does"
        mend = f"correct base_url; or on another port: {START_SERVER} --port 0"
        return Finding(check, "error", says, mend)
    if isinstance(error, BackendUnavailable) and "could be reached" in str(error):
        return Finding(check, "error", "no server can be reached there", START_SERVER)
    what, _, mend = str(error).partition(". ")
    return Finding(check, "error", what, mend)


def _build_of(program: str) -> str:
    """Return the version that a llama-server prints, or nothing."""
    try:
        done = subprocess.run(  # noqa: S603  # found on PATH, or named by the user
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=_VERSION_TIMEOUT_S,
            check=False,
            cwd=Path(program).parent,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"version: *(\S.*)", done.stdout + done.stderr)
    return f"version {match[1].strip()}" if match else ""
