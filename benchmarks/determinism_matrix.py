"""Runs the same scenarios with the same seed in many ways; wants one trace hash for each.

    python benchmarks/determinism_matrix.py [--quick] [--at-once 2] [--json] [SCENARIO...]

Each cell is a fresh process on the fake backend, with the re-start for PYTHONHASHSEED
switched off: hash seeds 0, 1 and random; 1, 4 and 16 slots; delays, which come between the
steps and shuffle the order of completion; faults that are retried. Two further processes
run without the repair of the simulation: where these agree, equal cells prove nothing.
Exit code 1 when a scenario has more than one trace hash or set of metrics.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SCENARIOS = (
    ROOT / "scenarios/llm_batch_12.yaml",
    *sorted((ROOT / "tests/swarm/reproducible").glob("*.yaml")),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One way to run.

    Attributes:
        hash_seed: PYTHONHASHSEED.
        slots: Slots of the backend.
        latency_s: Longest delay of an answer, in seconds; each answer draws its own.
        fault_rate: Share of attempts that fail and are tried again.
        repaired: Whether the simulation is made reproducible.
    """

    hash_seed: str
    slots: int = 4
    latency_s: float = 0.0
    fault_rate: float = 0.0
    repaired: bool = True


CELLS = (
    Cell("0"),
    Cell("1"),
    Cell("random"),
    Cell("random", slots=1),
    Cell("random", slots=16),
    Cell("0", latency_s=0.02),
    Cell("1", latency_s=0.05, slots=16),
    Cell("random", fault_rate=0.3),
    Cell("random", latency_s=0.02, slots=16, fault_rate=0.3),
    Cell("random", latency_s=0.02, slots=1, fault_rate=0.3),
)
QUICK = (
    Cell("0", slots=1),
    Cell("1", latency_s=0.01, slots=16),
    Cell("random", latency_s=0.005, fault_rate=0.3),
)
CONTROLS = (Cell("0", repaired=False), Cell("1", repaired=False))


def run_cell(cell: Cell, scenarios: Sequence[Path]) -> dict[str, list[str]]:
    """Run all scenarios in a fresh process; return trace hash and metrics' sha256 of each."""
    environment = {
        **os.environ,
        "PYTHONHASHSEED": cell.hash_seed,
        "SWARM_INFERENCE_KEEP_HASH_SEED": "1",
    }
    configuration = {
        "scheduler": {"retry_base_s": 0.001},
        "backend": {
            "kind": "fake",
            "fake": {
                "slots": cell.slots,
                "latency_s": cell.latency_s,
                "fault_rate": cell.fault_rate,
            },
        },
        "determinism": {"repair_simulation": cell.repaired},
    }
    with tempfile.TemporaryDirectory(prefix="matrix-") as name:
        config = Path(name) / "config.yaml"
        config.write_text(json.dumps(configuration), encoding="utf-8")
        words = [sys.executable, "-W", "ignore", __file__, "--child", name]
        done = subprocess.run(
            [*words, *(str(path.resolve()) for path in scenarios)],
            env=environment,
            cwd=name,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"{cell} failed: {done.stderr}")
        return {path.stem: _outcome(Path(name) / path.stem) for path in scenarios}


def _outcome(run: Path) -> list[str]:
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    metrics = sha256((run / "metrics.json").read_bytes()).hexdigest()
    return [manifest["trace_hash"], metrics]


def child(directory: Path, scenarios: Sequence[str]) -> int:
    """Run the scenarios one after the other in this process; return the exit code."""
    from swarm_integration import cli  # noqa: PLC0415 # seconds that only children need

    common = ["--inference-scheduler", "batch", "--quiet", "--seed", "42"]
    for scenario in scenarios:
        run_dir = str(directory / Path(scenario).stem)
        config = str(directory / "config.yaml")
        where = ["--run-dir", run_dir, "--inference-config", config]
        code = cli.main(["run", scenario, *common, *where])
        if code != 0:
            return code
    return 0


def measure(scenarios: Sequence[Path], *, quick: bool, at_once: int) -> dict[str, Any]:
    """Run all cells and return what was found."""
    cells = QUICK if quick else CELLS
    controls = () if quick else CONTROLS
    with ThreadPoolExecutor(at_once) as pool:
        outcomes = list(pool.map(lambda cell: run_cell(cell, scenarios), [*cells, *controls]))
    found = []
    for name in (path.stem for path in scenarios):
        hashes = [outcome[name] for outcome in outcomes]
        repaired, plain = hashes[: len(cells)], hashes[len(cells) :]
        found.append(
            {
                "scenario": name,
                "trace_hashes": sorted({trace for trace, _ in repaired}),
                "metrics": sorted({metrics for _, metrics in repaired}),
                "control_differs": plain[0] != plain[1] if plain else None,
                "equal": len({tuple(one) for one in repaired}) == 1,
            }
        )
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cells": [
            f"PYTHONHASHSEED={cell.hash_seed} slots={cell.slots} latency_s={cell.latency_s:g} "
            f"fault_rate={cell.fault_rate:g}"
            for cell in cells
        ],
        "scenarios": found,
        "equal": all(one["equal"] and one["control_differs"] is not False for one in found),
    }


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", type=Path, default=list(SCENARIOS))
    parser.add_argument("--quick", action="store_true", help="three cells, without the controls")
    parser.add_argument("--at-once", type=int, default=2, help="processes at once")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        return child(options.child, [str(path) for path in options.scenarios])
    found = measure(options.scenarios, quick=options.quick, at_once=options.at_once)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print("{cores} cores, {machine}, Python {python}".format(**found))
        print(f"{len(found['cells'])} cells, each a fresh process:")
        for cell in found["cells"]:
            print(f"  {cell}")
        words = {True: "yes", False: "NO", None: "not run"}
        print(f"{'scenario':26} {'trace hashes':>12} {'metrics':>8} {'unrepaired differ':>18}")
        for one in found["scenarios"]:
            counts = f"{len(one['trace_hashes']):12} {len(one['metrics']):8}"
            print(f"{one['scenario']:26} {counts} {words[one['control_differs']]:>18}")
        print("one trace hash and one set of metrics each" if found["equal"] else "DIFFERENT")
    return 0 if found["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
