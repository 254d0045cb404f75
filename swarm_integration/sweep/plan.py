"""From a sweep's configuration to its runs, with everything checked that can be checked.

Nothing is started and nothing is written but the points' scenarios, into a directory that
only this process reads: they may hold API keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scheduler.errors import ConfigError
from swarm_integration.errors import ScenarioError
from swarm_integration.identity import asked_for, explained
from swarm_integration.run import RunOptions, make_reproducible
from swarm_integration.scenario import Rehearsal, load_scenario, rehearse
from swarm_integration.sweep.design import (
    PlannedRun,
    Point,
    SweepConfig,
    points_of,
    runs_of,
    twice_named,
)
from swarm_integration.sweep.file import read_yaml
from swarm_integration.sweep.folder import Folder
from swarm_integration.sweep.outcome import read_run
from swarm_integration.sweep.parameters import path_of, with_values
from swarm_integration.sweep.schema import check_parameters, check_points

_LENGTHS = {("simulation", "n_epochs"): "epochs", ("simulation", "steps_per_epoch"): "steps"}


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep is going to do.

    Attributes:
        config: What was asked for.
        runs: The runs, in the order in which they start.
        seeds: Of each point.
        scenarios: The file of each point, by its name.
        rehearsals: What is known of each point, by its name.
    """

    config: SweepConfig
    runs: tuple[PlannedRun, ...]
    seeds: tuple[int, ...]
    scenarios: Mapping[str, Path]
    rehearsals: Mapping[str, Rehearsal]

    def options(self, run: PlannedRun, folder: Folder, *, resume: bool) -> RunOptions:
        """Return what a run is started with."""
        return RunOptions(
            mode=self.config.mode,
            scenario=self.scenarios[run.point.name],
            config=self.config.inference,
            run_dir=folder.of(run),
            resume=resume,
            overrides=_overrides(self.config, run.seed),
            quiet=True,
        )

    def finished(self, run: PlannedRun, folder: Folder) -> bool:
        """Whether a run has been completed in an earlier attempt.

        Raises:
            ConfigError: It has, or has begun, but as another one than it would be now.
        """
        found = read_run(folder.of(run))
        completed: bool = found["state"] == "completed"
        before = found.get("identity")
        if completed or before is not None:
            _check_same(run, folder, before or {}, self._asked_for(run, folder))
        return completed

    def check_answerers(self, run: PlannedRun, folder: Folder, now: Mapping[str, Any]) -> None:
        """Check that a run that has begun was answered by what answers the others now.

        Args:
            run: A run, begun or not.
            folder: Where it would be.
            now: What answers its point (`identity.answerers`), whatever the seed.

        Raises:
            ConfigError: It was answered by something else.
        """
        before = read_run(folder.of(run)).get("identity")
        if before is not None:
            before = {key: before.get(key) for key in now}
            _check_same(run, folder, _without_base_seed(before), _without_base_seed(now))

    def _asked_for(self, run: PlannedRun, folder: Folder) -> dict[str, Any]:
        """Return what is known of a run's identity before its backends are up."""
        scenario = self.scenarios[run.point.name]
        options = self.options(run, folder, resume=True)
        loaded = load_scenario(scenario, options.overrides)
        reproducible = make_reproducible(options, loaded)
        return asked_for(
            scenario=scenario,
            epochs=loaded.orchestrator_config.n_epochs,
            steps_per_epoch=loaded.orchestrator_config.steps_per_epoch,
            seed=run.seed,
            mode=self.config.mode,
            config=self.config.inference,
            repairs=reproducible.repairs if reproducible else (),
        )


def _check_same(
    run: PlannedRun, folder: Folder, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    if told := explained(before, now):
        raise ConfigError(
            f"the sweep in {folder.runs} can't be resumed, since its run {run.name} was "
            f"another one: {told}. Put that back as it was, or start a new sweep with another "
            "--output"
        )


def _without_base_seed(answering: Mapping[str, Any]) -> dict[str, Any]:
    """Return what answers, less what follows from a run's own seed; as plain JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(answering))
    for agent in (plain.get("agents") or {}).values():
        agent.pop("base_seed", None)
    return plain


def plan_sweep(config: SweepConfig, scratch: Path, *, jobs: int) -> SweepPlan:
    """Check a sweep and return what it is going to do.

    Args:
        config: What was asked for.
        scratch: A directory of this process alone, for the points' scenarios.
        jobs: How many runs go on at a time.

    Raises:
        ConfigError: Something in it can't be run.
    """
    base = load_scenario(config.base_scenario)
    said = read_yaml(config.base_scenario)
    _check_alone(config, base, jobs)
    check_parameters(config.base_scenario, said, config.varied)
    points = points_of(config.varied)
    check_points(config.base_scenario, said, points)
    seeds = config.seeds_from(base.orchestrator_config.seed)
    runs = tuple(runs_of(points, seeds))
    for name in twice_named(runs):
        raise ConfigError(f"two runs would share the directory {name}. Give other values")
    scenarios = _written(config.base_scenario, said, points, scratch)
    rehearsals = {
        point.name: _rehearsed(scenarios[point.name], _overrides(config, seeds[0]), point)
        for point in points
    }
    return SweepPlan(config, runs, seeds, scenarios, rehearsals)


def _check_alone(config: SweepConfig, base: Any, jobs: int) -> None:
    """Check that no run meets another one outside of the scheduler."""
    if jobs < 1:
        raise ConfigError(f"--jobs must be 1 or more, got {jobs}")
    if base.orchestrator_config.graph_memory_path is not None:
        raise ConfigError(
            f"scenario {config.base_scenario}: outputs.graph_memory_path would hand memories from "
            "one run of the sweep to the next. Remove it"
        )
    if config.inference.journal.path != "auto":
        raise ConfigError(
            "journal.path names one file, but each run of a sweep has its own journal. Set it to "
            "auto, or leave it out"
        )
    if jobs > 1 and not config.inference.determinism.repair_simulation:
        raise ConfigError(
            "determinism.repair_simulation is false: the runs would draw from one source of random "
            "numbers, each disturbing the others. Use --jobs 1"
        )
    for parameter in config.varied:
        option = _LENGTHS.get(path_of(parameter.name)[:2])  # type: ignore[arg-type]  # a pair of keys
        if option is not None and getattr(config, option) is not None:
            raise ConfigError(
                f"parameter {parameter.name} varies what --{option} fixes. Remove --{option}"
            )


def _written(
    base: Path, said: Mapping[str, Any], points: Sequence[Point], scratch: Path
) -> dict[str, Path]:
    found = {}
    for point in points:
        if not point.values:
            found[point.name] = base
            continue
        path = found[point.name] = scratch / f"{point.name}.yaml"
        text = yaml.safe_dump(with_values(said, point.values), sort_keys=False, allow_unicode=True)
        path.write_text(text, encoding="utf-8")
    return found


def _rehearsed(path: Path, overrides: Mapping[str, int | None], point: Point) -> Rehearsal:
    try:
        return rehearse(path, overrides)
    except ScenarioError as exc:
        why = str(exc).replace(f"scenario {path} ", "its scenario ")
        raise ConfigError(f"the point {point} can't be run: {why}") from exc


def _overrides(config: SweepConfig, seed: int) -> dict[str, int | None]:
    return {"seed": seed, "n_epochs": config.epochs, "steps_per_epoch": config.steps}
