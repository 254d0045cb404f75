"""Runs the same scenario with the same seed in many ways, each in a fresh process.

What `swarm-inference certify --run` and `benchmarks/determinism_matrix.py` do: hash seeds
without the re-start that fixes them, numbers of slots and, where the backend is the fake
one, delays and faults. One trace hash and one set of metrics is what all of them must give.
The children run in a directory of their own, so that what a scenario writes goes nowhere else.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import cycle
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

from scheduler.errors import ConfigError, SchedulerError
from scheduler.yaml_text import load_yaml
from swarm_integration.config import InferenceConfig
from swarm_integration.ending import EXIT_BAD_INPUT
from swarm_integration.hashseed import SWITCH_OFF
from swarm_integration.rundir import MANIFEST, METRICS
from swarm_integration.scenario import load_scenario

HASH_SEEDS = ("0", "1", "random")
SLOTS = (1, 4, 16)


@dataclass(frozen=True, slots=True)
class Cell:
    """One way to run.

    Attributes:
        hash_seed: PYTHONHASHSEED.
        slots: Requests at once; None leaves them to the configuration.
        latency_s: Longest delay of the fake backend's answers, in seconds.
        fault_rate: Share of the fake backend's attempts that fail and are tried again.
        repaired: Whether the simulation is made reproducible.
    """

    hash_seed: str
    slots: int | None = None
    latency_s: float = 0.0
    fault_rate: float = 0.0
    repaired: bool = True

    def __str__(self) -> str:
        slots = "as configured" if self.slots is None else self.slots
        return (
            f"PYTHONHASHSEED={self.hash_seed} slots={slots} latency_s={self.latency_s:g} "
            f"fault_rate={self.fault_rate:g}"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run, and how.

    Attributes:
        scenarios: Their files.
        config: The configuration of every cell, but for what the cell says.
        cells: The ways that must agree.
        controls: Ways without the repair, which show whether agreeing means anything.
        controls_must_differ: Whether controls that agree are a failure. A real model may be asked
            nothing that the repair changes, and then they agree.
        options: Further words for `swarm run`.
        at_once: Processes at once.
    """

    scenarios: Sequence[Path]
    config: InferenceConfig
    cells: Sequence[Cell]
    controls: Sequence[Cell] = ()
    controls_must_differ: bool = True
    options: Sequence[str] = field(default=("--seed", "42"))
    at_once: int = 1


def fake_cells(slots: Sequence[int] = SLOTS, *, quick: bool = False) -> tuple[Cell, ...]:
    """Return cells over hash seeds, slots, delays (which shuffle completion) and faults."""
    few, middle, many = min(slots), sorted(slots)[len(slots) // 2], max(slots)
    if quick:
        return (
            Cell("0", few),
            Cell("1", many, latency_s=0.01),
            Cell("random", middle, latency_s=0.005, fault_rate=0.3),
        )
    return (
        *(Cell(hash_seed, middle) for hash_seed in HASH_SEEDS),
        *(Cell("random", count) for count in slots if count != middle),
        Cell("0", middle, latency_s=0.02),
        Cell("1", many, latency_s=0.05),
        Cell("random", middle, fault_rate=0.3),
        Cell("random", many, latency_s=0.02, fault_rate=0.3),
        Cell("random", few, latency_s=0.02, fault_rate=0.3),
    )


def model_cells(slots: Sequence[int], *, quick: bool = False) -> tuple[Cell, ...]:
    """Return cells for a real model: every hash seed with every number of slots.

    Quick: each hash seed and each number of slots at least once.
    """
    counts: Sequence[int | None] = slots or (None,)
    if quick:
        longer = max(len(HASH_SEEDS), len(counts))
        pairs = zip(cycle(HASH_SEEDS), cycle(counts), range(longer), strict=False)
        return tuple(Cell(hash_seed, count) for hash_seed, count, _ in pairs)
    return tuple(Cell(hash_seed, count) for count in counts for hash_seed in HASH_SEEDS)


def measure(plan: Plan) -> dict[str, Any]:
    """Run all cells and return what was found.

    Raises:
        ConfigError: A cell can't be run, or a scenario would write outside of its directory.
        SchedulerError: A cell's run was aborted.
    """
    for path in plan.scenarios:
        _check_outputs(path)
    cells = [*plan.cells, *plan.controls]
    with ThreadPoolExecutor(plan.at_once) as pool:
        outcomes = list(pool.map(lambda cell: _run_cell(cell, plan), cells))
    scenarios = [
        _compared(path.stem, plan, [outcome[n] for outcome in outcomes])
        for n, path in enumerate(plan.scenarios)
    ]
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cells": [str(cell) for cell in plan.cells],
        "scenarios": scenarios,
        "equal": all(one["equal"] for one in scenarios)
        and not (
            plan.controls_must_differ and any(one["control_differs"] is False for one in scenarios)
        ),
    }


def _compared(name: str, plan: Plan, outcomes: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    repaired, plain = outcomes[: len(plan.cells)], outcomes[len(plan.cells) :]
    return {
        "scenario": name,
        "runs": [
            {**asdict(cell), **outcome} for cell, outcome in zip(plan.cells, repaired, strict=True)
        ],
        "trace_hashes": sorted({one["trace_hash"] for one in repaired}),
        "metrics": sorted({one["metrics"] for one in repaired}),
        "control_differs": len({one["trace_hash"] for one in plain}) > 1 if plain else None,
        "equal": len({(one["trace_hash"], one["metrics"]) for one in repaired}) == 1,
    }


def _run_cell(cell: Cell, plan: Plan) -> list[dict[str, str]]:
    """Run all scenarios in a fresh process; return the outcome of each."""
    environment = {**os.environ, "PYTHONHASHSEED": cell.hash_seed, SWITCH_OFF: "1"}
    with TemporaryDirectory(prefix="matrix-") as name:
        folder = Path(name)
        config = folder / "config.yaml"
        config.write_text(json.dumps(_configuration(cell, plan.config)), encoding="utf-8")
        copies = [_copied(path, folder, n) for n, path in enumerate(plan.scenarios)]
        words = [sys.executable, "-P", "-W", "ignore", "-m", "swarm_integration.matrix"]
        done = subprocess.run(  # noqa: S603  # our own words, and no shell
            [*words, name, json.dumps([*plan.options]), *map(str, copies)],
            env=environment,
            cwd=name,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = _complaint_in(done.stderr) or f"exit code {done.returncode}"
            kind = ConfigError if done.returncode == EXIT_BAD_INPUT else SchedulerError
            raise kind(f"the cell {cell} could not be run: {said}")
        return [_outcome(folder / f"run-{n}") for n in range(len(copies))]


def _complaint_in(errors: str) -> str:
    """Return what a child complained of last, in one line; see `complaint.py`."""
    _, _, last = errors.strip().rpartition("error: ")
    parts = [line.strip().removeprefix("why:").removeprefix("type:") for line in last.splitlines()]
    return "; ".join(part.strip() for part in parts)


def _configuration(cell: Cell, config: InferenceConfig) -> dict[str, Any]:
    """Return the configuration of a cell, with files named as seen from anywhere."""
    data = config.model_dump(mode="json")
    backend = data["backend"]
    if cell.slots is not None:
        data["scheduler"]["slots"] = backend["fake"]["slots"] = cell.slots
    if cell.latency_s or cell.fault_rate:
        backend["fake"] |= {"latency_s": cell.latency_s, "fault_rate": cell.fault_rate}
    data["determinism"]["repair_simulation"] = cell.repaired
    data["journal"]["path"] = "auto"
    for name in ("model_path", "api_key_file"):
        path = getattr(config.backend, name)
        if path is not None:
            backend[name] = str(path.absolute())
    return data


def _copied(path: Path, folder: Path, number: int) -> Path:
    """Return a copy of a scenario whose models are found from `folder`."""
    data = load_yaml(path.read_text(encoding="utf-8"))
    copy = folder / f"scenario-{number}" / path.name
    copy.parent.mkdir()
    if absolute := _with_absolute_models(data):
        copy.write_text(json.dumps(absolute, default=str), encoding="utf-8")
    else:
        copyfile(path, copy)
    memory = load_scenario(path).orchestrator_config.graph_memory_path
    if memory is not None and Path(memory).is_file():
        target = folder / memory
        target.parent.mkdir(parents=True, exist_ok=True)
        copyfile(memory, target)
    return copy


def _with_absolute_models(data: Any) -> Any:
    """Return `data` with each relative `model_path` that exists made absolute; None if none is."""
    changed = False

    def walk(value: Any) -> Any:
        nonlocal changed
        if isinstance(value, list):
            return [walk(one) for one in value]
        if not isinstance(value, dict):
            return value
        result = {key: walk(one) for key, one in value.items()}
        path = value.get("model_path")
        if isinstance(path, str) and not Path(path).is_absolute() and Path(path).is_file():
            changed = True
            result["model_path"] = str(Path(path).absolute())
        return result

    result = walk(data)
    return result if changed else None


def _check_outputs(path: Path) -> None:
    """Refuse a scenario whose runs would change what the next one begins with.

    Raises:
        ConfigError: Its graph memory is not below the current directory.
    """
    memory = load_scenario(path).orchestrator_config.graph_memory_path
    if memory is not None and (Path(memory).is_absolute() or ".." in Path(memory).parts):
        raise ConfigError(
            f"scenario {path} keeps its graph memory in {memory}, which each run would change for "
            "the next one; give it a path below the current directory"
        )


def _outcome(run: Path) -> dict[str, str]:
    manifest = json.loads((run / MANIFEST).read_text(encoding="utf-8"))
    return {
        "trace_hash": manifest["trace_hash"],
        "metrics": sha256((run / METRICS).read_bytes()).hexdigest(),
        "backend": ", ".join(
            f"{name} ({quote['level']})"
            for name, quote in manifest["determinism"]["backend"].items()
        ),
    }


def _child(arguments: Sequence[str]) -> int:
    """Run the scenarios one after the other in this process; return the exit code."""
    from swarm_integration import cli

    folder, options, *scenarios = arguments
    common = ["--inference-scheduler", "batch", "--quiet", *json.loads(options)]
    for number, scenario in enumerate(scenarios):
        run_dir, config = f"{folder}/run-{number}", f"{folder}/config.yaml"
        where = ["--run-dir", run_dir, "--inference-config", config]
        code = cli.main(["run", scenario, *common, *where])
        if code != 0:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1:]))
