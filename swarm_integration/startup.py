"""Starting what a run needs, and checking that it fits, before the first step.

What has been started is in `Parts` at every moment, so that it is given back
whatever goes wrong on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scheduler.backends.base import Backend, BackendInfo
from scheduler.config import SchedulerConfig
from scheduler.errors import AttemptError, BackendUnavailable, ConfigError, ServerError
from scheduler.journal import Journal
from scheduler.restarts import Restarts
from scheduler.server import ManagedServer, ServerSpec
from scheduler.server_command import default_threads
from swarm_integration.config import InferenceConfig
from swarm_integration.errors import FitnessError
from swarm_integration.fitness import check_fitness, estimated_context
from swarm_integration.managed import managed_slots, with_prefix_copies
from swarm_integration.quoting import quotes
from swarm_integration.rundir import JOURNAL, SERVER_LOG, RunDirectory
from swarm_integration.scenario import Rehearsal
from swarm_integration.schemas import Instructions
from swarm_integration.services import Fleet, muster


@dataclass(slots=True)
class Parts:
    """What a run has started and must give back."""

    backends: list[Backend] = field(default_factory=list)
    server: ManagedServer | None = None
    journal: Journal | None = None

    async def aclose(self) -> None:
        """Close the backends and the journal, then stop the server."""
        for backend in self.backends:
            await backend.aclose()
        if self.journal is not None:
            await self.journal.aclose()
        if self.server is not None:
            await self.server.stop()


@dataclass(frozen=True, slots=True)
class Started:
    """What a run works with.

    Attributes:
        fleet: The backends and whom they serve.
        infos: What the backends said at their start.
        instructions: What upstream's prompts ask for, and how they are laid out.
        journal: Where answers are kept.
        certified: What is known of the backends' arithmetic, by name; see `quoting.py`.
        restarts: Starts the run's own server again, None without one.
        scheduler: The scheduler's settings, with what follows from the run's own server.
    """

    fleet: Fleet
    infos: dict[str, BackendInfo]
    instructions: Instructions
    journal: Journal
    scheduler: SchedulerConfig
    certified: dict[str, dict[str, Any]] = field(default_factory=dict)
    restarts: Restarts | None = None


async def start(
    config: InferenceConfig, rehearsal: Rehearsal, directory: RunDirectory, parts: Parts
) -> Started:
    """Start server, backends and journal; check that the scenario fits.

    Raises:
        ConfigError: Something does not fit, or a backend is not there.
    """
    instructions = Instructions(
        config.prompt_layout,
        structured=config.scheduler.structured_output,
        full_ids=config.actions.full_ids,
    )
    try:
        parts.server = await _start_server(config, rehearsal, directory)
        url, restarts = None, None
        if parts.server is not None:
            url, limit = parts.server.base_url, config.backend.max_restarts
            restarts = Restarts(parts.server, limit=limit, log=directory.log)
        fleet = muster(
            rehearsal,
            config.backend,
            managed_url=url,
            context=_context(config, rehearsal),
            slots=config.scheduler.slots,
            log=directory.log,
            restarts=restarts,
        )
        parts.backends.extend(fleet.backends.values())
        await check_fitness(rehearsal, fleet, instructions, config.scheduler.slots)
    except (AttemptError, BackendUnavailable, ServerError) as exc:
        raise FitnessError(str(exc)) from exc
    infos = {name: await backend.start() for name, backend in fleet.backends.items()}
    parts.journal = await _open_journal(config, directory)
    certified = quotes(infos, parts.server, config, directory.path)
    scheduler = with_prefix_copies(config, rehearsal, parts.server)
    return Started(fleet, infos, instructions, parts.journal, scheduler, certified, restarts)


async def _open_journal(config: InferenceConfig, directory: RunDirectory) -> Journal:
    path = config.journal.path
    journal = Journal(
        directory.path / JOURNAL if path == "auto" else Path(path),
        synchronous=config.journal.synchronous,
        on_error=config.journal.on_error,
        log=directory.log,
    )
    await journal.open()
    return journal


def _context(config: InferenceConfig, rehearsal: Rehearsal) -> int:
    context = config.backend.context_per_slot
    return estimated_context(rehearsal) if context == "auto" else context


async def _start_server(
    config: InferenceConfig, rehearsal: Rehearsal, directory: RunDirectory
) -> ManagedServer | None:
    if not config.backend.managed or not rehearsal.blocks:
        return None
    server = ManagedServer(
        server_spec(config, _context(config, rehearsal), rehearsal),
        log_path=directory.path / SERVER_LOG,
        start_timeout_s=config.backend.ready_timeout_s,
    )
    await server.start()
    directory.log.info("server.started", pid=server.pid, base_url=server.base_url)
    return server


def server_spec(
    config: InferenceConfig, context: int, rehearsal: Rehearsal | None = None
) -> ServerSpec:
    """Return what a managed server is to run.

    Args:
        config: The effective configuration, with `backend.managed`.
        context: Tokens per slot.
        rehearsal: The scenario that it is to serve, if there is one.

    Raises:
        ConfigError: No model is named.
    """
    backend = config.backend
    if backend.model_path is None:
        raise ConfigError("backend.managed needs backend.model_path, the GGUF file to serve")
    return ServerSpec(
        model_path=backend.model_path,
        slots=managed_slots(config, rehearsal, context),
        ctx_per_slot=context,
        threads=backend.threads or default_threads(),
        n_gpu_layers=backend.n_gpu_layers,
        profile=config.determinism.server_profile,
    )
