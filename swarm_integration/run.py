"""One run under the scheduler, from its options to its manifest.

`open_run` checks everything and starts the backends before the simulation is
built; `Run.build` then builds it and lets `Run.drive` stand for upstream's
`Orchestrator.run`. Both use one event loop, which lives as long as the run; its
inference may be in another place, which it shares with other runs (`place.py`).
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scheduler.engine import Scheduler
from scheduler.types import Completion
from swarm_integration import actions, compat, manifest, quoting, summary
from swarm_integration.agents import LlmAgents
from swarm_integration.compat import Simulation
from swarm_integration.config import InferenceConfig
from swarm_integration.driver import Driver, Mode
from swarm_integration.files import room_for
from swarm_integration.fitness import crowded
from swarm_integration.identity import asked_for, check_same
from swarm_integration.idle import SimulationLoop
from swarm_integration.interrupts import RunInterrupted, ended_by_ctrl_c
from swarm_integration.live import watching
from swarm_integration.monitoring import NO_ENDPOINT, Endpoint, metrics_endpoint
from swarm_integration.outputs import Outputs
from swarm_integration.place import OwnPlace, Place
from swarm_integration.progress import Progress
from swarm_integration.reproducible import Reproducible
from swarm_integration.rounds import Rounds
from swarm_integration.run_journal import check_kept
from swarm_integration.rundir import (
    RunDirectory,
    default_run_dir,
    read_manifest,
    recorded_end,
)
from swarm_integration.scenario import load_scenario, rehearse
from swarm_integration.startup import Parts, Started, start
from swarm_integration.unread import note_of, unread_keys

_SEEDS = 2**31


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line asked for.

    Attributes:
        mode: `batch` or `serial`.
        scenario: The scenario's file.
        config: The effective configuration.
        run_dir: Where to write, or None for a fresh directory under `runs/`.
        resume: Go on in `run_dir`.
        overrides: `seed`, `n_epochs` and `steps_per_epoch`, None where not given.
        quiet: Show nothing while it runs.
    """

    mode: Mode
    scenario: Path
    config: InferenceConfig
    run_dir: Path | None = None
    resume: bool = False
    overrides: dict[str, int | None] = field(default_factory=dict)
    quiet: bool = False


class Run:
    """A run whose backends are up; made by `open_run`.

    Args:
        options: What was asked for; the seed is set.
        scenario: Upstream's `ScenarioConfig` as the file has it.
        directory: Where it writes.
        started: What it works with.
        outputs: What SWARM writes.
        reproducible: The repairs, or None when they are off.
        runner: The event loop of the run.
        endpoint: Where its metrics are shown.
        place: Where its inference happens; on its own loop if not given.
    """

    def __init__(
        self,
        options: RunOptions,
        scenario: Any,
        directory: RunDirectory,
        started: Started,
        outputs: Outputs,
        reproducible: Reproducible | None,
        runner: asyncio.Runner,
        endpoint: Endpoint = NO_ENDPOINT,
        place: Place | None = None,
    ) -> None:
        self._options = options
        self._scenario = scenario
        self._started = started
        self._reproducible = reproducible
        self._runner = runner
        self._endpoint = endpoint
        self._place = OwnPlace(runner) if place is None else place
        self._progress: Progress | None = None
        self.summary = ""
        self.directory = directory
        self.outputs = outputs

    @property
    def seed(self) -> int | None:
        """The run's seed."""
        return self._options.overrides["seed"]

    @property
    def progress(self) -> Progress | None:
        """How far it is; None before its first step."""
        return self._progress

    def build(self, scenario: Any, build_orchestrator: Callable[[Any], Any]) -> Any:
        """Build an orchestrator whose `run` is this run."""
        event_log = self._scenario.orchestrator_config.log_path is not None
        self.outputs.redirect_scenario(scenario, event_log=event_log)
        if self._reproducible is not None:
            self._reproducible.prepare_scenario(scenario)
        orchestrator = build_orchestrator(scenario)
        if self._reproducible is not None:
            self._reproducible.prepare(orchestrator)
        agents = orchestrator.get_all_agents()
        inner = [llm for agent in agents for llm in compat.llm_agents_of(agent)]
        self.outputs.redirect_agents(inner)
        orchestrator.run = lambda: self.drive(orchestrator)
        return orchestrator

    def drive(self, orchestrator: Any) -> list[Any]:
        """Run the simulation and return the epochs' metrics.

        Raises:
            SchedulerError: The run was aborted; the manifest says why.
            KeyboardInterrupt: The user has ended it.
        """
        # A runner keeps the context of its first call, which was before the repairs.
        work = self._drive(Simulation(orchestrator))
        try:
            return self._runner.run(work, context=copy_context())
        except RunInterrupted as exc:
            raise KeyboardInterrupt from exc

    async def _drive(self, simulation: Simulation) -> list[Any]:
        started = time.monotonic()
        async with self._place.scheduler(
            self._started, self._options.config.scheduler, self.directory.log
        ) as seat:
            scheduler = seat.scheduler
            self._endpoint.watch(scheduler)
            rounds = Rounds(seat.asker)
            llm_agents = LlmAgents(
                self._started.fleet.services, rounds, simulation.state, self._started.instructions
            )
            driver = Driver(
                simulation,
                self._options.mode,
                rounds,
                llm_agents,
                on_phase=self._record,
                on_step=self._begin_step,
            )
            slots = {name: lane.slots for name, lane in scheduler.lanes.items()}
            self.directory.log.info("run.started", mode=self._options.mode, slots=slots)
            self._progress = Progress(
                scheduler,
                epochs=simulation.config.n_epochs,
                steps_per_epoch=simulation.config.steps_per_epoch,
                rounds_known=self._options.mode == "batch",
            )
            try:
                with (
                    watching(self._progress, quiet=self._options.quiet),
                    ended_by_ctrl_c(scheduler),
                    room_for(self.directory.path),
                ):
                    metrics = await driver.run()
            finally:
                counts = driver.actions.summary()
                self._sum_up(scheduler, rounds, counts, time.monotonic() - started)
                self.directory.update_manifest(prompts=llm_agents.prompts)
        self.directory.write_metrics([one.to_dict() for one in metrics])
        return metrics

    def _begin_step(self, epoch: int, step: int) -> None:
        if self._reproducible is not None:
            self._reproducible.set_time(epoch, step)
        if self._progress is not None:
            self._progress.begin_step(epoch, step)
        self.directory.log.info("step.started", epoch=epoch, step=step)

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

    def _sum_up(
        self, scheduler: Scheduler, rounds: Rounds, counts: dict[str, Any], wall_s: float
    ) -> None:
        journal = self._started.journal
        self.directory.holds_answers = journal.stored + journal.recalled > 0
        slots = {name: lane.slots for name, lane in scheduler.lanes.items()}
        totals = {
            **scheduler.stats.summary(),
            "batches": sum(lane.batches_of(scheduler) for lane in scheduler.lanes.values()),
            "rounds": rounds.played,
            "server_restarts": self._started.restarts.count if self._started.restarts else 0,
            "wall_s": round(wall_s, 3),
        }
        inference = summary.render(
            totals,
            slots=slots,
            determinism=quoting.line(self._started.certified),
            journal_broken=journal.broken,
        )
        self.summary = "\n\n".join(filter(None, [inference, actions.render(counts)]))
        refused = {
            # Only `OpenAIBackend` has this; its module is not imported for a question.
            name: refused
            for name, backend in self._started.fleet.backends.items()
            if (refused := getattr(backend, "refused", None))
        }
        self.directory.update_manifest(
            inference=totals,
            actions=counts,
            journal={"broken": journal.broken},
            refused_parameters=refused,
        )
        self.directory.log.info("run.summary", **totals)


@contextmanager
def open_run(options: RunOptions, place: Place | None = None) -> Iterator[Run]:
    """Check everything, start the backends, and give them back afterwards.

    Args:
        options: What was asked for.
        place: Where the inference happens; on the run's own loop if not given.

    Raises:
        ConfigError: Something can't be run; nothing of the simulation has started.
    """
    scenario = load_scenario(options.scenario, options.overrides)
    options = _with_seed(options, scenario)
    path = options.run_dir or default_run_dir(scenario.scenario_id, options.overrides["seed"])
    with (
        _endpoint_of(options, place) as endpoint,
        _directory_of(options, path) as directory,
        recorded_end(directory, hint=place is None),
    ):
        directory.log = endpoint.listening(directory.log)
        parts = Parts()
        with asyncio.Runner(loop_factory=SimulationLoop) as runner:
            there = OwnPlace(runner) if place is None else place
            try:
                yield from _opened(options, scenario, directory, parts, runner, endpoint, there)
            finally:
                there.run(parts.aclose())


@contextmanager
def _directory_of(options: RunOptions, path: Path) -> Iterator[RunDirectory]:
    directory = RunDirectory(path, resume=options.resume)
    try:
        with directory:
            yield directory
    finally:
        if options.run_dir is None:  # nobody asked for this one
            directory.remove_unbegun()


def _endpoint_of(options: RunOptions, place: Place | None) -> AbstractContextManager[Endpoint]:
    if place is not None and place.endpoint is not None:
        return nullcontext(place.endpoint)
    return metrics_endpoint(options.config.metrics.port, quiet=options.quiet)


def _opened(
    options: RunOptions,
    scenario: Any,
    directory: RunDirectory,
    parts: Parts,
    runner: asyncio.Runner,
    endpoint: Endpoint,
    place: Place,
) -> Iterator[Run]:
    config = options.config
    rehearsal = rehearse(options.scenario, options.overrides)
    # Of runs that share a process, none may change how the others' scenarios are read.
    unread = unread_keys(options.scenario) if place.common is None else []
    memory = scenario.orchestrator_config.graph_memory_path
    outputs = Outputs(
        directory.path, None if memory is None else Path(memory), earlier=directory.earlier
    )
    directory.update_manifest(state="starting", **manifest.facts(options, scenario))
    reproducible = make_reproducible(options, scenario)
    known = asked_for(
        scenario=options.scenario,
        epochs=scenario.orchestrator_config.n_epochs,
        steps_per_epoch=scenario.orchestrator_config.steps_per_epoch,
        seed=rehearsal.seed,
        mode=options.mode,
        config=config,
        repairs=reproducible.repairs if reproducible else (),
    )
    now = {**known, "memory_sha256": outputs.memory_sha256}
    before = None if directory.earlier is None else directory.earlier.get("identity")
    check_same(before, now, directory.path)

    def check(answering: Mapping[str, Any]) -> None:
        check_same(before, {**now, **answering}, directory.path)

    started = place.run(start(config, rehearsal, directory, parts, place.common, check=check))
    check_kept(directory.path, directory.earlier, started.journal)
    if not options.quiet:
        for note in (*note_of(options.scenario, unread), *crowded(started.infos.values())):
            print(note, file=sys.stderr)  # noqa: T201  # before the run, not after it
    directory.begin()
    outputs.begin()
    copies = directory.copy_inputs(options.scenario, manifest.written_configuration(config))
    directory.update_manifest(
        state="running",
        identity={**now, **started.answering},
        copies=copies,
        brought_out=outputs.brought_out,
        unread_keys=unread,
        **manifest.facts(options, scenario),
        **manifest.started_facts(started, reproducible),
        agents=manifest.agent_facts(rehearsal),
    )
    with reproducible.active() if reproducible else nullcontext():
        yield Run(
            options, scenario, directory, started, outputs, reproducible, runner, endpoint, place
        )
    outputs.finish()
    directory.update_manifest(brought_out=outputs.brought_out)


def make_reproducible(options: RunOptions, scenario: Any) -> Reproducible | None:
    """Return the repairs that the options ask for, told of the scenario, or None."""
    settings = options.config.determinism
    seed = options.overrides["seed"]
    if not settings.repair_simulation or seed is None:
        return None
    reproducible = Reproducible(seed, seconds_per_step=settings.seconds_per_step)
    reproducible.prepare_scenario(scenario)
    return reproducible


def _with_seed(options: RunOptions, scenario: Any) -> RunOptions:
    """Return the options with a seed: the scenario's, the earlier attempt's, or a new one."""
    seed = scenario.orchestrator_config.seed
    if seed is None and options.resume and options.run_dir is not None:
        seed = read_manifest(options.run_dir).get("seed")
    if seed is None:
        seed = secrets.randbelow(_SEEDS)
    scenario.orchestrator_config.seed = seed
    return replace(options, overrides={**options.overrides, "seed": seed})
