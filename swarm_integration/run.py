"""One run under the scheduler, from its options to its manifest.

`open_run` checks everything and starts the backends before the simulation is
built; `Run.drive` then stands for upstream's `Orchestrator.run`. Both use one
event loop, which lives as long as the run.
"""

from __future__ import annotations

import asyncio
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scheduler.backends.base import Backend
from scheduler.engine import Scheduler
from scheduler.errors import AttemptError, BackendUnavailable, SchedulerError, ServerError
from scheduler.server import ManagedServer, ServerSpec
from scheduler.types import Completion
from swarm_integration import summary
from swarm_integration.agents import LlmAgents
from swarm_integration.compat import Simulation, swarm_version
from swarm_integration.config import InferenceConfig
from swarm_integration.driver import Driver, Mode
from swarm_integration.errors import FitnessError
from swarm_integration.fitness import check_fitness, estimated_context
from swarm_integration.idle import SimulationLoop
from swarm_integration.rounds import Rounds
from swarm_integration.rundir import RunDirectory, default_run_dir
from swarm_integration.scenario import Rehearsal, load_scenario, rehearse
from swarm_integration.schemas import Instructions
from swarm_integration.services import Fleet, muster, without_login

DEFAULT_MANAGED_SLOTS = 4


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line asked for.

    Attributes:
        mode: `batch` or `serial`.
        scenario: The scenario's file.
        config: The effective configuration.
        run_dir: Where to write, or None for a fresh directory under `runs/`.
        overrides: `seed`, `n_epochs` and `steps_per_epoch`, None where not given.
    """

    mode: Mode
    scenario: Path
    config: InferenceConfig
    run_dir: Path | None = None
    overrides: dict[str, int | None] = field(default_factory=dict)


class Run:
    """A run whose backends are up; made by `open_run`.

    Args:
        options: What was asked for.
        directory: Where it writes.
        fleet: The backends and whom they serve.
        runner: The event loop of the run.
    """

    def __init__(
        self, options: RunOptions, directory: RunDirectory, fleet: Fleet, runner: asyncio.Runner
    ) -> None:
        self._options = options
        self._fleet = fleet
        self._runner = runner
        self._summary = ""
        self.directory = directory

    @property
    def summary(self) -> str:
        """The inference summary, once the simulation has ended."""
        return self._summary

    def attach(self, orchestrator: Any) -> Any:
        """Let this run stand for the orchestrator's own `run`, and return it."""
        orchestrator.run = lambda: self.drive(orchestrator)
        return orchestrator

    def drive(self, orchestrator: Any) -> list[Any]:
        """Run the simulation and return the epochs' metrics.

        Raises:
            SchedulerError: The run was aborted; the manifest says why.
        """
        return self._runner.run(self._drive(Simulation(orchestrator)))

    async def _drive(self, simulation: Simulation) -> list[Any]:
        config = self._options.config
        directory = self.directory
        started = time.monotonic()
        async with Scheduler(
            self._fleet.backends, config.scheduler, log=directory.log
        ) as scheduler:
            rounds = Rounds(scheduler)
            instructions = Instructions(
                config.prompt_layout, structured=config.scheduler.structured_output
            )
            agents = LlmAgents(self._fleet.services, rounds, simulation.state, instructions)
            driver = Driver(
                simulation,
                self._options.mode,
                rounds,
                agents,
                on_phase=self._record,
                on_step=lambda epoch, step: directory.log.info(
                    "step.started", epoch=epoch, step=step
                ),
            )
            directory.log.info("run.started", mode=self._options.mode)
            try:
                return await driver.run()
            finally:
                wall_s = time.monotonic() - started
                self._sum_up(scheduler, rounds, wall_s)

    def _record(self, kind: str, completions: Sequence[Completion]) -> None:
        self.directory.record(completions)
        if self._options.config.logging.prompts:
            for completion in completions:
                request = completion.request
                self.directory.log.info(
                    "request.content",
                    agent_id=request.agent_id,
                    epoch=request.epoch,
                    step=request.step,
                    kind=kind,
                    messages=[[message.role, message.content] for message in request.messages],
                    answers=[answer.text for answer in completion.answers],
                )

    def _sum_up(self, scheduler: Scheduler, rounds: Rounds, wall_s: float) -> None:
        stats = scheduler.stats.summary()
        slots = {name: lane.slots for name, lane in scheduler.lanes.items()}
        batches = sum(lane.batches for lane in scheduler.lanes.values())
        self._summary = summary.render(
            stats, batches=batches, rounds=rounds.played, wall_s=wall_s, slots=slots
        )
        totals = {**stats, "batches": batches, "rounds": rounds.played, "wall_s": round(wall_s, 3)}
        self.directory.update_manifest(inference=totals)
        self.directory.log.info("run.summary", **totals)


@contextmanager
def open_run(options: RunOptions) -> Iterator[Run]:
    """Check everything, start the backends, and give them back afterwards.

    Raises:
        ConfigError: Something can't be run; nothing of the simulation has started.
        BackendUnavailable: A backend is not there.
    """
    scenario = load_scenario(options.scenario, options.overrides)
    rehearsal = rehearse(options.scenario, options.overrides)
    path = options.run_dir or default_run_dir(scenario.scenario_id, rehearsal.seed)
    with (
        RunDirectory(path) as directory,
        asyncio.Runner(loop_factory=SimulationLoop) as runner,
        _recorded_end(directory),
    ):
        directory.update_manifest(state="starting", **_identity(options, scenario, rehearsal))
        parts = _Parts()
        try:
            fleet = runner.run(_get_ready(options, rehearsal, directory, parts))
            yield Run(options, directory, fleet, runner)
        finally:
            runner.run(parts.aclose())


@contextmanager
def _recorded_end(directory: RunDirectory) -> Iterator[None]:
    """Write into manifest and log how the run ended."""
    state, reason = "completed", None
    try:
        yield
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    except SchedulerError as exc:
        state, reason = "aborted", str(exc)
        raise
    except BaseException as exc:
        state, reason = "failed", f"{type(exc).__name__}: {exc}"
        raise
    finally:
        directory.update_manifest(
            state=state,
            reason=reason,
            trace_hash=directory.trace_hash,
            transcript_lines=directory.questions,
        )
        directory.log.info("run.ended", state=state, reason=reason, trace_hash=directory.trace_hash)


@dataclass(slots=True)
class _Parts:
    """What a run has started and must give back."""

    backends: list[Backend] = field(default_factory=list)
    server: ManagedServer | None = None

    async def aclose(self) -> None:
        for backend in self.backends:
            await backend.aclose()
        if self.server is not None:
            await self.server.stop()


async def _get_ready(
    options: RunOptions, rehearsal: Rehearsal, directory: RunDirectory, parts: _Parts
) -> Fleet:
    """Start the backends and check that they fit; what has started is in `parts`.

    Raises:
        ConfigError: Something does not fit, or a backend is not there.
    """
    try:
        parts.server = await _start_server(options.config, rehearsal, directory)
        url = parts.server.base_url if parts.server else None
        fleet = muster(rehearsal, options.config.backend, managed_url=url)
        parts.backends.extend(fleet.backends.values())
        await check_fitness(
            rehearsal,
            fleet,
            Instructions(options.config.prompt_layout),
            options.config.scheduler.slots,
        )
    except (AttemptError, BackendUnavailable, ServerError) as exc:
        raise FitnessError(str(exc)) from exc
    directory.update_manifest(state="running", backends=await _facts(fleet))
    return fleet


async def _start_server(
    config: InferenceConfig, rehearsal: Rehearsal, directory: RunDirectory
) -> ManagedServer | None:
    backend = config.backend
    if not backend.managed or backend.model_path is None or not rehearsal.blocks:
        return None
    slots = config.scheduler.slots
    context = backend.context_per_slot
    if context == "auto":
        services = muster(rehearsal, backend, managed_url="http://127.0.0.1/v1").services
        context = estimated_context(rehearsal, services)
    spec = ServerSpec(
        model_path=backend.model_path,
        slots=DEFAULT_MANAGED_SLOTS if slots == "auto" else slots,
        ctx_per_slot=context,
        threads=backend.threads,
        n_gpu_layers=backend.n_gpu_layers,
    )
    server = ManagedServer(
        spec, log_path=directory.path / "server.log", start_timeout_s=backend.ready_timeout_s
    )
    await server.start()
    directory.log.info("server.started", pid=server.pid, base_url=server.base_url)
    directory.update_manifest(server={"flags": server.command[1:]})
    return server


async def _facts(fleet: Fleet) -> dict[str, Any]:
    facts = {}
    for name, backend in fleet.backends.items():
        info = await backend.start()
        facts[name] = {
            "kind": info.kind,
            "model": info.model,
            "build": info.build,
            "slots": info.slots,
            "context_per_slot": info.context_per_slot,
            **info.facts,
        }
    return facts


def _written_configuration(config: InferenceConfig) -> dict[str, Any]:
    data = config.model_dump(mode="json")
    data["backend"]["base_url"] = without_login(config.backend.base_url)
    return data


def _identity(options: RunOptions, scenario: Any, rehearsal: Rehearsal) -> dict[str, Any]:
    orchestrator = scenario.orchestrator_config
    return {
        "versions": {
            "swarm-inference-scheduler": version("swarm-inference-scheduler"),
            "swarm-safety": swarm_version(),
            "python": platform.python_version(),
        },
        "platform": {"system": platform.system(), "machine": platform.machine()},
        "command": sys.argv[1:],
        "scenario": {
            "file": options.scenario.name,
            "id": scenario.scenario_id,
            "sha256": sha256(options.scenario.read_bytes()).hexdigest(),
            "epochs": orchestrator.n_epochs,
            "steps_per_epoch": orchestrator.steps_per_epoch,
        },
        "seed": rehearsal.seed,
        "mode": options.mode,
        "llm_agents": sorted(rehearsal.blocks),
        "configuration": _written_configuration(options.config),
        "determinism": {
            "simulation": "not repaired: SWARM draws random ids and reads the clock",
            "requests": "seeded from what they are, in the order of the agents",
            "backend": "not certified",
        },
    }
