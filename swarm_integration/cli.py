"""The `swarm` command: upstream's, plus our options on `run`, plus `sweep`.

Without `--inference-scheduler` upstream's command runs untouched, exit codes
included. With it our options are taken out, upstream parses the rest, and its
`run` is carried out with our run in place of the orchestrator's own. What takes long to
import is imported inside the guard (see `ending.py`).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarm_integration.ending import guarded, terminable
from swarm_integration.hashseed import restart_with_fixed_hash_seed

if TYPE_CHECKING:
    from swarm_integration.run import Run

_OPTION = "--inference-scheduler"

_ABOUT = """\
With swarm-inference-scheduler:
  swarm run SCENARIO --inference-scheduler batch   all agents' prompts of a step together; see
                                                   swarm run --help
  swarm sweep BASE --seeds 42-57 --jobs 8          many variants and seeds; see swarm sweep --help
  swarm-inference --help                           servers, models, reports, replays, measurements

and upstream's own:
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the `swarm` command; return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(
        lambda: _main(given, whole_process=arguments is None),
        debug="--debug" in given,
        help_command=" ".join(["swarm", *given[:1], "--help"]),
    )


def _main(given: list[str], *, whole_process: bool) -> int:
    if given[:1] == ["run"]:
        if {"-h", "--help"} & set(given):
            _print_our_help()
        if any(word == _OPTION or word.startswith(f"{_OPTION}=") for word in given):
            if whole_process:
                restart_with_fixed_hash_seed()
            with terminable():
                return _scheduled_run(given)
        _check_not_ours(given)
    if given[:1] == ["sweep"]:
        with terminable():
            return _sweep(given, whole_process=whole_process)
    if not given or {"-h", "--help"} & set(given[:1]):
        print(_ABOUT, flush=True)
    from swarm_integration import compat

    if whole_process:
        return compat.upstream_main()
    with compat.upstream_command(
        run=lambda args, cmd_run: cmd_run(args), build=lambda scenario, build: build(scenario)
    ) as upstream:
        return upstream(given)


def _check_not_ours(given: list[str]) -> None:
    """Check that no option is there which upstream does not know."""
    from scheduler.errors import ConfigError

    ours = set(our_options()._option_string_actions)  # argparse says it nowhere else
    for word in given:
        if word.partition("=")[0] in ours - {"--debug"}:
            raise ConfigError(
                f"{word.partition('=')[0]} is an option of the inference scheduler, which runs "
                "only when it is asked for. Add --inference-scheduler batch (or serial)"
            )


def sweep_options() -> argparse.ArgumentParser:
    """Return the parser of `swarm sweep`."""
    from swarm_integration.sweep_options import sweep_parser

    return sweep_parser(count=_count, slots=_slots, port=_port)


def _sweep(given: list[str], *, whole_process: bool) -> int:
    args = sweep_options().parse_args(given[1:])
    if whole_process:
        restart_with_fixed_hash_seed()
    from swarm_integration.sweep.command import sweep

    return sweep(args, given)


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
        "--max-batch", type=_count, metavar="N", help="requests ordered and handed over together"
    )
    group.add_argument(
        "--metrics-port",
        type=_port,
        metavar="PORT",
        help="show metrics to Prometheus at http://127.0.0.1:PORT/metrics; 0 picks a free port",
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
    return "auto" if text == "auto" else _whole(text, range(1, sys.maxsize), "auto, or ")


def _count(text: str) -> int:
    return _whole(text, range(1, sys.maxsize))


def _port(text: str) -> int:
    return _whole(text, range(65536))


def _whole(text: str, allowed: range, other: str = "") -> int:
    """Return the number that an option gives.

    Raises:
        ArgumentTypeError: It is none of those allowed; argparse names the option.
    """
    try:
        value = int(text)
    except ValueError:
        value = allowed.start - 1
    if value not in allowed:
        most = "or more" if allowed.stop == sys.maxsize else f"to {allowed.stop - 1}"
        limits = f"{allowed.start} {most}"
        raise argparse.ArgumentTypeError(f"must be {other}a whole number, {limits}; got {text!r}")
    return value


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

    from swarm_integration import compat

    with compat.upstream_command(run=run, build=build) as command:
        return command(rest)


def _run(
    ours: argparse.Namespace, args: Any, cmd_run: Callable[[Any], int], current: list[Run]
) -> int:
    from scheduler.config import load_config
    from scheduler.errors import ConfigError
    from swarm_integration.config import InferenceConfig
    from swarm_integration.outputs import check_targets
    from swarm_integration.run import RunOptions, open_run

    if ours.resume and ours.run_dir is None:
        raise ConfigError("--resume needs --run-dir DIR, the directory of the run to go on with")
    check_targets(args)
    flags = {
        "scheduler.slots": ours.slots,
        "scheduler.max_batch": ours.max_batch,
        "metrics.port": ours.metrics_port,
    }
    options = RunOptions(
        mode=ours.inference_scheduler,
        scenario=Path(args.scenario),
        config=load_config(InferenceConfig, ours.inference_config, flags),
        run_dir=ours.run_dir,
        resume=ours.resume,
        overrides={"seed": args.seed, "n_epochs": args.epochs, "steps_per_epoch": args.steps},
        quiet=args.quiet,
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
