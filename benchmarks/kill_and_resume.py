"""Kills runs at random points, resumes them, and compares with an uninterrupted one.

    python benchmarks/kill_and_resume.py [--rounds 50] [--at-once 2] [--seed S] [--json]
        [--backend fake|inproc|managed] [--at random|journal|manifest|restart]

Each round starts `swarm run` in a child process, kills it (SIGKILL) once or several times, and
resumes it. Wanted: the trace hash and the metrics of the uninterrupted run, no question
dispatched again whose answer had been stored, no server left. Exit code 1 when it is otherwise.
The backend is the fake one with delays, a small model in the run's process, or a llama-server
that the run starts. `--at` says when a kill comes: after a random number of answers and a
random time, or then as soon as the journal grows, as soon as the manifest is being written, or
while the run's own server, which was killed just before, is started again. Not for Windows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from scheduler.gguf_models import ensure_model

SCENARIOS = Path(__file__).parent.parent / "scenarios"
BACKENDS: dict[str, dict[str, Any]] = {
    "fake": {"kind": "fake", "fake": {"slots": 4, "latency_s": 0.05, "fault_rate": 0.05}},
    "inproc": {"kind": "llama_inproc", "engine": "batched", "threads": 1},
    "managed": {"kind": "llama_server", "managed": True, "threads": 1},
}
MOMENTS = ("random", "journal", "manifest", "restart")
LONGEST_ROUND_S = 300.0
SERVERS_LEAVE_WITHIN_S = 30.0
MODEL = "model.gguf"
_SERVER_EVENTS = ("server.started", "server.restarted")
_NAMES = ("epoch", "step", "kind", "agent_id", "ordinal")


@dataclass(frozen=True, slots=True)
class Round:
    """How one round went.

    Attributes:
        number: The round's number.
        kills: How many processes were killed while they ran.
        stored: How many answers the log knew to be stored at each kill.
        recalled: How many answers the last attempt had from the journal.
        drafts: How many kills left a manifest that was half written.
        problem: What is not as it should be, or None.
    """

    number: int
    kills: int
    stored: list[int]
    recalled: int
    drafts: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class Trial:
    """What all rounds have in common.

    Attributes:
        directory: Where everything is written.
        at: When a kill comes; one of `MOMENTS`.
        seed: Decides the points of the kills.
        questions: How many lines the uninterrupted run's transcript has.
    """

    directory: Path
    at: str
    seed: int
    questions: int = 0

    def command(self, run: Path, *more: str) -> list[str]:
        """Return the command line of a run into `run`."""
        program = [sys.executable, "-m", "swarm_integration", "run"]
        files = [str(self.directory / "scenario.yaml"), "--inference-config"]
        config = str(self.directory / "config.yaml")
        mode = ["--quiet", "--inference-scheduler", "batch", "--run-dir", str(run)]
        return [*program, *files, config, *mode, *more]

    def prepare(self, backend: str) -> None:
        """Write scenario, configuration and model."""
        settings = dict(BACKENDS[backend])
        scenario = (SCENARIOS / "llm_batch_12.yaml").read_text(encoding="utf-8")
        if backend != "fake":
            settings["model_path"] = str(ensure_model(self.directory / MODEL, "demo").path)
            block = {"provider": "llama_cpp", "max_tokens": 12, "timeout": 300, "seed": 1}
            agents = [{"type": "llm", "count": 5, "llm": block}, {"type": "honest", "count": 1}]
            steps = {"n_epochs": 1, "steps_per_epoch": 3, "seed": 1}
            data = {"scenario_id": "killed", "agents": agents, "simulation": steps}
            scenario = yaml.safe_dump(data)
        (self.directory / "scenario.yaml").write_text(scenario, encoding="utf-8")
        config = {
            "scheduler": {"retry_base_s": 0.01, "slots": 4},
            "backend": settings,
            "determinism": {"server_profile": "invariant"},
        }
        (self.directory / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def finish(arguments: Sequence[str]) -> str | None:
    """Run a command to its end; return what it complained of when it failed."""
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=LONGEST_ROUND_S, check=False
    )
    return None if done.returncode == 0 else done.stderr.strip() or f"exit {done.returncode}"


def answers_in(run: Path) -> int:
    """Return how many answers the log of a run knows to be stored."""
    log = run / "inference.jsonl"
    return log.read_bytes().count(b'"event": "request.answered"') if log.exists() else 0


def kill_at(trial: Trial, arguments: Sequence[str], run: Path, draw: random.Random) -> bool:
    """Kill a command at the moment that is asked for; return whether it still ran."""
    wanted = answers_in(run) + draw.randrange(trial.questions // 2)
    earlier = len(_servers(run))
    pause_s = 0.02 * draw.random()
    with subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            _wait(process, run, lambda: run.exists() and answers_in(run) >= wanted)
            if trial.at == "restart":
                _wait(process, run, lambda: len(_servers(run)) > earlier)
                # Never one from before, whose number may be another process's by now.
                for pid in _servers(run)[earlier:][-1:]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                pause_s = draw.choice([0.02, 1.0, 2.0]) * draw.random()
            elif trial.at == "journal":
                grown = _size(run / "journal.sqlite3-wal")
                _wait(process, run, lambda: _size(run / "journal.sqlite3-wal") != grown)
                pause_s = 0.0
            elif trial.at == "manifest":
                draft = run / ".manifest.json.part"
                _wait(process, run, draft.exists)
                pause_s = 0.0
            time.sleep(pause_s)
            ran = process.poll() is None
        finally:
            process.kill()
    return ran


def _wait(process: subprocess.Popen[bytes], run: Path, until: Callable[[], bool]) -> None:
    """Wait for a moment, or for the end of the process."""
    began = time.monotonic()
    while process.poll() is None and not until():
        if time.monotonic() - began > LONGEST_ROUND_S:
            raise TimeoutError(f"{run} does not get on")
        time.sleep(0.0001)  # a manifest is half written for about as long


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _servers(run: Path) -> list[int]:
    """Return the process ids of the servers that a run has started, in order."""
    if not (run / "inference.jsonl").exists():
        return []
    return [event["pid"] for event in _events(run) if event["event"] in _SERVER_EVENTS]


def servers_of(trial: Trial) -> int:
    """Return how many processes serve the trial's model, of those that can be seen."""
    model = str(trial.directory / MODEL).encode()
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            count += model in path.read_bytes().split(b"\0")
    return count


def play(trial: Trial, number: int) -> Round:
    """Play one round; the whole run is in `directory / "whole"`."""
    draw = random.Random(f"{trial.seed}/{number}")
    run = trial.directory / f"round-{number}"
    kills, stored, drafts = 0, [], 0
    for _ in range(draw.choice([1, 1, 2, 3])):
        resume = ["--resume"] if (run / "manifest.json").exists() else []
        kills += kill_at(trial, trial.command(run, *resume), run, draw)
        stored.append(answers_in(run))
        drafts += (run / ".manifest.json.part").exists()
    # One that was killed before its manifest was there has left nothing to go on from.
    resume = ["--resume"] if (run / "manifest.json").exists() else []
    problem = finish(trial.command(run, *resume))
    recalled = 0
    if problem is None:
        recalled = _manifest(run)["inference"]["recalled"]
        problem = next(_problems(run, trial.directory / "whole"), None)
    return Round(number, kills, stored, recalled, drafts, problem)


def _problems(run: Path, whole: Path) -> Iterator[str]:
    for name in ("transcript.jsonl", "metrics.json"):
        if (run / name).read_bytes() != (whole / name).read_bytes():
            yield f"{name} differs from the uninterrupted run's"
    if _manifest(run)["trace_hash"] != _manifest(whole)["trace_hash"]:
        yield "the trace hash differs from the uninterrupted run's"
    answered = set()
    for event in _events(run):
        question = tuple(event.get(key) for key in _NAMES)
        if event["event"] == "request.answered" and event["outcome"] == "ok":
            answered.add(question)
        if event["event"] == "request.dispatched" and question in answered:
            yield f"{question} was dispatched after its answer had been stored"


def _manifest(run: Path) -> Any:
    return json.loads((run / "manifest.json").read_text(encoding="utf-8"))


def _events(run: Path) -> Iterator[dict[str, Any]]:
    for line in (run / "inference.jsonl").read_text(encoding="utf-8").split("\n"):
        if line.endswith("}"):
            yield json.loads(line)


def measure(rounds: int, at_once: int, seed: int, backend: str, at: str) -> dict[str, Any]:
    """Play all rounds and return what was found."""
    with tempfile.TemporaryDirectory(prefix="kill-") as name:
        trial = Trial(Path(name), at, seed)
        trial.prepare(backend)
        problem = finish(trial.command(trial.directory / "whole"))
        if problem is not None:
            raise SystemExit(f"the uninterrupted run failed: {problem}")
        whole = _manifest(trial.directory / "whole")
        trial = replace(trial, questions=int(whole["transcript_lines"]))
        with ThreadPoolExecutor(at_once) as pool:
            played = list(pool.map(lambda number: play(trial, number), range(rounds)))
        deadline = time.monotonic() + SERVERS_LEAVE_WITHIN_S
        while (left := servers_of(trial)) and time.monotonic() < deadline:
            time.sleep(0.1)
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "seed": seed,
        "backend": backend,
        "at": at,
        "questions": trial.questions,
        "trace_hash": whole["trace_hash"],
        "rounds": rounds,
        "kills": sum(one.kills for one in played),
        "drafts": sum(one.drafts for one in played),
        "problems": sum(one.problem is not None for one in played),
        "servers_left": left,
        "played": [asdict(one) for one in played],
    }


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50, help="runs that are killed and resumed")
    parser.add_argument("--at-once", type=int, default=2, help="rounds that are played at once")
    parser.add_argument("--seed", type=int, default=1, help="seed of the points of the kills")
    parser.add_argument("--backend", choices=BACKENDS, default="fake", help="who answers")
    parser.add_argument("--at", choices=MOMENTS, default="random", help="when a kill comes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.at == "restart" and options.backend != "managed":
        parser.error("--at restart needs --backend managed")
    found = measure(options.rounds, options.at_once, options.seed, options.backend, options.at)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print("{cores} cores, {machine}, Python {python}; seed {seed}".format(**found))
        print("backend {backend}, kills at: {at}".format(**found))
        print("trace hash of the uninterrupted run ({questions} questions):".format(**found))
        print(found["trace_hash"])
        print("round  kills  stored at each kill   recalled  result")
        for one in found["played"]:
            stored = " ".join(map(str, one["stored"]))
            result = one["problem"] or "equal, nothing asked again"
            print(
                f"{one['number']:5}  {one['kills']:5}  {stored:20}  {one['recalled']:8}  {result}"
            )
        print("{rounds} rounds, {kills} kills, {problems} problems".format(**found))
        print("{drafts} half-written manifests, {servers_left} servers left".format(**found))
    return 1 if found["problems"] or found["servers_left"] else 0


if __name__ == "__main__":
    sys.exit(main())
