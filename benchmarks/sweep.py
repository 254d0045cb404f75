"""What it brings to run several seeds at a time: `swarm sweep --jobs K` against one by one.

    python benchmarks/sweep.py --seeds 42-57 --jobs 8 --rounds 3 --backend fake
    python benchmarks/sweep.py --backend in-process --model models/bench-Q4_K_M.gguf --slots 4
    python benchmarks/sweep.py --backend managed --model models/bench-Q4_K_M.gguf --slots 4

Every way runs the same seeds of the same scenario, in turns, on backends that are up and
have their model loaded; what is timed is from the first run's start to the last one's end.
All ways with the same order of moves must give the same trace hashes: exit code 1 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swarm_integration.config import InferenceConfig
from swarm_integration.driver import Mode
from swarm_integration.files import project_file
from swarm_integration.sweep import SweepConfig, SweepResults, SweepRunner
from swarm_integration.sweep.design import parse_seeds

MODES: tuple[Mode, ...] = ("batch", "serial")


def inference_of(args: argparse.Namespace) -> InferenceConfig:
    """Return the configuration of a backend whose arithmetic is invariant."""
    slots = args.slots
    backends: dict[str, dict[str, Any]] = {
        "fake": {"kind": "fake", "fake": {"slots": slots, "latency_s": args.latency_s}},
        "in-process": {"kind": "llama_inproc", "engine": "batched"},
        "managed": {"kind": "llama_server", "managed": True},
    }
    backend = backends[args.backend]
    if args.backend != "fake":
        backend |= {"model_path": str(args.model), "threads": args.threads}
    sections = {
        "scheduler": {"slots": slots, "max_batch": args.max_batch},
        "backend": backend,
        "determinism": {"server_profile": "invariant"},
    }
    return InferenceConfig.model_validate(sections)


def run_once(args: argparse.Namespace, mode: Mode, jobs: int) -> tuple[float, SweepResults]:
    """Return the seconds that all seeds took, and what they brought."""
    config = SweepConfig(
        args.scenario or project_file("scenarios/llm_batch_12.yaml"),
        seeds=parse_seeds(args.seeds),
        epochs=args.epochs,
        steps=args.steps,
        mode=mode,
        inference=inference_of(args),
    )
    began: list[float] = []

    def note(_number: int, _total: int, _values: Mapping[str, Any]) -> None:
        began.append(time.monotonic())

    with tempfile.TemporaryDirectory(prefix="sweep-benchmark-") as folder:
        runner = SweepRunner(config, Path(folder) / "r.csv", jobs=jobs, plot=False)
        results = runner.run(note)
        return time.monotonic() - began[0], results


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return seconds of each way and round, ratios of medians, and the trace hashes' agreement."""
    seconds: dict[tuple[Mode, int], list[float]] = {}
    hashes: dict[Mode, set[tuple[str, ...]]] = {mode: set() for mode in MODES}
    completed, questions = True, dict.fromkeys(MODES, 0)
    for number in range(args.rounds):
        ways = [(mode, jobs) for mode in MODES for jobs in (1, args.jobs)]
        for mode, jobs in ways if number % 2 == 0 else reversed(ways):
            took_s, results = run_once(args, mode, jobs)
            seconds.setdefault((mode, jobs), []).append(took_s)
            completed &= results.completed
            hashes[mode].add(tuple(str(one.found.get("trace_hash")) for one in results.runs))
            questions[mode] = sum(int(one.found.get("questions") or 0) for one in results.runs)
            print(f"{mode}, jobs {jobs}: {took_s:.2f} s", file=sys.stderr)
    medians = {way: statistics.median(samples) for way, samples in seconds.items()}
    return {
        "machine": f"{os.cpu_count()} {platform.machine()} cores",
        "backend": args.backend,
        "slots": args.slots,
        "jobs": args.jobs,
        "seeds": args.seeds,
        "rounds": args.rounds,
        "seconds": {f"{mode} x{jobs}": samples for (mode, jobs), samples in seconds.items()},
        "requests_per_min": {
            f"{mode} x{jobs}": round(60 * questions[mode] / median, 1)
            for (mode, jobs), median in medians.items()
        },
        "ratios": {mode: round(medians[mode, 1] / medians[mode, args.jobs], 3) for mode in MODES},
        "serial_at_once_to_batch_alone": round(
            (questions["serial"] / medians["serial", args.jobs])
            / (questions["batch"] / medians["batch", 1]),
            3,
        ),
        "completed": completed,
        "same_hashes": {mode: len(found) == 1 for mode, found in hashes.items()},
    }


def shown(found: Mapping[str, Any]) -> str:
    """Return a table."""
    lines = [
        f"{found['backend']}, {found['slots']} slots, seeds {found['seeds']}, {found['machine']}",
        f"{'way':<14}{'median s':>10}{'requests/min':>14}",
    ]
    for way, samples in found["seconds"].items():
        rate = found["requests_per_min"][way]
        lines.append(f"{way:<14}{statistics.median(samples):>10.2f}{rate:>14.1f}")
    for mode, ratio in found["ratios"].items():
        same = "equal" if found["same_hashes"][mode] else "DIFFERENT"
        lines.append(
            f"{mode}: {found['jobs']} at a time is {ratio:.2f} times as fast; hashes {same}"
        )
    lines.append(
        f"serial, {found['jobs']} at a time, against batch, one by one: "
        f"{found['serial_at_once_to_batch_alone']:.2f} times the requests a minute"
    )
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", default="42-57")
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", choices=["fake", "in-process", "managed"], default="fake")
    parser.add_argument("--model", type=Path, default=Path("models/demo.gguf"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--latency-s", type=float, default=0.05, help="of the fake, at most")
    parser.add_argument("--scenario", type=Path)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args)
    print(json.dumps(found) if args.json else shown(found))
    return 0 if found["completed"] and all(found["same_hashes"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
