"""What the flags of a managed llama-server and the placement of requests bring, in turns.

    python benchmarks/server_flags.py --model FILE.gguf [--sets NAME ...] [--slots N ...]
        [--agents 12] [--steps 2] [--prompt-layout upstream] [--requests N] [--threads N]
        [--rounds 3] [--json FILE]

Each setting answers the same prompts of a real SWARM run with answers of the same lengths, on a
server started for it, one setting after the other, round after round; medians count. The server's
CPU seconds tell settings apart where other programs use the machine too, as long as it has one
thread: more wait for each other by spinning, which counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import anyio

from scheduler.backends.base import RawAnswer
from scheduler.backends.llama_server import LlamaServerBackend
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.journal import Journal
from scheduler.server import ManagedServer, Profile, ServerSpec, server_flags
from scheduler.server_command import default_threads, physical_cores
from scheduler.types import Completion, Request
from swarm_integration.bench.servers import IGNORE_EOS
from swarm_integration.bench.usage import cpu
from swarm_integration.bench.workload import record
from swarm_integration.schemas import PromptLayout

LAYOUTS = get_args(PromptLayout)


@dataclass(frozen=True, slots=True)
class Setting:
    """How a server is started and asked, where it differs from the project's own way.

    Attributes:
        flags: Added to the server's flags, over which they win.
        environment: Added to the server's environment.
        profile: Which of our profiles it starts from.
        context: Tokens per slot.
        copies: `scheduler.prefix_copies`; 0 is no limit, None the slots over the prefixes.
        pinned: Whether requests name their slot; else the server chooses.
    """

    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    profile: Profile = "fast"
    context: int = 4096
    copies: int | None = None
    pinned: bool = True


def _flags(words: str) -> Setting:
    return Setting(tuple(words.split()))


SETS: dict[str, Setting] = {
    "ours": Setting(),
    "no limit of copies": Setting(copies=0),
    "1 copy": Setting(copies=1),
    "2 copies": Setting(copies=2),
    "server chooses": Setting(copies=0, pinned=False),
    "server chooses, copies limited": Setting(pinned=False),
    "server's defaults": Setting(
        ("--cache-ram", "8192", "--cache-idle-slots", "--flash-attn", "auto"),
        copies=0,
        pinned=False,
    ),
    "a thread less": _flags(f"--threads {max(1, physical_cores() - 1)}"),
    "batch 128": _flags("--batch-size 128 --ubatch-size 128"),
    "batch 256": _flags("--batch-size 256 --ubatch-size 256"),
    "batch 512": _flags("--batch-size 512 --ubatch-size 512"),
    "ubatch 128": _flags("--ubatch-size 128"),
    "ubatch 256": _flags("--ubatch-size 256"),
    "ubatch 2048": _flags("--ubatch-size 2048"),
    "flash off": _flags("--flash-attn off"),
    "flash auto": _flags("--flash-attn auto"),
    "kv unified": _flags("--kv-unified"),
    "no cont-batching": _flags("--no-cont-batching"),
    "cache-reuse 64": _flags("--cache-reuse 64"),
    "poll 0": _flags("--poll 0"),
    "poll 100": _flags("--poll 100"),
    "prio 2": _flags("--prio 2"),
    "context 2048": Setting(context=2048),
    "context 16384": Setting(context=16384),
    "repacking": _flags("--repack"),
    "no repacking": _flags("--no-repack"),
    "bf16 cache": _flags("--cache-type-k bf16 --cache-type-v bf16"),
    "no tiling": Setting(environment={"GGML_CPU_TILED_MM": "0"}),
    "no tiling, no repacking": Setting(("--no-repack",), {"GGML_CPU_TILED_MM": "0"}),
    "invariant": Setting(profile="invariant"),
    "invariant, no tiling": Setting(environment={"GGML_CPU_TILED_MM": "0"}, profile="invariant"),
}


class Timed(LlamaServerBackend):
    """Notes when each slot was at work, as seen from here."""

    def __init__(self, base_url: str, *, pin_slots: bool) -> None:
        super().__init__(base_url, pin_slots=pin_slots)
        self.spans: list[tuple[int, float, float]] = []

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
        """Answer as its parent does."""
        began = anyio.current_time()
        answer = await super().generate(request, seed=seed, slot=slot)
        self.spans.append((slot, began, anyio.current_time()))
        return answer


async def measure(
    setting: Setting, rounds: Sequence[Sequence[Request]], model: Path, slots: int, threads: int
) -> dict[str, float]:
    """Start a server, answer all rounds on it, and return what that took."""
    spec = ServerSpec(model, slots, setting.context, threads=threads, profile=setting.profile)

    def flags(spec: ServerSpec) -> list[str]:
        return [*server_flags(spec), *setting.flags, IGNORE_EOS]

    with tempfile.TemporaryDirectory() as folder, _environment(setting.environment):
        log = Path(folder) / "server.log"
        async with (
            ManagedServer(spec, log_path=log, flags=flags) as server,
            aclosing(Timed(server.base_url, pin_slots=setting.pinned)) as backend,
            aclosing(Journal(Path(folder) / "journal.sqlite3")) as journal,
        ):
            await journal.open()
            groups = len({request.group for one in rounds for request in one})
            copies = max(1, slots // groups) if setting.copies is None else setting.copies
            config = SchedulerConfig(max_batch=64, prefix_copies=copies or slots)
            used = cpu(server.pid)
            began = anyio.current_time()
            done: list[Completion] = []
            async with Scheduler(backend, config, journal=journal) as scheduler:
                for one in rounds:
                    done += await scheduler.run_step(one)
            took = anyio.current_time() - began
            spent = cpu(server.pid)
    return {
        "seconds": took,
        "server_cpu_s": (spent.server_s or 0.0) - (used.server_s or 0.0),
        "client_cpu_ms": 1000 * (spent.own_s - used.own_s) / len(done),
        **_counts(done),
        "idle_ms": _idle_ms(backend.spans),
    }


def _counts(done: Sequence[Completion]) -> dict[str, float]:
    answers = [completion.answers[-1] for completion in done]
    prompt = sum(answer.usage.prompt_tokens for answer in answers)
    cached = sum(answer.usage.cached_tokens for answer in answers)
    return {
        "requests": len(done),
        "prompt_tokens": prompt,
        "computed_tokens": prompt - cached,
        "answer_tokens": sum(answer.usage.completion_tokens for answer in answers),
    }


def _idle_ms(spans: Sequence[tuple[int, float, float]]) -> float:
    """Return the median time from an answer to the next request on the same slot."""
    gaps = []
    for slot in {one[0] for one in spans}:
        mine = sorted(one[1:] for one in spans if one[0] == slot)
        gaps += [1000 * (after[0] - before[1]) for before, after in zip(mine, mine[1:])]  # noqa: B905, RUF007  # pairs
    return statistics.median(gaps) if gaps else 0.0


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _median(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def _show(name: str, slots: int, row: Mapping[str, float]) -> None:
    print(
        f"{name:32} {slots:5} {row['seconds']:8.1f} {60 * row['requests'] / row['seconds']:7.1f} "
        f"{row['server_cpu_s']:8.1f} {row['computed_tokens']:9.0f} {row['prompt_tokens']:8.0f} "
        f"{row['idle_ms']:6.1f} {row['client_cpu_ms']:7.1f}",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--sets", nargs="+", default=list(SETS), metavar="NAME", help="settings")
    parser.add_argument("--slots", nargs="+", type=int, default=[4], help="slots of the server")
    parser.add_argument("--agents", type=int, default=12, help="LLM agents, a multiple of 4")
    parser.add_argument("--steps", type=int, default=2, help="steps that are recorded")
    parser.add_argument("--prompt-layout", choices=LAYOUTS, default=LAYOUTS[0])
    parser.add_argument("--requests", type=int, help="answer the first so many only")
    parser.add_argument("--threads", type=int, default=default_threads(), help="server's threads")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of which medians count")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    if unknown := [name for name in options.sets if name not in SETS]:
        parser.error(f"unknown settings {unknown}; there are: {', '.join(SETS)}")
    with tempfile.TemporaryDirectory() as folder:
        workload = record(options.agents, options.steps, options.prompt_layout, Path(folder))
    if options.requests is not None:
        workload = workload.first(options.requests)
    rounds = [
        [question.request(backend="default", model="", timeout_s=3600.0) for question in one]
        for one in workload.rounds
    ]
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for name in options.sets:
            for slots in options.slots:
                row = anyio.run(measure, SETS[name], rounds, options.model, slots, options.threads)
                found.setdefault((name, slots), []).append(row)
                print(
                    f"  {name}, {slots} slots: {row['seconds']:.1f} s, "
                    f"{row['server_cpu_s']:.1f} s of the server's CPU time",
                    file=sys.stderr,
                    flush=True,
                )
    machine = f"{os.cpu_count()} {platform.machine()} cores, {options.threads} threads"
    print(f"{machine}; {options.agents} agents, {options.steps} steps, "
          f"{options.prompt_layout}, {options.model.name}")  # fmt: skip
    print(f"{'setting':32} slots  seconds req/min  cpu (s)  computed   prompt  idle  client")
    medians = {key: _median(rows) for key, rows in found.items()}
    for (name, slots), row in medians.items():
        _show(name, slots, row)
    if options.json:
        rows = [{"setting": name, "slots": slots, **row} for (name, slots), row in medians.items()]
        data = {"machine": machine, "agents": options.agents, "steps": options.steps, "rows": rows}
        options.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
