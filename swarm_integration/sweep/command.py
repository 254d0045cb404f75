"""`swarm sweep`: its options, and what it prints."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from scheduler.config import load_config
from scheduler.errors import ConfigError
from swarm_integration.config import InferenceConfig
from swarm_integration.ending import EXIT_ABORTED, EXIT_INTERRUPTED
from swarm_integration.sweep.design import SweepConfig, SweepParameter, parse_seeds
from swarm_integration.sweep.file import is_sweep, read_sweep, read_yaml
from swarm_integration.sweep.folder import Folder
from swarm_integration.sweep.parameters import parse_value
from swarm_integration.sweep.plot import SHOWN
from swarm_integration.sweep.results import SweepResults, table
from swarm_integration.sweep.runner import SweepRunner
from swarm_integration.unread import note_of, unread_keys


def sweep(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Run a sweep; return the exit code.

    Args:
        args: The options.
        words: What was typed after `swarm`, to say how to go on.

    Raises:
        ConfigError: Something can't be run; nothing has been started.
    """
    logging.getLogger("swarm").setLevel(logging.CRITICAL if args.quiet else logging.WARNING)
    quiet = args.quiet or args.json
    runner = SweepRunner(
        _config(args),
        args.output,
        jobs=args.jobs,
        resume=args.resume,
        quiet=quiet,
        plot=not args.no_plot,
    )
    results = runner.run()
    base = runner.config.base_scenario
    for note in () if quiet else note_of(base, unread_keys(base)):
        print(note, file=sys.stderr)
    if args.json:
        print(json.dumps(_as_json(results)))
    elif not args.quiet:
        print("\n".join(_shown(results, runner.folder, plot=not args.no_plot)))
    if not results.completed:
        print(_unfinished(results, words), file=sys.stderr)
    if results.interrupted and not results.completed:
        return EXIT_INTERRUPTED
    return 0 if results.completed else EXIT_ABORTED


def _config(args: argparse.Namespace) -> SweepConfig:
    data = read_yaml(args.scenario)
    found: dict[str, Any] = {"base_scenario": args.scenario}
    if is_sweep(data):
        if args.param or args.values is not None:
            raise ConfigError(
                f"{args.scenario} names its parameters itself. Remove --param and --values"
            )
        found = read_sweep(args.scenario, data)
    else:
        found["parameters"] = _parameters(args.param or [], args.values)
    if args.seeds is not None:
        found |= {"seeds": "auto" if args.seeds == "auto" else parse_seeds(args.seeds)}
        found["replications"] = 1
    if args.replications is not None:
        found["replications"] = args.replications
        if args.seeds is None:
            found["seeds"] = "auto"
    flags = {
        "scheduler.slots": args.slots,
        "scheduler.max_batch": args.max_batch,
        "metrics.port": args.metrics_port,
    }
    inference = load_config(InferenceConfig, args.inference_config, flags)
    return SweepConfig(
        **found,
        epochs=args.epochs,
        steps=args.steps,
        mode=args.inference_scheduler,
        inference=inference,
    )


def _parameters(given: Sequence[str], values: str | None) -> tuple[SweepParameter, ...]:
    """Return what `--param` and `--values` say: `NAME:V1,V2`, or one NAME and its values."""
    if values is not None:
        if len(given) != 1 or ":" in given[0]:
            raise ConfigError(
                "--values belongs to one --param NAME. For several parameters write "
                "--param NAME:V1,V2 for each"
            )
        return (_parameter(given[0], values),)
    found = []
    for text in given:
        name, colon, listed = text.partition(":")
        if not colon:
            raise ConfigError(
                f"--param {name} has no values. Write --param {name}:V1,V2 or add --values V1,V2"
            )
        found.append(_parameter(name, listed))
    return tuple(found)


def _parameter(name: str, listed: str) -> SweepParameter:
    try:
        return SweepParameter(name.strip(), tuple(parse_value(one) for one in listed.split(",")))
    except ConfigError as exc:
        raise ConfigError(str(exc) if name in str(exc) else f"parameter {name}: {exc}") from exc


def _shown(results: SweepResults, folder: Folder, *, plot: bool) -> list[str]:
    files = [("Runs", folder.csv), ("Points", folder.summary), ("Picture", folder.picture)]
    lines = [f"Sweep {results.name}: mean ± 95 % confidence interval", "-" * 60]
    lines += table(results, SHOWN)
    lines.append("")
    lines += [f"{name + ':':<9} {path}" for name, path in files if path.exists()]
    if plot and not folder.picture.exists() and any(one.completed for one in results.runs):
        lines.append('Picture:  none; pip install "swarm-inference-scheduler[report]" for one')
    lines.append(f"{'Each run:':<9} {folder.runs}")
    return lines


def _unfinished(results: SweepResults, words: Sequence[str]) -> str:
    """Return a table of the runs that are not completed, and how to go on."""
    left = [one for one in results.runs if not one.completed]
    width = max(len(one.run.name) for one in left)
    lines = [f"{len(left)} of {len(results.runs)} runs are not completed:"]
    for one in left:
        reason = " ".join(str(one.found.get("reason") or "").split())
        lines.append(f"  {one.run.name:<{width}}  {one.state:<12} {reason}".rstrip())
    again = [*words, *([] if "--resume" in words else ["--resume"])]
    lines.append(f"What was answered is kept. To go on: {shlex.join(['swarm', *again])}")
    return "\n".join(lines)


def _as_json(results: SweepResults) -> dict[str, Any]:
    folder = results.folder
    return {
        "name": results.name,
        "completed": results.completed,
        "interrupted": results.interrupted,
        "csv": str(folder.csv),
        "summary_csv": str(folder.summary),
        "picture": str(folder.picture) if folder.picture.exists() else None,
        "runs_folder": str(folder.runs),
        "runs": [{**one.to_dict(), "reason": one.found.get("reason")} for one in results.runs],
        "points": results.summary(),
    }
