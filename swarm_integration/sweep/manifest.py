"""What a sweep's manifest says, and the files from which the sweep can be repeated."""

from __future__ import annotations

import sys
from typing import Any

import yaml

from swarm_integration.identity import scenario_sha256, versions
from swarm_integration.keyless import without_secrets
from swarm_integration.manifest import platform_facts, written_configuration
from swarm_integration.rundir import CONFIGURATION, file_sha256
from swarm_integration.sweep.design import SweepConfig
from swarm_integration.sweep.folder import BASE, SWEEP_FILE, Folder, write_whole
from swarm_integration.sweep.plan import SweepPlan
from swarm_integration.sweep.results import SweepResults


def keep_inputs(plan: SweepPlan, folder: Folder) -> None:
    """Write the scenario, the sweep and the configuration, from which all can be repeated.

    API keys and what logs in anywhere are left out.
    """
    config = plan.config
    scenario = without_secrets(config.base_scenario.read_text(encoding="utf-8"))
    sweep = {
        "name": config.name,
        "base_scenario": BASE,
        "sweep": {
            "parameters": [{"name": one.name, "values": list(one.values)} for one in config.varied],
            "seeds": list(plan.seeds),
        },
    }
    configuration = written_configuration(config.inference)
    for name, text in (
        (BASE, scenario),
        (SWEEP_FILE, f"# {_again(config)}\n{_yaml(sweep)}"),
        (CONFIGURATION, _yaml(configuration)),
    ):
        write_whole(folder.runs / name, text.encode())


def _again(config: SweepConfig) -> str:
    """Return the command that repeats the sweep, typed where its kept files are."""
    words = ["swarm", "sweep", SWEEP_FILE, "--inference-config", CONFIGURATION]
    words += ["--inference-scheduler", config.mode]
    for option, value in (("--epochs", config.epochs), ("--steps", config.steps)):
        words += [] if value is None else [option, str(value)]
    return " ".join([*words, "--output", "again/"])


def _yaml(data: dict[str, Any]) -> str:
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def started_manifest(plan: SweepPlan, jobs: int) -> dict[str, Any]:
    """Return what is known before the first run."""
    config = plan.config
    return {
        "state": "running",
        "name": config.name,
        "command": sys.argv[1:],
        "versions": versions(),
        "platform": platform_facts(),
        "base_scenario": {
            "file": config.base_scenario.name,
            "sha256": file_sha256(config.base_scenario),
            "content_sha256": scenario_sha256(config.base_scenario),
        },
        "parameters": [{"name": one.name, "values": list(one.values)} for one in config.varied],
        "seeds": list(plan.seeds),
        "mode": config.mode,
        "epochs": config.epochs,
        "steps": config.steps,
        "jobs": jobs,
        "configuration": written_configuration(config.inference),
        "runs": [
            {"run": run.name, "values": dict(run.point.values), "seed": run.seed}
            for run in plan.runs
        ],
    }


def finished_manifest(results: SweepResults) -> dict[str, Any]:
    """Return what is known at the end."""
    state = "completed" if results.completed else "incomplete"
    return {
        "state": "interrupted" if results.interrupted and not results.completed else state,
        "runs": [
            {
                "run": one.run.name,
                "values": dict(one.run.point.values),
                "seed": one.run.seed,
                "state": one.state,
                "reason": one.found.get("reason"),
                "trace_hash": one.found.get("trace_hash"),
            }
            for one in results.runs
        ],
    }
