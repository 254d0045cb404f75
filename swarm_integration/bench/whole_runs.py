"""Whole runs of one scenario: upstream's `swarm run` on a llama-server against ours.

From the start of the command to its end, on a server that runs already, as both are used. All
answers are free text of one length, which upstream could not hold to a schema: on a model with
random weights every agent then does nothing, in all runs alike, and is asked in every step.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from scheduler.errors import SchedulerError
from scheduler.server import ManagedServer
from swarm_integration.bench.options import WorkloadOptions
from swarm_integration.bench.servers import our_flags, plain_flags, running
from swarm_integration.bench.tables import Table
from swarm_integration.bench.workload import SEED, scenario_of
from swarm_integration.config import InferenceConfig
from swarm_integration.fitness import estimated_context
from swarm_integration.report.units import NONE
from swarm_integration.rundir import MANIFEST
from swarm_integration.scenario import rehearse
from swarm_integration.startup import server_spec

OUTPUT_TOKENS = 64
"""Tokens of each answer where the options give no number."""

Command = Literal["upstream", "server", "inproc"]

COMMANDS: Mapping[Command, str] = {
    "upstream": "swarm run, upstream's, on a server",
    "server": "swarm run --inference-scheduler batch, on a server",
    "inproc": "swarm run --inference-scheduler batch, in process",
}


@dataclass(frozen=True, slots=True)
class WholeRun:
    """One run: its wall time, how many requests it made, and how many tokens were written."""

    seconds: float
    requests: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class WholeRuns:
    """All runs, by number of agents and command, round after round."""

    steps: int
    runs: dict[int, dict[Command, list[WholeRun]]]


def time_whole_runs(
    options: WorkloadOptions, model: Path, threads: int, folder: Path, tell: Callable[[str], None]
) -> WholeRuns:
    """Run the scenario with each command in turns.

    Args:
        options: Agents, steps, rounds, slots and tokens.
        model: The GGUF file.
        threads: CPU threads of the model.
        folder: Where the runs write.
        tell: Is told of each run.

    Raises:
        SchedulerError: A run failed.
    """
    runs: dict[int, dict[Command, list[WholeRun]]] = {}
    commands = [each for each in COMMANDS if each != "inproc" or set(options.ways) & set("fg")]
    for agents in options.agents:
        runs[agents] = {command: [] for command in commands}
        for number in range(1, options.rounds + 1):
            for command in commands:
                place = folder / f"whole-{agents}-{number}-{command}"
                run = _Run(command, agents, options, model, threads, place).timed()
                runs[agents][command].append(run)
                tell(
                    f"round {number} of {options.rounds}, {agents} agents: {COMMANDS[command]}: "
                    f"{run.seconds:.1f} s, {run.requests} requests"
                )
    return WholeRuns(options.steps, runs)


def whole_table(found: WholeRuns) -> Table:
    """Return the table of the whole runs."""
    head = ("command", "agents", "requests", "tokens out", "seconds", "requests/min", "times (a)")
    body = []
    for agents, by_command in found.runs.items():
        base = by_command["upstream"]
        for command, runs in by_command.items():
            ratio = statistics.median(
                _per_minute(ours) / _per_minute(theirs)
                for ours, theirs in zip(runs, base, strict=True)
            )
            body.append(
                (
                    COMMANDS[command],
                    str(agents),
                    str(runs[-1].requests),
                    f"{runs[-1].output_tokens:,}",
                    f"{statistics.median(run.seconds for run in runs):.1f}",
                    f"{statistics.median(map(_per_minute, runs)):.1f}",
                    NONE if command == "upstream" else f"{ratio:.2f}",
                )
            )
    return Table(f"Whole runs of {found.steps} steps, start of the command included", head,
                 tuple(body))  # fmt: skip


def _per_minute(run: WholeRun) -> float:
    return 60 * run.requests / run.seconds


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of one command in a folder of its own."""

    command: Command
    agents: int
    options: WorkloadOptions
    model: Path
    threads: int
    folder: Path

    def timed(self) -> WholeRun:
        """Run it, with a server beside it where it needs one."""
        self.folder.mkdir()
        context = self._write_scenario("http://127.0.0.1:8080/v1")
        if self.command == "inproc":
            return self._ours({"kind": "llama_inproc", "model_path": str(self.model),
                               "engine": "batched", "threads": self.threads})  # fmt: skip
        backend = {"kind": "llama_server", "managed": True, "model_path": str(self.model)}
        config = {"backend": {**backend, "threads": self.threads}, "scheduler": self._scheduler}
        spec = server_spec(InferenceConfig.model_validate(config), context)
        flags = plain_flags if self.command == "upstream" else our_flags
        server = ManagedServer(spec, log_path=self.folder / "server.log", flags=flags)
        with running(server, self.folder) as view:
            view.warm_up()
            if self.command == "server":
                return self._ours({"kind": "llama_server", "base_url": server.base_url})
            self._write_scenario(server.base_url)
            before = view.counters()[1]
            words = ["-m", "swarm", "run", "scenario.yaml", "--seed", str(SEED)]
            seconds = self._seconds([*words, "--prompt-audit", "audit.jsonl"])
            with (self.folder / "audit.jsonl").open(encoding="utf-8") as audit:
                # What can't be read as an action is told a second time, as an error.
                kinds = [json.loads(line)["kind"] for line in audit]
            requests = sum(not kind.endswith("_error") for kind in kinds)
            return WholeRun(seconds, requests, view.counters()[1] - before)

    def _write_scenario(self, base_url: str) -> int:
        """Write the scenario; return the tokens that a slot must hold."""
        scenario = scenario_of(self.agents, self.options.steps)
        for spec in scenario["agents"]:
            if spec["type"] == "llm":
                tokens = self.options.output_tokens or OUTPUT_TOKENS
                spec["llm"] |= {"base_url": base_url, "max_tokens": tokens}
        path = self.folder / "scenario.yaml"
        path.write_text(yaml.safe_dump(scenario, sort_keys=False), encoding="utf-8")
        return estimated_context(rehearse(path, {}))

    def _ours(self, backend: Mapping[str, Any]) -> WholeRun:
        config = {"backend": dict(backend), "scheduler": self._scheduler}
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        words = ["-m", "swarm_integration", "run", "scenario.yaml", "--seed", str(SEED)]
        words += ["--inference-scheduler", "batch", "--inference-config", path.name]
        seconds = self._seconds([*words, "--run-dir", "run"])
        manifest = json.loads((self.folder / "run" / MANIFEST).read_text(encoding="utf-8"))
        totals = manifest["inference"]
        return WholeRun(seconds, totals["requests"], totals["completion_tokens"])

    @property
    def _scheduler(self) -> dict[str, Any]:
        return {"slots": self.options.slots or "auto", "structured_output": False}

    def _seconds(self, words: Sequence[str]) -> float:
        began = time.perf_counter()
        done = subprocess.run(  # noqa: S603  # our own words, and no shell
            [sys.executable, *words], cwd=self.folder, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - began
        if done.returncode != 0:
            raise SchedulerError(
                f"{' '.join(words)} ended with status {done.returncode}; it said:\n"
                + "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            )
        return seconds
