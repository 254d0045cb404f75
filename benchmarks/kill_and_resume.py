"""Kills runs at random points, resumes them, and compares with an uninterrupted one.

    python benchmarks/kill_and_resume.py [--rounds 50] [--at-once 2] [--seed S] [--json]

Each round starts `swarm run` in a child process on the fake backend with delays, kills it
(SIGKILL) once or several times, and resumes it. Wanted: the trace hash and the metrics of
the uninterrupted run, and no question dispatched again whose answer had been stored.
Exit code 1 when it is otherwise. Not for Windows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SCENARIO = Path(__file__).parent.parent / "scenarios/llm_batch_12.yaml"
CONFIG = "backend: {kind: fake, fake: {slots: 4, latency_s: 0.05, fault_rate: 0.05}}\n"
RETRIES = "scheduler: {retry_base_s: 0.01}\n"
LONGEST_ROUND_S = 300.0
_NAMES = ("epoch", "step", "kind", "agent_id", "ordinal")


@dataclass(frozen=True, slots=True)
class Round:
    """How one round went.

    Attributes:
        number: The round's number.
        kills: How many processes were killed while they ran.
        stored: How many answers the log knew to be stored at each kill.
        recalled: How many answers the last attempt had from the journal.
        problem: What is not as it should be, or None.
    """

    number: int
    kills: int
    stored: list[int]
    recalled: int
    problem: str | None


def command(run: Path, config: Path, *more: str) -> list[str]:
    """Return the command line of a run into `run`."""
    program = [sys.executable, "-m", "swarm_integration", "run", str(SCENARIO), "--quiet"]
    mode = ["--inference-scheduler", "batch", "--inference-config", str(config)]
    return [*program, *mode, "--run-dir", str(run), *more]


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


def kill_after(arguments: Sequence[str], run: Path, count: int, pause_s: float) -> bool:
    """Kill a command when its run has `count` more answers; return whether it still ran."""
    wanted = answers_in(run) + count
    with subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        began = time.monotonic()
        while process.poll() is None and (not run.exists() or answers_in(run) < wanted):
            if time.monotonic() - began > LONGEST_ROUND_S:
                process.kill()
                raise TimeoutError(f"{run} does not get on")
            time.sleep(0.001)
        time.sleep(pause_s)
        ran = process.poll() is None
        process.kill()
    return ran


def play(number: int, seed: int, directory: Path, config: Path, questions: int) -> Round:
    """Play one round; the whole run is in `directory / "whole"`."""
    draw = random.Random(f"{seed}/{number}")
    run = directory / f"round-{number}"
    kills, stored = 0, []
    for _ in range(draw.choice([1, 1, 2, 3])):
        resume = ["--resume"] if (run / "manifest.json").exists() else []
        count, pause_s = draw.randrange(questions // 2), 0.02 * draw.random()
        kills += kill_after(command(run, config, *resume), run, count, pause_s)
        stored.append(answers_in(run))
    problem = finish(command(run, config, "--resume"))
    recalled = 0
    if problem is None:
        recalled = _manifest(run)["inference"]["recalled"]
        problem = next(_problems(run, directory / "whole"), None)
    return Round(number, kills, stored, recalled, problem)


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


def measure(rounds: int, at_once: int, seed: int) -> dict[str, Any]:
    """Play all rounds and return what was found."""
    with tempfile.TemporaryDirectory(prefix="kill-") as name:
        directory = Path(name)
        config = directory / "config.yaml"
        config.write_text(RETRIES + CONFIG, encoding="utf-8")
        problem = finish(command(directory / "whole", config))
        if problem is not None:
            raise SystemExit(f"the uninterrupted run failed: {problem}")
        whole = _manifest(directory / "whole")
        questions = int(whole["transcript_lines"])

        def one(number: int) -> Round:
            return play(number, seed, directory, config, questions)

        with ThreadPoolExecutor(at_once) as pool:
            played = list(pool.map(one, range(rounds)))
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "seed": seed,
        "questions": questions,
        "trace_hash": whole["trace_hash"],
        "rounds": rounds,
        "kills": sum(one.kills for one in played),
        "problems": sum(one.problem is not None for one in played),
        "played": [asdict(one) for one in played],
    }


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50, help="runs that are killed and resumed")
    parser.add_argument("--at-once", type=int, default=2, help="rounds that are played at once")
    parser.add_argument("--seed", type=int, default=1, help="seed of the points of the kills")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    found = measure(options.rounds, options.at_once, options.seed)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print("{cores} cores, {machine}, Python {python}; seed {seed}".format(**found))
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
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
