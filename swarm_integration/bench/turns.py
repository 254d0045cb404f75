"""One way, or one measurement of rates, in a process of its own: what is asked and what came out.

A process per turn, so that memory and CPU time are that way's alone, every turn begins with cold
caches, and nothing that one way leaves behind slows another down.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from scheduler.backends.llama_opening import Slots
from scheduler.errors import SchedulerError
from swarm_integration.bench.oracle import Oracle

Part = Literal["a", "b", "c", "d", "e", "f", "g", "rates-server", "rates-inproc"]

WARM_UP = "Say hello."
"""Asked before the clock starts, so that weights are in memory."""

TIMEOUT_S = 3600.0
"""Deadline of one request; none should ever meet it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one process does.

    Attributes:
        part: The way, or the rates that are measured.
        workload: The recorded workload's file.
        model: The GGUF file.
        threads: CPU threads of the model, the same for all ways.
        slots: Answers at once, where the way has slots.
        folder: An empty folder for logs, journal and result.
    """

    part: Part
    workload: str
    model: str
    threads: int
    slots: Slots
    folder: str

    @property
    def result(self) -> Path:
        """Where the result is written."""
        return Path(self.folder) / "result.json"


@dataclass(frozen=True, slots=True)
class Served:
    """What one turn of one way brought.

    Attributes:
        seconds: From the first question to the last answer.
        requests: How many were answered.
        prompt_tokens: Tokens of all prompts.
        computed_tokens: How many of those were evaluated.
        output_tokens: Tokens of all answers.
        slots: How many answers were written at once.
        cpu_s: CPU seconds of all processes of the way, or None where that can't be told.
        peak_bytes: The most memory of all its processes, or None.
        build: The build of llama.cpp.
        instructions: Its instruction sets.
        native_s: Seconds inside llama.cpp's library, for ways in process.
    """

    seconds: float
    requests: int
    prompt_tokens: int
    computed_tokens: int
    output_tokens: int
    slots: int
    cpu_s: float | None
    peak_bytes: int | None
    build: str
    instructions: tuple[str, ...]
    native_s: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What a measurement of rates brought.

    Attributes:
        prefill: Pairs of tokens and seconds; see `oracle.Rates`.
        step_s: Seconds of a decode step by rows.
        oracles: The oracles by way.
        build: The build of llama.cpp.
        instructions: Its instruction sets.
    """

    prefill: tuple[tuple[int, float], ...]
    step_s: dict[int, float]
    oracles: dict[str, Oracle]
    build: str
    instructions: tuple[str, ...]


def take(turn: Turn) -> dict[str, Any]:
    """Run a turn in a process of its own and return its result.

    Raises:
        SchedulerError: It failed; with the end of what it said.
    """
    folder = Path(turn.folder)
    folder.mkdir(parents=True)
    asked = folder / "turn.json"
    asked.write_text(json.dumps(asdict(turn)), encoding="utf-8")
    words = [sys.executable, "-m", "swarm_integration.bench.turn", str(asked)]
    said = folder / "stderr.txt"
    with said.open("wb") as stderr:
        done = subprocess.run(words, stdout=stderr, stderr=stderr, check=False)  # noqa: S603  # our own words, and no shell
    if done.returncode != 0:
        lines = said.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        raise SchedulerError(
            f"way {turn.part} ended with status {done.returncode}; it said:\n" + "\n".join(lines)
        )
    result: dict[str, Any] = json.loads(turn.result.read_text(encoding="utf-8"))
    return result


def served_of(result: dict[str, Any]) -> Served:
    """Return what a way's process has written."""
    return Served(**{**result, "instructions": tuple(result["instructions"])})


def measured_of(result: dict[str, Any]) -> Measured:
    """Return what a measurement's process has written."""
    return Measured(
        prefill=tuple((tokens, seconds) for tokens, seconds in result["prefill"]),
        step_s={int(rows): seconds for rows, seconds in result["step_s"].items()},
        oracles={way: Oracle(**one) for way, one in result["oracles"].items()},
        build=result["build"],
        instructions=tuple(result["instructions"]),
    )
