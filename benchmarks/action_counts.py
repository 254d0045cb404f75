"""What becomes of the LLM agents' actions, with whole ids and without.

    python benchmarks/action_counts.py [--config configs/fake.yaml] [--scenario FILE]
        [--seed 42] [--mode batch] [--json]

Runs the scenario twice on the same backend, with `actions.full_ids` on and off, and prints
for each action how many were chosen and how many took place. Counts, not speed: they may be
taken on a busy machine. With `--config configs/managed_server.yaml` a real llama-server
answers; its model is made by `swarm-inference make-model`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from swarm_integration import cli

ROOT = Path(__file__).parent.parent


def counts(options: argparse.Namespace, folder: Path, *, full_ids: bool) -> dict[str, Any]:
    """Run the scenario and return its counts of actions and its interactions."""
    settings = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    settings["actions"] = {"full_ids": full_ids}
    config = folder / f"full_ids_{full_ids}.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    run_dir = folder / f"run_{full_ids}"
    arguments = ["run", str(options.scenario), "--seed", str(options.seed), "--quiet"]
    arguments += ["--inference-scheduler", options.mode, "--inference-config", str(config)]
    code = cli.main([*arguments, "--run-dir", str(run_dir)])
    if code:
        raise SystemExit(code)
    manifest = json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))
    epochs = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = manifest["actions"]
    found["interactions"] = sum(epoch["total_interactions"] for epoch in epochs)
    return found


def main() -> None:
    """Run both and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", type=Path, default=ROOT / "scenarios/llm_batch_12.yaml")
    parser.add_argument("--config", type=Path, default=ROOT / "configs/fake.yaml")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--mode", choices=["batch", "serial"], default="batch")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: counts(options, Path(folder), full_ids=full_ids)
            for name, full_ids in (("with", True), ("without", False))
        }
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name, run in found.items():
        print(f"{name} whole ids: executed of chosen (lost to an earlier move)")
        for action, count in run["by_action"].items():
            lost = sum(count["lost"].values())
            print(
                f"  {action.lower():<20} {count['executed']:>4} of {count['chosen']:>4}  ({lost})"
            )
        print(f"  {'interactions':<20} {run['interactions']:>4}")


if __name__ == "__main__":
    main()
