"""The `swarm-inference` command: servers, models, the demo and the doctor.

Each subcommand is one function that returns an exit code; with `--json` it prints
one JSON object on standard output instead of text. Nothing of `scheduler` is imported
before it is known that this name is ours.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from swarm_integration.bench.options import bench_options
from swarm_integration.certify_options import certify_options
from swarm_integration.clash import find_clash
from swarm_integration.command_options import (
    certify_parser,
    demo_options,
    doctor_options,
    make_model_options,
    replay_options,
    report_options,
    serve_options,
)
from swarm_integration.ending import EXIT_ABORTED, guarded, terminable
from swarm_integration.hashseed import restart_with_fixed_hash_seed
from swarm_integration.help_texts import examples


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `swarm-inference`; return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = ["swarm-inference", *given[:1], "--help"]
    return guarded(
        lambda: _main(given, whole_process=arguments is None),
        debug="--debug" in given,
        help_command=" ".join(words),
    )


def _main(given: list[str], *, whole_process: bool) -> int:
    parser = _parser()
    args = parser.parse_args(given)
    if args.command is None:
        parser.print_help()
        return 0
    return _run(args, whole_process=whole_process)


def _run(args: argparse.Namespace, *, whole_process: bool) -> int:
    clash = find_clash()
    if clash is None:
        try:
            if args.command in {"demo", "replay"} and whole_process:
                restart_with_fixed_hash_seed()
            with terminable():
                code: int = args.run(args)
        except ImportError:
            clash = find_clash(thorough=True)
            if clash is None or args.debug:
                raise
        else:
            return code
    return _clash(args, str(clash))


def _clash(args: argparse.Namespace, text: str) -> int:
    """Say that `import scheduler` gives something else; no subcommand can run."""
    if args.command == "doctor" and args.json:
        print(json.dumps({"ok": False, "errors": 1, "checks": [{"level": "error", "says": text}]}))
    else:
        print(text, file=sys.stderr)
    return EXIT_ABORTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="swarm-inference",
        description="Servers, models and the demo of the inference scheduler. "
        "A simulation is run with: swarm run SCENARIO --inference-scheduler batch",
        epilog=examples(
            {
                "swarm-inference demo": "see a batched run on a small model, from nothing",
                "swarm-inference doctor": "see what is missing on this machine",
                "swarm-inference serve --help": "what a command takes, with examples",
            }
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("swarm-inference-scheduler"))
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    subcommands = (
        (demo_options(commands), _demo),
        (serve_options(commands), _serve),
        (make_model_options(commands), _make_model),
        (replay_options(commands), _replay),
        (doctor_options(commands), _doctor),
        (report_options(commands), _report),
        (certify_parser(commands), _certify),
        (bench_options(commands), _bench),
    )
    for command, run in subcommands:
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="print one JSON object")
        command.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _demo(args: argparse.Namespace) -> int:
    from swarm_integration.demo import DemoOptions, demo

    return demo(DemoOptions(args.slots, args.seed, args.run_dir, as_json=args.json))


def _serve(args: argparse.Namespace) -> int:
    from swarm_integration.serve import ServeOptions, serve

    words = {name: getattr(args, name) for name in ServeOptions.__slots__ if name != "as_json"}
    return serve(ServeOptions(**words, as_json=args.json))


def _doctor(args: argparse.Namespace) -> int:
    from swarm_integration.doctor.case import DoctorOptions
    from swarm_integration.doctor.examination import doctor

    return doctor(
        DoctorOptions(
            args.scenario, args.inference_config, args.base_url, args.model, args.fix, args.json
        )
    )


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


def _certify(args: argparse.Namespace) -> int:
    from swarm_integration.certify import certify_backend
    from swarm_integration.certify_run import certify_run

    options = certify_options(args)
    return certify_run(options.scenario, options) if options.scenario else certify_backend(options)


def _replay(args: argparse.Namespace) -> int:
    from swarm_integration.replay import replay

    found = replay(args.run_dir, journal=args.journal, trust_scenario=args.trust_scenario)
    if args.json:
        print(json.dumps(asdict(found)))
    elif found.problem is None:
        print(f"{found.questions} questions replayed: transcript and metrics are identical")
        print(f"Trace hash: {found.trace_hash}")
    else:
        print(f"error: the replay differs: {found.problem}", file=sys.stderr)
    return 0 if found.problem is None else EXIT_ABORTED


def _bench(args: argparse.Namespace) -> int:
    from swarm_integration.bench.command import bench_workload
    from swarm_integration.bench.options import workload_options

    return bench_workload(workload_options(args))


def _report(args: argparse.Namespace) -> int:
    from swarm_integration.report.command import ReportOptions, report

    options = ReportOptions(
        args.run_dirs, args.output, not args.no_html, args.png, args.trace, as_json=args.json
    )
    report(options, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
