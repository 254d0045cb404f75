"""What `prompt_layout: shared_first` leaves to be computed of the prompts of a SWARM run.

    python benchmarks/prompt_layout.py [--agents 12 48] [--slots 8] [--rounds 3] [--server] [--json]

The simulation that `swarm-inference bench workload` records is recorded under each layout, with
answers that follow from the requests' seeds, so that both runs are the same but for the layout.
The prompts are then asked of a model in this process with the batched engine, the layouts taking
turns; answers have `--answer-tokens` tokens each. Printed are the prompt tokens in all, those
that the engine computed, and two bounds: the fewest where nothing that was ever read is lost,
and the fewest where no prompt of another phase is remembered.

`--counts` counts alone: one round of short answers from a model of one layer.
`--server` asks a llama-server of its own as well; its slots share nothing with each other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import anyio
import llama_cpp

from scheduler.backends.base import Backend
from scheduler.backends.llama_inproc import LlamaInprocBackend
from scheduler.backends.llama_library import LoadedModel
from scheduler.backends.llama_prefix import shared_length
from scheduler.backends.llama_server import LlamaServerBackend
from scheduler.backends.native_model import NativeSpec
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.gguf_models import ModelShape, ensure_model
from scheduler.server import ManagedServer, ServerSpec
from scheduler.types import Request
from swarm_integration.bench.workload import PERSONAS, record
from swarm_integration.schemas import PromptLayout

LAYOUTS: tuple[PromptLayout, ...] = get_args(PromptLayout)
N_CTX = 3072
ONE_LAYER = ModelShape("one-layer", layers=1, width=64, heads=2, kv_heads=1, ff_width=96)

Phases = Sequence[Sequence[Request]]


@dataclass
class Tally:
    """What one way took for all phases, round by round."""

    prompt_tokens: int = 0
    computed: int = 0
    seconds: list[float] = field(default_factory=list)


def recorded(agents: int, options: argparse.Namespace, folder: Path) -> dict[PromptLayout, Phases]:
    """Run a scenario once under each layout; return what was asked, phase by phase."""
    found = {layout: record(agents, options.steps, layout, folder) for layout in LAYOUTS}
    asked = [
        [[(one.agent_id, one.kind, one.base_seed) for one in phase] for phase in each.rounds]
        for each in found.values()
    ]
    if any(each != asked[0] for each in asked):
        raise SystemExit("the layouts led to different runs; nothing can be compared")
    return {
        layout: [
            [one.request(backend="default", model="", timeout_s=3600) for one in phase]
            for phase in each.with_output_tokens(options.answer_tokens).rounds
        ]
        for layout, each in found.items()
    }


def fewest(prompts: Sequence[tuple[int, ...]]) -> int:
    """Return how many tokens must be computed where nothing of these prompts is lost."""
    ordered = sorted(prompts)
    return sum(map(len, ordered)) - sum(map(shared_length, ordered, ordered[1:]))


def bounds(model: Path, phases: Phases) -> dict[str, int]:
    """Return the prompt tokens of a recording, and the fewest of them."""
    loaded = LoadedModel(llama_cpp, NativeSpec(model, N_CTX, 1, 0))
    tokens = [[loaded.reader.read(each.messages, None).tokens for each in one] for one in phases]
    loaded.close()
    return {
        "requests": sum(map(len, phases)),
        "prompt_tokens": sum(len(each) for phase in tokens for each in phase),
        "fewest": fewest([each for phase in tokens for each in phase]),
        "fewest_by_phase": sum(map(fewest, tokens)),
    }


async def ask(backend: Backend, phases: Phases, tally: Tally) -> None:
    """Ask all phases, one after the other, and add up."""
    async with Scheduler(backend, SchedulerConfig(max_batch=64)) as scheduler:
        began = time.perf_counter()
        tally.prompt_tokens = tally.computed = 0
        for phase in phases:
            for done in await scheduler.run_step(phase):
                usage = done.answers[-1].usage
                tally.prompt_tokens += usage.prompt_tokens
                tally.computed += usage.prompt_tokens - usage.cached_tokens
        tally.seconds.append(time.perf_counter() - began)


async def in_turns(
    recordings: dict[PromptLayout, Phases], model: Path, options: argparse.Namespace
) -> dict[str, dict[PromptLayout, Tally]]:
    """Ask everything under each layout, each time of a backend that has read nothing."""
    ways = ["in process", "server"] if options.server else ["in process"]
    found = {way: {layout: Tally() for layout in LAYOUTS} for way in ways}
    for _ in range(options.rounds):
        for layout, phases in recordings.items():
            backend = LlamaInprocBackend(
                model,
                n_ctx=N_CTX,
                n_threads=options.threads,
                engine="batched",
                slots=options.slots,
            )
            await backend.start()
            await ask(backend, phases, found["in process"][layout])
            await backend.aclose()
            if options.server:
                await ask_server(phases, model, options, found["server"][layout])
    return found


async def ask_server(
    phases: Phases, model: Path, options: argparse.Namespace, tally: Tally
) -> None:
    """Ask a llama-server that has just been started."""
    spec = ServerSpec(model, slots=options.slots, ctx_per_slot=N_CTX, threads=options.threads)
    with tempfile.TemporaryDirectory() as folder:
        async with ManagedServer(spec, log_path=Path(folder) / "server.log") as server:
            backend = LlamaServerBackend(server.base_url, pin_slots=True)
            await backend.start()
            await ask(backend, phases, tally)
            await backend.aclose()


def measure(agents: int, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the numbers for so many agents."""
    with tempfile.TemporaryDirectory() as folder:
        recordings = recorded(agents, options, Path(folder))
    found = {layout: bounds(model, phases) for layout, phases in recordings.items()}
    table: dict[str, Any] = {"agents": agents, "prompts": found, "ways": {}}
    table["timed"] = not options.counts
    for way, tallies in anyio.run(in_turns, recordings, model, options).items():
        rows: dict[str, dict[str, float]] = {}
        for layout, tally in tallies.items():
            median_s = statistics.median(tally.seconds)
            rows[layout] = {
                "computed": tally.computed,
                "share_of_prompts": tally.computed / tally.prompt_tokens,
                "over_fewest": tally.computed / found[layout]["fewest"],
                "requests_min": 60 * found[layout]["requests"] / median_s,
            }
        before, after = rows["upstream"], rows["shared_first"]
        speeds = [
            one / other
            for one, other in zip(
                tallies["upstream"].seconds, tallies["shared_first"].seconds, strict=True
            )
        ]
        table["ways"][way] = {
            **rows,
            "computed_ratio": after["computed"] / before["computed"],
            "speed_ratio": statistics.median(speeds),
        }
    return table


def lines_of(table: dict[str, Any]) -> Iterator[str]:
    """Yield the report for one number of agents as lines of text."""
    prompts, timed = table["prompts"], table["timed"]
    yield f"\n{table['agents']} agents, {prompts['upstream']['requests']} requests"
    yield f"{'':14}{'':14}{'prompt tokens':>14}{'computed':>10}{'share':>8}" + (
        f"{'requests/min':>14}" if timed else ""
    )
    for layout, found in prompts.items():
        for name in ("fewest_by_phase", "fewest"):
            label = {"fewest": "fewest", "fewest_by_phase": "fewest, each phase by itself"}[name]
            share = found[name] / found["prompt_tokens"]
            yield f"{layout:14}{found['prompt_tokens']:>28}{found[name]:>10}{share:>8.1%}  {label}"
    for way, rows in table["ways"].items():
        for layout in LAYOUTS:
            row = rows[layout]
            yield (
                f"{layout:14}{way:14}{prompts[layout]['prompt_tokens']:>14}{row['computed']:>10}"
                f"{row['share_of_prompts']:>8.1%}"
            ) + (f"{row['requests_min']:>14.1f}" if timed else "")
        speed = f", at {rows['speed_ratio']:.2f} times the requests per minute" if timed else ""
        yield f"  {way}: shared_first computes {rows['computed_ratio']:.3f} of upstream's{speed}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--agents", type=int, nargs="+", default=[12, 48], help="LLM agents")
    parser.add_argument("--steps", type=int, default=2, help="simulation steps")
    parser.add_argument("--slots", type=int, default=8, help="answers at once")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of which the median counts")
    parser.add_argument("--answer-tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--model", type=Path, help="a GGUF file; by default one is written")
    parser.add_argument("--preset", default="bench", help="which model is written")
    parser.add_argument("--counts", action="store_true", help="count tokens, as fast as can be")
    parser.add_argument("--server", action="store_true", help="measure a llama-server too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if min(options.rounds, options.steps, options.slots, options.answer_tokens) < 1:
        parser.error("--rounds, --steps, --slots and --answer-tokens must be 1 or more")
    if options.counts:
        options.rounds, options.answer_tokens, options.preset = 1, 4, "one-layer"
    if min(options.agents) < len(PERSONAS):
        parser.error(f"--agents must be {len(PERSONAS)} or more")
    found: dict[str, Any] = {
        "machine": f"{os.cpu_count()} {platform.machine()} cores, {options.threads} threads",
        "python": platform.python_version(),
        "llama_cpp_python": llama_cpp.__version__,
        "slots": options.slots,
        "rounds": options.rounds,
        "answer_tokens": options.answer_tokens,
        "tables": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or Path(folder) / f"{options.preset}.gguf"
        if options.model is None:
            ensure_model(model, ONE_LAYER if options.counts else options.preset)
        found["model"] = model.name
        found["tables"] = [measure(agents, model, options) for agents in options.agents]
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(
        "{machine}; {model}, {slots} slots, {answer_tokens} tokens an answer, "
        "medians of {rounds}".format(**found)
    )
    for table in found["tables"]:
        print("\n".join(lines_of(table)))


if __name__ == "__main__":
    main()
