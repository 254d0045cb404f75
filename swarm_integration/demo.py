"""`swarm-inference demo`: one batched SWARM run on a real llama-server, from nothing.

It writes the demo model, lets a run start and stop its own server, and calls the
`swarm` command as a user would.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler.gguf_models import ensure_model
from swarm_integration import cli
from swarm_integration.files import project_file
from swarm_integration.rundir import MANIFEST, default_run_dir

SCENARIO = "scenarios/llm_batch_12.yaml"
CONFIG = "configs/managed_server.yaml"
MODEL = Path("models/demo.gguf")

ABOUT_MODEL = """\
About the model: models/demo.gguf has the real llama architecture, a trained tokenizer
and RANDOM weights. A JSON schema holds its answers to valid actions, so it shows how
prompts are batched and answered; what it says means nothing. For a model that thinks,
get one (for example Llama-3.2-3B-Instruct-Q4_K_M.gguf), then, in the environment that
this was installed into (./scripts/demo.sh makes .venv: type `. .venv/bin/activate`):

  swarm-inference serve --model models/Llama-3.2-3B-Instruct-Q4_K_M.gguf --slots 4
  swarm run scenarios/llm_batch_12.yaml --seed 42 --inference-scheduler batch \\
      --inference-config configs/llama_server.yaml

About the trace hash: it is the sha256 of every question and answer of the run. Run the
demo again on this machine, with any --slots: it is the same, since the simulation is
drawn from its seed and the server is started with settings under which an answer does
not depend on what shares its batch. Another processor or build may give another one."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the demo may be told: slots, seed, where to write, and how to report."""

    slots: int = 4
    seed: int = 42
    run_dir: Path | None = None
    as_json: bool = False


def demo(options: DemoOptions) -> int:
    """Run the demo in the current directory; return its exit code."""
    run_dir = options.run_dir or default_run_dir("demo", options.seed)
    with redirect_stdout(sys.stderr if options.as_json else sys.stdout):
        code = _run(options, run_dir)
        if code == 0:
            print(f"\n{ABOUT_MODEL}")
    if options.as_json and code == 0:
        print(json.dumps(_facts(run_dir)))
    return code


def _run(options: DemoOptions, run_dir: Path) -> int:
    MODEL.parent.mkdir(exist_ok=True)
    facts = ensure_model(MODEL, "demo")
    print(f"Demo model: {MODEL} ({facts.bytes / 1e6:.1f} MB, sha256 {facts.sha256[:16]}...)")
    print(f"Machine:    {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs\n")
    arguments = ["run", str(project_file(SCENARIO)), "--seed", str(options.seed)]
    arguments += ["--inference-scheduler", "batch", "--slots", str(options.slots)]
    arguments += ["--inference-config", str(project_file(CONFIG)), "--run-dir", str(run_dir)]
    print("$ swarm " + " ".join(arguments) + "\n", flush=True)
    return cli.main(arguments)


def _facts(run_dir: Path) -> dict[str, Any]:
    manifest = json.loads((run_dir / MANIFEST).read_text(encoding="utf-8"))
    keys = ("trace_hash", "inference", "actions", "backends", "state")
    return {**{key: manifest[key] for key in keys}, "run_dir": str(run_dir)}
