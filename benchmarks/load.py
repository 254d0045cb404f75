"""Many agents, many faults and many steps: is all of it answered, and is anything left behind?

    python benchmarks/load.py [--agents 10000] [--requests 2000] [--seconds 3600] [--json]

Three loads: that many agents in one step on the fake backend; that many requests over real
sockets to a server of another process that fails one in ten of them; and that many seconds of
steps, in virtual time, with faults, missed deadlines and cancelled steps. Bounds are on what
was answered, on memory, open files and threads, and on the CPU time of the last steps against
the first. Exit code 1 when a bound is broken.

It uses the tests' chaos server and virtual clock, so it runs from a checkout only.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

sys.path.insert(0, str(Path(__file__).parents[1]))

from scheduler.backends.base import BackendInfo, RawAnswer
from scheduler.backends.fake import FakeBackend
from scheduler.backends.llama_server import LlamaServerBackend
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import (
    AttemptError,
    ConnectionFailed,
    MalformedAnswer,
    ServerBusy,
    ServerFault,
    ServerLoading,
)
from scheduler.seeds import request_seed
from scheduler.types import Completion, FinishReason, Message, Request
from tests import virtual_time
from tests.wire.chaos import chaos
from tests.wire.chaos_server import PASSING

SLOTS = 16
SLOW_FAULTS = ("hang", "drip")
"""Faults that last until the attempt's deadline: these belong into virtual time."""

STEP_AGENTS = 24
TIMEOUT_S = 20.0
FEWEST_STEPS = 100
"""Below it, first and last quarter of the steps are too short to be compared."""

MOST_BYTES_PER_REQUEST = 100.0
"""What memory may grow by: the samples of times that a run's summary is made from are 32 bytes."""

MOST_DRIFT = 1.5


@dataclass(frozen=True)
class Left:
    """What a process holds."""

    files: int
    threads: int

    @classmethod
    def now(cls) -> Left:
        """Count open files (0 where /proc does not tell) and threads."""
        gc.collect()
        descriptors = Path("/proc/self/fd")
        files = len(list(descriptors.iterdir())) if descriptors.is_dir() else 0
        return cls(files, threading.active_count())


def resident_bytes() -> int:
    """Return the resident memory of this process, 0 where /proc does not tell."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0
    return int(statm.read_text().split()[1]) * int(os.sysconf("SC_PAGE_SIZE"))


def requests_of(count: int, step: int = 0, **fields: Any) -> list[Request]:
    """Return one request each of `count` agents of four kinds."""
    return [
        Request(
            f"agent-{i:05d}",
            (
                Message("system", f"You are an agent of kind {i % 4}."),
                Message("user", f"Agent {i}, step {step}: what do you do?"),
            ),
            step=step,
            **fields,
        )
        for i in range(count)
    ]


def said(completions: list[Completion]) -> list[tuple[str, int, str]]:
    """Return who was told what, in order."""
    return [(c.request.agent_id, c.answers[-1].seed, c.text) for c in completions]


async def many_agents(count: int) -> dict[str, Any]:
    """Put `count` agents into one step, and again on one slot."""
    told = []
    began = time.process_time()
    most = 0
    for slots in (64, 1):
        backend = FakeBackend(slots=slots)
        async with Scheduler(backend, SchedulerConfig()) as scheduler:
            completions = await scheduler.run_step(requests_of(count))
        told.append(said(completions))
        if slots == 64:
            cpu_s, most = time.process_time() - began, backend.max_in_flight
    return {
        "agents": count,
        "in_order": [name for name, _, _ in told[0]] == [f"agent-{i:05d}" for i in range(count)],
        "same_on_one_slot": told[0] == told[1],
        "most_in_flight": most,
        "cpu_ms_per_request": round(1000 * cpu_s / count, 4),
    }


async def real_sockets(count: int, directory: Path) -> dict[str, Any]:
    """Send `count` requests to a server that fails a tenth of them, and to one that does not."""
    requests = requests_of(count, max_retries=5)
    config = SchedulerConfig(retry_base_s=0.01, retry_cap_s=0.2)
    kinds = [kind for kind in PASSING if kind not in SLOW_FAULTS]

    async def run(base_url: str) -> tuple[list[Completion], int]:
        backend = LlamaServerBackend(base_url, ready_timeout_s=60)
        try:
            async with Scheduler(backend, config) as scheduler:
                return await scheduler.run_step(requests), scheduler.stats.retries
        finally:
            await backend.aclose()

    shared = {"slots": SLOTS, "seed": 7, "delay_s": 0.05}
    began = time.monotonic()
    with chaos(directory / "faulty", share=0.1, kinds=kinds, most=2, **shared) as server:
        completions, retries = await run(server.base_url)
        wall_s = time.monotonic() - began
    record = server.record()  # whole, now that the server has ended
    with chaos(directory / "calm", **shared) as server:
        expected, _ = await run(server.base_url)
    did = Counter(line["did"] for line in record)
    answers = Counter(line["prompt"] for line in record if line["did"] == "answered")
    return {
        "requests": count,
        "answered": sum(completion.ok for completion in completions),
        "right": sum(a == b for a, b in zip(said(completions), said(expected), strict=True)),
        "retries": retries,
        "faults_of_the_server": len(record) - did["answered"],
        "kinds_of_faults": len(did) - 1,
        "attempts": sum(completion.attempts for completion in completions),
        "requests_at_the_server": len(record),
        "answered_twice": sum(times > 1 for times in answers.values()),
        "most_in_flight": max(line["in_flight"] for line in record),
        "wall_s": round(wall_s, 1),
    }


class TroubledBackend:
    """Answers after up to 4 virtual seconds; fails, loads or misses deadlines now and then."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self.faults: Counter[str] = Counter()

    async def start(self) -> BackendInfo:
        """Return what this backend is."""
        return BackendInfo("fake", SLOTS, None, model="troubled")

    async def wait_ready(self) -> None:
        """Take a moment."""
        await anyio.sleep(0.5)

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:  # noqa: ARG002 - all slots are alike
        """Answer, or fail in one of six ways."""
        luck = self._draw.random()
        kinds: list[Callable[[], AttemptError]] = [
            lambda: ServerFault("500"),
            lambda: ConnectionFailed("reset"),
            lambda: ServerBusy("429", 1.0),
            lambda: ServerLoading("503"),
            lambda: MalformedAnswer("not JSON"),
        ]
        if luck < 0.01:
            self.faults["deadline"] += 1
            await anyio.sleep(10 * TIMEOUT_S)
        await anyio.sleep(4 * self._draw.random())
        if luck < 0.1:
            error = self._draw.choice(kinds)()
            self.faults[type(error).__name__] += 1
            raise error
        return RawAnswer(f"{request.agent_id} {seed}", FinishReason.STOP)

    async def count_prompt_tokens(self, messages: Any) -> None:
        """Return None."""

    async def aclose(self) -> None:
        """Do nothing."""


async def simulated_steps(seconds: float) -> dict[str, Any]:
    """Run steps for that many virtual seconds, some cancelled, and look at what grows."""
    backend = TroubledBackend(1)
    config = SchedulerConfig(retry_budget=10**9)
    cpu_ms: list[float] = []
    traced: list[tuple[int, int]] = []
    resident: list[int] = []
    wrong = cancelled = step = done = 0
    async with Scheduler(backend, config) as scheduler:
        ends_at = anyio.current_time() + seconds
        while anyio.current_time() < ends_at:
            requests = requests_of(STEP_AGENTS, step, timeout_s=TIMEOUT_S, max_retries=30)
            began = time.process_time()
            with anyio.move_on_after(3.0 if step % 10 == 9 else float("inf")) as scope:
                for completion in await scheduler.run_step(requests):
                    right = f"{completion.request.agent_id} {request_seed(completion.request)}"
                    wrong += completion.text != right
                    done += 1
            cancelled += scope.cancelled_caught
            if step % 10 != 9:  # one that is cancelled is shorter
                cpu_ms.append(1000 * (time.process_time() - began))
            step += 1
            gc.collect()
            traced.append((done, tracemalloc.get_traced_memory()[0]))
            resident.append(resident_bytes())
        await scheduler.drain()
        in_flight = scheduler.in_flight
    quarter = max(1, len(cpu_ms) // 4)
    settled = traced[len(traced) // 4 :]  # caches are full by then
    first, last = statistics.median(cpu_ms[:quarter]), statistics.median(cpu_ms[-quarter:])
    return {
        "virtual_seconds": seconds,
        "steps": step,
        "steps_cancelled": cancelled,
        "requests": done,
        "wrong": wrong,
        "in_flight_at_the_end": in_flight,
        "faults": dict(sorted(backend.faults.items())),
        "retries": scheduler.stats.retries,
        "bytes_per_request": round(slope(settled), 1),
        "resident_growth_mb": round((resident[-1] - resident[len(resident) // 4]) / 1e6, 2),
        "cpu_ms_per_step_first_quarter": round(first, 3),
        "cpu_ms_per_step_last_quarter": round(last, 3),
        "drift": round(last / first, 3),
    }


def slope(points: list[tuple[int, int]]) -> float:
    """Return by how much the second number grows for each one of the first, least squares."""
    if len({x for x, _ in points}) < 2:
        return 0.0
    return statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope


def broken(found: dict[str, Any]) -> list[str]:
    """Return which bounds are broken."""
    agents, sockets, steps = found["agents"], found["sockets"], found["steps"]
    count = sockets["requests"]
    bounds = {
        "agents: results not in order": agents["in_order"],
        "agents: other answers on one slot": agents["same_on_one_slot"],
        "agents: more in flight than slots": agents["most_in_flight"] <= 64,
        "sockets: not all answered": sockets["answered"] == count,
        "sockets: wrong answers": sockets["right"] == count,
        "sockets: retries differ from the server's record": (
            sockets["retries"] == sockets["faults_of_the_server"]
        ),
        "sockets: attempts differ from the server's record": (
            sockets["attempts"] == sockets["requests_at_the_server"]
        ),
        "sockets: answered twice": sockets["answered_twice"] == 0,
        "sockets: more in flight than slots": sockets["most_in_flight"] <= SLOTS,
        "steps: wrong answers": steps["wrong"] == 0,
        "steps: something is in flight at the end": steps["in_flight_at_the_end"] == 0,
        "steps: open files left": found["files"]["after"] <= found["files"]["before"],
        "steps: threads left": found["threads"]["after"] <= found["threads"]["before"],
    }
    if steps["steps"] >= FEWEST_STEPS:
        bounds["steps: memory grows"] = steps["bytes_per_request"] <= MOST_BYTES_PER_REQUEST
        bounds["steps: CPU time of a step drifts"] = steps["drift"] <= MOST_DRIFT
    return [name for name, holds in bounds.items() if not holds]


def measure(agents: int, requests: int, seconds: float) -> dict[str, Any]:
    """Run the three loads."""

    async def sockets(count: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as directory:
            return await real_sockets(count, Path(directory))

    anyio.run(sockets, 8)  # imports, and what is made once
    before = Left.now()
    found: dict[str, Any] = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "agents": anyio.run(many_agents, agents),
        "sockets": anyio.run(sockets, requests),
    }
    tracemalloc.start()
    found["steps"] = virtual_time.run("asyncio", lambda: simulated_steps(seconds))
    tracemalloc.stop()
    after = Left.now()
    found["files"] = {"before": before.files, "after": after.files}
    found["threads"] = {"before": before.threads, "after": after.threads}
    found["broken"] = broken(found)
    return found


def main() -> int:
    """Measure and print; 1 when a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, default=10_000, help="agents of one step")
    parser.add_argument("--requests", type=int, default=2_000, help="requests over sockets")
    parser.add_argument("--seconds", type=float, default=3600.0, help="virtual seconds of steps")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.agents < 1 or options.requests < 1 or options.seconds <= 0:
        parser.error("--agents, --requests and --seconds must be above 0")
    found = measure(options.agents, options.requests, options.seconds)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print("{cores} cores, {machine}, Python {python}".format(**found))
        for part in ("agents", "sockets", "steps", "files", "threads"):
            print(f"\n{part}")
            for name, value in found[part].items():
                print(f"  {name.replace('_', ' '):<32} {value}")
        print("\nbounds broken: " + (", ".join(found["broken"]) or "none"))
    return 1 if found["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
