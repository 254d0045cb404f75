"""Runs the same scenarios with the same seed in many ways; wants one trace hash for each.

    python benchmarks/determinism_matrix.py [--quick] [--at-once 2] [--json] [SCENARIO...]
    python benchmarks/determinism_matrix.py --in-process [--slots 1,4] [SCENARIO...]

Each cell is a fresh process, with the re-start for PYTHONHASHSEED switched off. On the fake
backend: hash seeds 0, 1 and random; 1, 4 and 16 slots; delays, which come between the steps
and shuffle the order of completion; faults that are retried. With `--in-process` a real GGUF
model (random weights, written for it) answers on llama.cpp in each of the processes: hash
seeds and slots. Two further processes run without the repair of the simulation: where these
agree, equal cells prove nothing. Exit code 1 when a scenario has more than one trace hash or
set of metrics. What it runs is in `swarm_integration/matrix.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scheduler.gguf_models import ensure_model
from swarm_integration.config import InferenceConfig
from swarm_integration.matrix import Cell, Plan, fake_cells, measure, model_cells

ROOT = Path(__file__).parent.parent
SCENARIOS = (
    ROOT / "scenarios/llm_batch_12.yaml",
    *sorted((ROOT / "tests/swarm/reproducible").glob("*.yaml")),
)
CONTROLS = (Cell("0", repaired=False), Cell("1", repaired=False))


def fake_plan(options: argparse.Namespace) -> Plan:
    """Return the cells on the fake backend."""
    config = {"scheduler": {"retry_base_s": 0.001}, "backend": {"kind": "fake"}}
    return Plan(
        options.scenarios,
        InferenceConfig.model_validate(config),
        fake_cells(quick=options.quick),
        () if options.quick else CONTROLS,
        at_once=options.at_once,
    )


def in_process_plan(options: argparse.Namespace, model: Path) -> Plan:
    """Return the cells on a model in each process, on one thread: that many are there."""
    backend = {"kind": "llama_inproc", "model_path": str(model), "threads": 1}
    slots = [int(count) for count in options.slots.split(",")]
    return Plan(
        options.scenarios,
        InferenceConfig.model_validate({"backend": backend}),
        model_cells(slots, quick=options.quick),
        () if options.quick else CONTROLS,
        controls_must_differ=False,
        at_once=options.at_once,
    )


def show(found: Mapping[str, Any]) -> None:
    """Print what was found."""
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


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", type=Path, default=list(SCENARIOS))
    parser.add_argument("--quick", action="store_true", help="three cells, without the controls")
    parser.add_argument("--at-once", type=int, default=2, help="processes at once")
    parser.add_argument("--in-process", action="store_true", help="a real model in each process")
    parser.add_argument("--slots", default="1,4,16", help="with --in-process (default: 1,4,16)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="matrix-model-") as folder:
        if options.in_process:
            plan = in_process_plan(options, ensure_model(Path(folder) / "demo.gguf", "demo").path)
        else:
            plan = fake_plan(options)
        found = measure(plan)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    return 0 if found["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
