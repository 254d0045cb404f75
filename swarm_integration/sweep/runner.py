"""Runs a sweep: K runs at a time on one set of backends, each in its own directory.

The main thread has the event loop of the inference; each run has a thread and a loop of
its own (see `shared.py`). A run that fails is noted and the others go on.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scheduler.errors import RunEndingError, SchedulerError
from scheduler.observe import EventLog, open_run_log
from swarm_integration.interrupts import RunInterrupted, ended_by_ctrl_c
from swarm_integration.monitoring import Endpoint, metrics_endpoint
from swarm_integration.run import open_run
from swarm_integration.scenario import load_scenario
from swarm_integration.sweep.common import common_of
from swarm_integration.sweep.design import PlannedRun, SweepConfig
from swarm_integration.sweep.folder import Folder, check_covers, folder_of, write_whole
from swarm_integration.sweep.manifest import finished_manifest, keep_inputs, started_manifest
from swarm_integration.sweep.outcome import outcome_of, write_outcome
from swarm_integration.sweep.plan import SweepPlan, plan_sweep
from swarm_integration.sweep.plot import png_of
from swarm_integration.sweep.results import SweepResults, collect
from swarm_integration.sweep.shared import Shared, SharedPlace
from swarm_integration.sweep.status import SweepStatus
from swarm_integration.sweep.threads import all_of, in_thread

ProgressCallback = Callable[[int, int, Mapping[str, Any]], None]
"""Called when a run starts, with its number (from 1), the number of runs, and its values."""


class SweepRunner:
    """Runs a sweep.

    Args:
        config: What is to be run.
        output: A file that ends in `.csv`, or a folder.
        jobs: How many runs go on at a time.
        resume: Go on with the sweep at `output`: what is finished is not run again.
        quiet: Show nothing while it runs.
        plot: Draw a picture, if matplotlib is installed.

    Raises:
        ConfigError: `output` is neither a file that ends in `.csv` nor a folder.
    """

    def __init__(
        self,
        config: SweepConfig,
        output: Path | str = "results/",
        *,
        jobs: int = 1,
        resume: bool = False,
        quiet: bool = True,
        plot: bool = True,
    ) -> None:
        self.config = config
        self.folder: Folder = folder_of(
            Path(output), config.name, is_folder=str(output).endswith(("/", "\\"))
        )
        self._jobs = jobs
        self._resume = resume
        self._quiet = quiet
        self._plot = plot
        self._ending: RunEndingError | None = None
        self._places: dict[str, SharedPlace] = {}
        self._errors: dict[str, str] = {}
        self._status = SweepStatus()

    def run(self, progress_callback: ProgressCallback | None = None) -> SweepResults:
        """Run what is not finished, and write and return the results of all runs.

        Runs that fail are in the results with their state; they raise nothing. Ctrl-C ends
        the sweep so that it can be resumed.

        Raises:
            ConfigError: Something can't be run; nothing has been started.
        """
        with tempfile.TemporaryDirectory(prefix="sweep-") as scratch:
            plan = plan_sweep(self.config, Path(scratch), jobs=self._jobs)
            self.folder.check(resume=self._resume)
            if self._resume:
                check_covers(self.folder.earlier() or {}, plan.runs, self.folder)
            todo = [run for run in plan.runs if not plan.finished(run, self.folder)]
            self._status.begin(len(plan.runs), finished=len(plan.runs) - len(todo))
            with ExitStack() as stack:
                manifest = started_manifest(plan, self._jobs)
                self.folder.make(manifest)
                log_file = stack.enter_context(self.folder.log_alone())
                try:
                    log = open_run_log(log_file, sweep=self.config.name)
                    self._play(plan, todo, log, progress_callback)
                except SchedulerError:
                    self._undo_begin(plan)
                    raise
                return self._end(plan)

    def _undo_begin(self, plan: SweepPlan) -> None:
        """Leave nothing where nothing has been run."""
        if not self._resume and not any(self.folder.of(run).exists() for run in plan.runs):
            shutil.rmtree(self.folder.runs, ignore_errors=True)

    def _begin(self, plan: SweepPlan) -> None:
        """Say what the sweep is from here on: its backends are up, and its runs start."""
        self.folder.write_manifest(started_manifest(plan, self._jobs))
        keep_inputs(plan, self.folder)
        self.folder.picture.unlink(missing_ok=True)  # of fewer runs

    def _end(self, plan: SweepPlan) -> SweepResults:
        results = collect(
            self.config.name,
            self.folder,
            plan.runs,
            errors=self._errors,
            interrupted=self._ending is not None,
        )
        results.to_csv()
        results.summary_to_csv()
        picture = png_of(results) if self._plot else None
        if picture is not None:
            write_whole(self.folder.picture, picture)
        begun = self.folder.earlier() or {}
        self.folder.write_manifest({**begun, **finished_manifest(results)})
        return results

    def _play(
        self,
        plan: SweepPlan,
        todo: Sequence[PlannedRun],
        log: EventLog,
        callback: ProgressCallback | None,
    ) -> None:
        if not todo:
            return
        with ExitStack() as stack:
            port = self.config.inference.metrics.port
            endpoint = stack.enter_context(metrics_endpoint(port, quiet=self._quiet))
            stack.enter_context(self._status.shown(quiet=self._quiet))
            try:
                with asyncio.Runner() as runner:
                    runner.run(self._play_all(plan, todo, log, endpoint, callback))
            except KeyboardInterrupt:
                self._ending = self._ending or RunInterrupted("the sweep was interrupted")

    async def _play_all(
        self,
        plan: SweepPlan,
        todo: Sequence[PlannedRun],
        log: EventLog,
        endpoint: Endpoint,
        callback: ProgressCallback | None,
    ) -> None:
        loop, waiting, total = asyncio.get_running_loop(), iter(todo), len(plan.runs)
        first = total - len(todo)

        async def work() -> None:
            for run in waiting:
                if self._ending is not None:
                    return
                if callback is not None:
                    callback(first + todo.index(run) + 1, total, run.point.values)
                place = self._places[run.name] = SharedPlace(shared)
                try:
                    await in_thread(
                        lambda run=run, place=place: self._run(plan, run, place),  # type: ignore[misc]
                        name=run.name,
                        stop=place.stop,
                    )
                finally:
                    del self._places[run.name]

        async with common_of(plan, self.folder, log) as common:
            self._begin(plan)
            shared = Shared(loop, common, endpoint)
            self._status.lanes = shared.lanes
            watching = asyncio.create_task(shared.lanes.watch())
            try:
                with ended_by_ctrl_c(self):
                    workers = [asyncio.create_task(work()) for _ in range(min(self._jobs, total))]
                    await all_of(workers)
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)

    @property
    def in_flight(self) -> int:
        """How many requests hold a slot now."""
        return sum(place.in_flight for place in self._places.values())

    def end(self, error: RunEndingError) -> None:
        """Start nothing more and end the runs with `error`; what is in flight is kept."""
        self._ending = error
        for place in self._places.values():
            place.end(error)

    def _run(self, plan: SweepPlan, run: PlannedRun, place: SharedPlace) -> None:
        """One run from its start to its end, on a thread of its own."""
        from swarm.scenarios.loader import build_orchestrator

        directory = self.folder.of(run)
        options = plan.options(run, self.folder, resume=directory.exists())
        ended = self._status.started(run.name, place)
        try:
            with open_run(options, place) as opened:
                ended.watch(opened)
                scenario = load_scenario(options.scenario, options.overrides)
                orchestrator = opened.build(scenario, build_orchestrator)
                try:
                    orchestrator.run()
                except asyncio.CancelledError as exc:
                    raise KeyboardInterrupt from exc
                write_outcome(directory, outcome_of(orchestrator))
        except KeyboardInterrupt:
            ended("interrupted")
        except Exception as exc:  # noqa: BLE001 - the other runs go on, whatever ends this one
            self._errors[run.name] = str(exc) or type(exc).__name__
            ended("failed", exc)
        else:
            ended("completed")
