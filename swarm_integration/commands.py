"""The `swarm-inference` command: servers, models and the demo.

Each subcommand is one function that returns an exit code; with `--json` it prints
one JSON object on standard output instead of text.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import anyio

from scheduler.errors import ConfigError, SchedulerError
from swarm_integration.cli import EXIT_ABORTED, EXIT_BAD_INPUT, EXIT_INTERRUPTED
from swarm_integration.hashseed import restart_with_fixed_hash_seed

DEFAULT_PORT = 8080
DEFAULT_CONTEXT = 4096


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `swarm-inference`; return its exit code."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 0
    if args.command in {"demo", "replay"} and arguments is None:
        restart_with_fixed_hash_seed()
    try:
        code: int = args.run(args)
    except SchedulerError as exc:
        if args.debug:
            raise
        print(f"error: {exc}", file=sys.stderr)
        return EXIT_BAD_INPUT if isinstance(exc, ConfigError) else EXIT_ABORTED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="swarm-inference",
        description="Servers, models and the demo of the inference scheduler. "
        "A simulation is run with: swarm run SCENARIO --inference-scheduler batch",
    )
    parser.add_argument("--version", action="version", version=version("swarm-inference-scheduler"))
    commands = parser.add_subparsers(dest="command", title="commands")

    demo = commands.add_parser("demo", help="one batched SWARM run on a small model, from nothing")
    demo.add_argument("--slots", type=int, default=4, help="slots of the server (default: 4)")
    demo.add_argument("--seed", type=int, default=42, help="seed of the run (default: 42)")
    demo.add_argument("--run-dir", type=Path, metavar="DIR", help="where the run writes")
    demo.set_defaults(run=_demo)

    serve = commands.add_parser("serve", help="start a llama-server on 127.0.0.1 for several runs")
    serve.add_argument("--model", type=Path, required=True, metavar="FILE", help="GGUF file")
    serve.add_argument("--slots", type=int, default=4, help="requests at once (default: 4)")
    serve.add_argument(
        "--context-per-slot",
        type=int,
        default=DEFAULT_CONTEXT,
        metavar="N",
        help=f"tokens of prompt and answer that a slot holds (default: {DEFAULT_CONTEXT})",
    )
    serve.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 picks a free one")
    serve.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    serve.add_argument("--n-gpu-layers", type=int, default=0, metavar="N", help="layers on the GPU")
    serve.add_argument("--alias", metavar="NAME", help="the model name that the server reports")
    serve.add_argument("--server", metavar="PATH", help="the llama-server program to use")
    serve.add_argument("--log", type=Path, default=Path("runs/server.log"), metavar="FILE")
    serve.set_defaults(run=_serve)

    model = commands.add_parser("make-model", help="write a small GGUF model with random weights")
    model.add_argument("--preset", choices=["demo", "bench"], default="demo")
    model.add_argument("--output", type=Path, metavar="FILE", help="default: models/PRESET.gguf")
    model.add_argument("--seed", type=int, default=0, help="seed of the weights (default: 0)")
    model.set_defaults(run=_make_model)

    replay = commands.add_parser(
        "replay", help="run a run again from its journal, without a model, and compare"
    )
    replay.add_argument("run_dir", type=Path, metavar="DIR", help="the run's directory")
    replay.add_argument(
        "--trust-scenario",
        action="store_true",
        help="replay a scenario that starts programs or calls servers of its own too",
    )
    replay.set_defaults(run=_replay)

    report = commands.add_parser(
        "report", help="show a run, or several side by side, and write an HTML page of it"
    )
    report.add_argument("run_dirs", type=Path, nargs="+", metavar="DIR", help="a run's directory")
    report.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page (default: DIR/report.html; for several runs comparison.html in the first)",
    )
    report.add_argument("--no-html", action="store_true", help="write no page")
    report.add_argument("--png", type=Path, metavar="FILE", help="also a picture for papers")
    report.add_argument(
        "--trace", type=Path, metavar="FILE", help="also a trace for ui.perfetto.dev"
    )
    report.set_defaults(run=_report)

    for command in (demo, serve, model, replay, report):
        command.add_argument("--json", action="store_true", help="print one JSON object")
        command.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _demo(args: argparse.Namespace) -> int:
    from swarm_integration.demo import DemoOptions, demo

    return demo(DemoOptions(args.slots, args.seed, args.run_dir, as_json=args.json))


def _serve(args: argparse.Namespace) -> int:
    from scheduler.server import ManagedServer, ServerSpec, find_server

    spec = ServerSpec(
        model_path=args.model,
        slots=args.slots,
        ctx_per_slot=args.context_per_slot,
        port=args.port,
        threads=args.threads,
        n_gpu_layers=args.n_gpu_layers,
        alias=args.alias,
    )
    binary = find_server(args.server)
    args.log.parent.mkdir(parents=True, exist_ok=True)

    async def serve() -> int:
        async with ManagedServer(spec, binary=binary, log_path=args.log) as server:
            facts = {"base_url": server.base_url, "pid": server.pid, "log": str(args.log)}
            text = (
                f"llama-server ({binary.kind}) is ready at {server.base_url}: {spec.slots} slots "
                f"of {spec.ctx_per_slot} tokens, log in {args.log}. Ctrl-C stops it."
            )
            print(json.dumps(facts) if args.json else text, flush=True)
            while server.poll() is None:  # noqa: ASYNC110  # a child's end sets no event
                await anyio.sleep(0.5)
            print(f"error: the server has ended; see {args.log}", file=sys.stderr)
            return EXIT_ABORTED

    return anyio.run(serve)


def _make_model(args: argparse.Namespace) -> int:
    from scheduler.gguf_models import ensure_model

    path = args.output or Path("models") / f"{args.preset}.gguf"
    if args.output is None:
        path.parent.mkdir(exist_ok=True)
    facts = ensure_model(path, args.preset, seed=args.seed)
    if args.json:
        print(json.dumps({**asdict(facts), "path": str(facts.path)}))
    else:
        print(f"{facts.path}: random weights, {facts.parameters:,} parameters, {facts.sha256}")
    return 0


def _replay(args: argparse.Namespace) -> int:
    from swarm_integration.replay import replay

    found = replay(args.run_dir, trust_scenario=args.trust_scenario)
    if args.json:
        print(json.dumps(asdict(found)))
    elif found.problem is None:
        print(f"{found.questions} questions replayed: transcript and metrics are identical")
        print(f"Trace hash: {found.trace_hash}")
    else:
        print(f"error: the replay differs: {found.problem}", file=sys.stderr)
    return 0 if found.problem is None else EXIT_ABORTED


def _report(args: argparse.Namespace) -> int:
    from swarm_integration.report.command import ReportOptions, report

    options = ReportOptions(
        args.run_dirs, args.output, not args.no_html, args.png, args.trace, as_json=args.json
    )
    report(options, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
