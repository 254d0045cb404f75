"""The `swarm` command: upstream's, plus our options on `run`.

Without `--inference-scheduler` upstream's command runs untouched, exit codes
included. With it our options are taken out, upstream parses the rest, and its
`run` is carried out with our run in place of the orchestrator's own.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scheduler.config import load_config
from scheduler.errors import ConfigError, SchedulerError
from swarm_integration import compat
from swarm_integration.config import InferenceConfig
from swarm_integration.hashseed import restart_with_fixed_hash_seed

if TYPE_CHECKING:
    from swarm_integration.run import Run

EXIT_ABORTED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

_OPTION = "--inference-scheduler"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `swarm` command; return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["run"]:
        if {"-h", "--help"} & set(given):
            _print_our_help()
        if any(word == _OPTION or word.startswith(f"{_OPTION}=") for word in given):
            if arguments is None:
                restart_with_fixed_hash_seed()
            return _scheduled_run(given)
    if arguments is None:
        return _guarded(compat.upstream_main)
    with compat.upstream_command(
        run=lambda args, cmd_run: cmd_run(args), build=lambda scenario, build: build(scenario)
    ) as upstream:
        return _guarded(lambda: upstream(given))


def our_options() -> argparse.ArgumentParser:
    """Return the parser of the options that this project adds to `swarm run`."""
    parser = argparse.ArgumentParser(
        prog="swarm run", add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS
    )
    group = parser.add_argument_group("inference scheduler")
    group.add_argument(
        _OPTION,
        choices=["batch", "serial"],
        help="run through the inference scheduler; batch: all agents of a step decide at once; "
        "serial: one after the other, each seeing the effects of those before it",
    )
    group.add_argument(
        "--inference-config", type=Path, metavar="FILE", help="settings; see configs/*.yaml"
    )
    group.add_argument(
        "--slots", type=_slots, metavar="N", help="requests that run at once, or auto"
    )
    group.add_argument(
        "--max-batch", type=int, metavar="N", help="requests ordered and handed over together"
    )
    group.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="where to write (default: a new one in runs/)"
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --run-dir: what was answered is not asked again",
    )
    group.add_argument(
        "--debug", action="store_true", help="show the traceback when something goes wrong"
    )
    return parser


def _slots(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number or auto") from exc


def _print_our_help() -> None:
    print(our_options().format_help())
    print("and upstream's own:\n")
    sys.stdout.flush()


def _scheduled_run(given: list[str]) -> int:
    ours, rest = our_options().parse_known_args(given)
    current: list[Run] = []

    def run(args: Any, cmd_run: Callable[[Any], int]) -> int:
        return _run(ours, args, cmd_run, current)

    def build(scenario: Any, build_orchestrator: Callable[[Any], Any]) -> Any:
        if not current:
            return build_orchestrator(scenario)
        return current[-1].build(scenario, build_orchestrator)

    def upstream() -> int:
        with compat.upstream_command(run=run, build=build) as command:
            return command(rest)

    return _guarded(upstream, debug=ours.debug)


def _run(
    ours: argparse.Namespace, args: Any, cmd_run: Callable[[Any], int], current: list[Run]
) -> int:
    from swarm_integration.run import RunOptions, open_run

    if ours.resume and ours.run_dir is None:
        raise ConfigError("--resume needs --run-dir DIR, the directory of the run to go on with")
    flags = {"scheduler.slots": ours.slots, "scheduler.max_batch": ours.max_batch}
    options = RunOptions(
        mode=ours.inference_scheduler,
        scenario=Path(args.scenario),
        config=load_config(InferenceConfig, ours.inference_config, flags),
        run_dir=ours.run_dir,
        resume=ours.resume,
        overrides={"seed": args.seed, "n_epochs": args.epochs, "steps_per_epoch": args.steps},
    )
    logging.getLogger("swarm").setLevel(logging.CRITICAL if args.quiet else logging.WARNING)
    with open_run(options) as run:
        args.seed = run.seed
        args.prompt_audit = run.outputs.redirect_audit(args.prompt_audit)
        current.append(run)
        try:
            code = cmd_run(args)
        finally:
            current.clear()
    if not args.quiet:
        print(run.summary)
        print(f"\nRun directory: {run.directory.path}")
        print(f"Trace hash:    {run.directory.trace_hash}")
    return code


def _guarded(command: Callable[[], int], *, debug: bool = False) -> int:
    """Run a command; turn this project's errors into a message and an exit code."""
    try:
        return command()
    except SchedulerError as exc:
        if debug:
            raise
        bad_input = isinstance(exc, ConfigError)
        sys.stdout.flush()
        print(f"error: {exc}", file=sys.stderr)
        return EXIT_BAD_INPUT if bad_input else EXIT_ABORTED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
