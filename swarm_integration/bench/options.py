"""`swarm-inference bench workload`: its options, and the checks before anything starts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from swarm_integration.help_texts import add_command, examples

LAYOUTS = ("upstream", "shared_first")
LETTERS = "abcdefg"
STDOUT = "-"
_MOST_AGENTS = 1000


@dataclass(frozen=True, slots=True)
class WorkloadOptions:
    """What is measured.

    Attributes:
        agents: Numbers of LLM agents, one workload for each.
        steps: Steps of the simulation that are recorded.
        rounds: How often each way has its turn.
        slots: Answers at once, or None for what each way takes by itself.
        ways: Letters of the ways.
        model: The GGUF file, or None for the preset's.
        preset: The preset that is written where no file is given.
        threads: CPU threads of the model, or None for one per CPU.
        layouts: Layouts of the prompts; upstream's own ways have upstream's alone.
        output_tokens: Tokens of every answer, or None for the recorded lengths.
        requests: Serve only the first so many questions of each workload.
        whole_runs: Also run `swarm run`, upstream's and ours.
        json: Where the JSON goes: a file, `-` for standard output, or None.
        markdown: Where the tables go as Markdown, `FILE` or `FILE#NAME`, or None.
    """

    agents: tuple[int, ...] = (12,)
    steps: int = 2
    rounds: int = 3
    slots: int | None = None
    ways: tuple[str, ...] = tuple(LETTERS)
    model: Path | None = None
    preset: str = "bench"
    threads: int | None = None
    layouts: tuple[str, ...] = ("upstream",)
    output_tokens: int | None = None
    requests: int | None = None
    whole_runs: bool = False
    json: str | None = None
    markdown: str | None = None


def bench_options(commands: Any) -> argparse.ArgumentParser:
    """Add `bench` and what can be measured."""
    shown = {
        "swarm-inference bench workload": "12 agents, all ways, on a model that is written for it",
        "swarm-inference bench workload --agents 12 48 --prompt-layout upstream shared_first": (
            "also 48 agents, and prompts with the shared parts first"
        ),
        "swarm-inference bench workload --ways a g --model FILE.gguf --json found.json": (
            "two ways on your own model, with the numbers in a file"
        ),
    }
    bench: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="measure speed on this machine, against what else could be used",
        description="Measurements that anybody can repeat. There is one: workload.",
        epilog=examples(shown),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = bench.add_subparsers(dest="part", title="measurements", metavar="WHAT", required=True)
    workload = add_command(
        parts,
        "workload",
        "serve the prompts of one simulation in several ways and compare their speed",
        "Records the prompts of a SWARM simulation with canned answers, then serves exactly those "
        "prompts, with answers of the same lengths by the same model file, in turns: (a) as "
        "upstream does, one at a time on a llama-server, (b) as upstream's run_async does, (c) "
        "with asyncio.gather and one client, (d) with llama_cpp.Llama in a loop, and with this "
        "project (e) on its own server, (f) in process, one at a time, (g) in process, batched. "
        "For the last three it also says how fast they could be at best. Nothing is downloaded; "
        "servers listen on 127.0.0.1 and are stopped afterwards.",
        shown,
    )
    _add_options(workload)
    return bench


def _add_options(workload: argparse.ArgumentParser) -> None:
    default = WorkloadOptions()
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    workload.add_argument(
        "--agents", nargs="+", default=list(default.agents), **number,
        help="numbers of LLM agents, a workload each (default: 12)",
    )  # fmt: skip
    workload.add_argument(
        "--steps", default=default.steps, **number, help="steps that are recorded (default: 2)"
    )
    workload.add_argument(
        "--rounds", default=default.rounds, **number,
        help="how often each way has its turn; medians are shown (default: 3)",
    )  # fmt: skip
    workload.add_argument(
        "--ways", nargs="+", choices=LETTERS, default=list(default.ways),
        help="only these ways (default: all)",
    )  # fmt: skip
    workload.add_argument(
        "--slots", **number,
        help="answers at once, on servers and in process (default: what a run takes by itself)",
    )  # fmt: skip
    workload.add_argument("--threads", **number, help="CPU threads (default: one per CPU)")
    workload.add_argument("--model", type=Path, metavar="FILE", help="a GGUF file to measure with")
    workload.add_argument(
        "--preset", default=default.preset, metavar="NAME",
        help="the model that is written to models/ and used without --model: bench (126 million "
        "parameters), bench-1b (1.1 billion) or demo (5 million); Q4_K_M where llama-cpp-python is "
        "installed (default: bench)",
    )  # fmt: skip
    workload.add_argument(
        "--prompt-layout", nargs="+", choices=LAYOUTS, default=list(default.layouts),
        help="layouts of the prompts; ways a to d have upstream's alone (default: upstream)",
    )  # fmt: skip
    workload.add_argument(
        "--output-tokens", **number,
        help="tokens of every answer (default: as recorded, about 64 on average)",
    )  # fmt: skip
    workload.add_argument(
        "--requests", **number, help="only the first N questions of each workload"
    )
    workload.add_argument(
        "--whole-runs", action="store_true",
        help="also time whole runs: upstream's `swarm run` against ours",
    )  # fmt: skip
    workload.add_argument(
        "--json", nargs="?", const=STDOUT, metavar="FILE",
        help="write all numbers as JSON, to standard output without FILE",
    )  # fmt: skip
    workload.add_argument(
        "--markdown", metavar="FILE[#NAME]",
        help="write the tables there as Markdown; with NAME between the lines "
        "<!-- begin: NAME --> and <!-- end: NAME --> of a file that is there",
    )  # fmt: skip
    workload.add_argument("--debug", action="store_true", help="show tracebacks")


def workload_options(args: argparse.Namespace) -> WorkloadOptions:
    """Return what the command line says."""
    return WorkloadOptions(
        agents=tuple(dict.fromkeys(args.agents)),
        steps=args.steps,
        rounds=args.rounds,
        slots=args.slots,
        ways=tuple(sorted(set(args.ways))),
        model=args.model,
        preset=args.preset,
        threads=args.threads,
        layouts=tuple(dict.fromkeys(args.prompt_layout)),
        output_tokens=args.output_tokens,
        requests=args.requests,
        whole_runs=args.whole_runs,
        json=args.json,
        markdown=args.markdown,
    )


def check(options: WorkloadOptions) -> None:
    """Check everything that can be wrong before anything is started or written.

    Raises:
        ConfigError: An option, with its value and what is allowed.
        ServerError: A way needs a llama-server, and there is none.
    """
    from scheduler.gguf_file import read_gguf_header
    from scheduler.gguf_shape import shape_of
    from scheduler.server import find_server
    from swarm_integration.bench.document import Place
    from swarm_integration.bench.workload import MAX_TOKENS

    _check_range("--agents", options.agents, 1, _MOST_AGENTS)
    _check_range("--steps", [options.steps], 1, 1000)
    _check_range("--rounds", [options.rounds], 1, 1000)
    for name, value, most in (
        ("--slots", options.slots, 256),
        ("--threads", options.threads, 4 * cpus()),
        ("--output-tokens", options.output_tokens, MAX_TOKENS),
        ("--requests", options.requests, 10**6),
    ):
        if value is not None:
            _check_range(name, [value], 1, most)
    if options.model is None:
        shape_of(options.preset)
        _check_package("gguf", "the model that is measured with is written by it", "demo")
    else:
        read_gguf_header(options.model)
    _check_package("swarm", "the prompts come from a SWARM simulation", "swarm")
    if set(options.ways) & set("dfg"):
        _check_package("llama_cpp", "ways d, f and g run in process", "llama-cpp")
    if set(options.ways) & set("abce") or options.whole_runs:
        find_server()
    if options.json != STDOUT:
        _check_package("rich", "the tables are drawn with it; or give --json", "report")
    if options.json not in (None, STDOUT):
        _check_writable("--json", Path(str(options.json)))
    if options.markdown is not None:
        place = Place.of(options.markdown)
        _check_writable("--markdown", place.path)
        place.check()


def command_of(options: WorkloadOptions) -> str:
    """Return the command that measures this, for standing beside its numbers."""
    default = WorkloadOptions()
    words = ["swarm-inference bench workload"]
    for field in fields(options):
        value = getattr(options, field.name)
        if value == getattr(default, field.name) or field.name in {"json", "markdown"}:
            continue
        name = {"layouts": "prompt-layout"}.get(field.name, field.name.replace("_", "-"))
        values = [] if value is True else value if isinstance(value, tuple) else [value]
        shown = [each.name if isinstance(each, Path) else str(each) for each in values]
        words.append(" ".join([f"--{name}", *shown]))
    return " ".join(words)


def cpus() -> int:
    """Return how many CPUs this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _check_range(name: str, values: Sequence[int], least: int, most: int) -> None:
    from scheduler.errors import ConfigError

    for value in values:
        if not least <= value <= most:
            raise ConfigError(f"{name} is {value}; it must be from {least} to {most}")


def _check_package(module: str, why: str, extra: str) -> None:
    from scheduler.errors import ConfigError

    if find_spec(module) is None:
        raise ConfigError(
            f"{module} is not installed, and {why}. "
            f'Install it with: pip install "swarm-inference-scheduler[{extra}]"'
        )


def _check_writable(name: str, path: Path) -> None:
    from scheduler.errors import ConfigError

    if path.is_dir():
        raise ConfigError(f"{name} {path} is a directory; name a file")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{name} {path}: there is no directory {path.parent}; make it first")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ConfigError(f"{name} {path} can't be written")
