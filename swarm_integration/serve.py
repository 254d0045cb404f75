"""`swarm-inference serve`: a llama-server with the right settings, until Ctrl-C."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import anyio

from scheduler.errors import ConfigError, ServerError
from scheduler.server import ManagedServer, Profile, ServerSpec, check_spec, find_server
from scheduler.server_command import ServerBinary, default_threads

CONFIG = "configs/llama_server.yaml"
CONFIG_PORT = 8080

_LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What the server is to be; see `ServerSpec`.

    Attributes:
        server: The program, or None for the first one found.
        log: Where the server's own output goes.
        as_json: Print JSON data when it is ready.
    """

    model: Path
    slots: int
    context_per_slot: int
    port: int
    threads: int | None
    n_gpu_layers: int
    profile: Profile
    alias: str | None
    server: str | None
    log: Path
    as_json: bool


def serve(options: ServeOptions) -> int:
    """Start a server, say where it is, and wait until Ctrl-C or until it ends."""
    if not 0 <= options.port <= _LAST_PORT:
        raise ConfigError(
            f"--port is {options.port}, but ports go from 0 to {_LAST_PORT}. Take 0 for a free one"
        )
    spec = ServerSpec(
        model_path=options.model,
        slots=options.slots,
        ctx_per_slot=options.context_per_slot,
        port=options.port,
        threads=default_threads() if options.threads is None else options.threads,
        n_gpu_layers=options.n_gpu_layers,
        profile=options.profile,
        alias=options.alias,
    )
    check_spec(spec)
    binary = find_server(options.server)
    options.log.parent.mkdir(parents=True, exist_ok=True)
    try:
        return anyio.run(_run, options, spec, binary)
    except KeyboardInterrupt:
        print("the server was stopped", file=sys.stderr)
        return 0


async def _run(options: ServeOptions, spec: ServerSpec, binary: ServerBinary) -> int:
    print(f"starting {binary.kind} with {options.model} ...", file=sys.stderr, flush=True)
    async with ManagedServer(spec, binary=binary, log_path=options.log) as server:
        print(_ready(options, spec, server), flush=True)
        while (status := server.poll()) is None:  # noqa: ASYNC110  # a child's end sets no event
            await anyio.sleep(0.5)
    raise ServerError(f"the server has ended: exit status {status}. See {options.log}")


def _ready(options: ServeOptions, spec: ServerSpec, server: ManagedServer) -> str:
    facts = {
        "base_url": server.base_url,
        "pid": server.pid,
        "log": str(options.log),
        "slots": spec.slots,
        "context_per_slot": spec.ctx_per_slot,
        "threads": spec.threads,
        "profile": spec.profile,
    }
    if options.as_json:
        return json.dumps(facts)
    threads = f"{spec.threads} thread{'' if spec.threads == 1 else 's'}"
    lines = [
        f"ready: {server.base_url} ({spec.slots} slots of {spec.ctx_per_slot} tokens, {threads}, "
        f"profile {spec.profile}, log {options.log})",
        f"next, in another terminal: swarm run SCENARIO --inference-scheduler batch "
        f"--inference-config {CONFIG}",
    ]
    if not server.base_url.endswith(f":{CONFIG_PORT}/v1"):
        lines.append(f"      with base_url: {server.base_url} in that file")
    return "\n".join([*lines, "Ctrl-C stops it."])
