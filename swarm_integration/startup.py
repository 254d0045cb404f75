"""Starting what a run needs, and checking that it fits, before the first step.

What has been started is in `Parts` at every moment, so that it is given back
whatever goes wrong on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scheduler.backends.base import Backend, BackendInfo
from scheduler.config import SchedulerConfig
from scheduler.errors import AttemptError, BackendUnavailable, ConfigError, ServerError
from scheduler.journal import Journal
from scheduler.observe import EventLog
from scheduler.restarts import Restarts
from scheduler.server import ManagedServer, ServerSpec
from scheduler.server_command import default_threads
from swarm_integration.config import InferenceConfig
from swarm_integration.errors import FitnessError
from swarm_integration.fitness import check_fitness, estimated_context
from swarm_integration.identity import answerers
from swarm_integration.managed import managed_slots, prompt_prefixes, with_prefix_copies
from swarm_integration.providers import Endpoint
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
        server: The run's own server, or None.
        answering: The part of the run's identity that follows from all this.
    """

    fleet: Fleet
    infos: dict[str, BackendInfo]
    instructions: Instructions
    journal: Journal
    scheduler: SchedulerConfig
    certified: dict[str, dict[str, Any]] = field(default_factory=dict)
    restarts: Restarts | None = None
    server: ManagedServer | None = None
    answering: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Common:
    """What several runs share, or one has to itself.

    Attributes:
        context: Tokens per slot, where this project decides it.
        server: The server that was started, or None.
        restarts: Starts it again, None without one.
        backends: Those that were made, by the place of their model.
    """

    context: int
    server: ManagedServer | None = None
    restarts: Restarts | None = None
    backends: dict[Endpoint, Backend] = field(default_factory=dict)


async def start(
    config: InferenceConfig,
    rehearsal: Rehearsal,
    directory: RunDirectory,
    parts: Parts,
    common: Common | None = None,
    *,
    check: Callable[[Mapping[str, Any]], None],
) -> Started:
    """Start server, backends and journal; check that the scenario fits.

    Args:
        config: The effective configuration.
        rehearsal: The scenario's LLM agents.
        directory: Where the run writes.
        parts: Is told of what the run must give back.
        common: What others have started and this run shares with them; they give it back.
        check: Is told what answers (`identity.answerers`) before the journal is opened, and
            raises where that will not do.

    Raises:
        ConfigError: Something does not fit, or a backend is not there.
    """
    instructions = Instructions(
        config.prompt_layout,
        structured=config.scheduler.structured_output,
        full_ids=config.actions.full_ids,
    )
    alone = common is None
    if common is None:
        common = await start_common(config, [rehearsal], directory.path, directory.log, parts)
    try:
        fleet = muster(
            rehearsal,
            config.backend,
            managed_url=common.server.base_url if common.server else None,
            context=common.context,
            slots=config.scheduler.slots,
            log=directory.log,
            restarts=common.restarts,
            made=common.backends,
        )
        shared = [] if alone else list(common.backends.values())
        parts.backends.extend(one for one in fleet.backends.values() if one not in shared)
        await check_fitness(
            rehearsal, fleet, instructions, config.scheduler.slots, managed=config.backend.managed
        )
    except (AttemptError, BackendUnavailable, ServerError) as exc:
        raise FitnessError(str(exc)) from exc
    infos = {name: await backend.start() for name, backend in fleet.backends.items()}
    answering = answerers(config, fleet.services, infos, common.server)
    check(answering)
    parts.journal = await _open_journal(config, directory)
    certified = quotes(infos, common.server, config, directory.path)
    scheduler = with_prefix_copies(config, rehearsal, common.server)
    return Started(
        fleet,
        infos,
        instructions,
        parts.journal,
        scheduler,
        certified,
        common.restarts,
        common.server,
        answering,
    )


async def start_common(
    config: InferenceConfig,
    rehearsals: Sequence[Rehearsal],
    directory: Path,
    log: EventLog,
    parts: Parts,
) -> Common:
    """Start the server, if one is wanted, with room for the prompts of all scenarios.

    Backends are made by the first run that needs them; whoever calls this gives back all
    that is in the result.

    Raises:
        FitnessError: The server does not start.
    """
    context = max((_context(config, one) for one in rehearsals), default=0)
    if not config.backend.managed or not any(one.blocks for one in rehearsals):
        return Common(context)
    parts.server = ManagedServer(
        server_spec(config, context, max(rehearsals, key=prompt_prefixes)),
        log_path=directory / SERVER_LOG,
        start_timeout_s=config.backend.ready_timeout_s,
    )
    try:
        await parts.server.start()
    except ServerError as exc:
        raise FitnessError(str(exc)) from exc
    log.info("server.started", pid=parts.server.pid, base_url=parts.server.base_url)
    restarts = Restarts(parts.server, limit=config.backend.max_restarts, log=log)
    return Common(context, parts.server, restarts)


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
    return estimated_context(rehearsal, config.prompt_layout) if context == "auto" else context


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
