"""The options of `swarm-inference certify`; apart, so that `--help` imports no backend."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

DEFAULT_SEED = 42
DEFAULT_TRIALS = 2


@dataclass(frozen=True, slots=True)
class CertifyOptions:
    """What the command line asked for.

    Attributes:
        config_file: `--inference-config`.
        slots: How many requests at once; several only with `--run`.
        base_url: A llama-server, or the endpoint where the file says `kind: openai`.
        model: A GGUF file, in this process unless the file says `managed: true`.
        context: Tokens per slot.
        threads: CPU threads.
        trials: How often the whole plan is asked.
        quick: Fewer and shorter prompts; with `scenario`, fewer cells.
        output: Where the certificate is written as well.
        as_json: Print JSON.
        scenario: Repeat a whole run of it instead.
        run_options: Words for `swarm run` there.
    """

    config_file: Path | None = None
    slots: tuple[int, ...] = ()
    base_url: str | None = None
    model: Path | None = None
    context: int | None = None
    threads: int | None = None
    trials: int = DEFAULT_TRIALS
    quick: bool = False
    output: Path | None = None
    as_json: bool = False
    scenario: Path | None = None
    run_options: tuple[str, ...] = ("--seed", str(DEFAULT_SEED))


def add_certify_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to its parser."""
    parser.add_argument("--inference-config", type=Path, metavar="FILE", help="as `swarm run` has")
    parser.add_argument("--base-url", metavar="URL", help="a llama-server that runs already")
    parser.add_argument("--model", type=Path, metavar="FILE", help="a GGUF file, in this process")
    parser.add_argument(
        "--slots",
        type=_counts,
        default=(),
        metavar="N",
        help="requests at once; with --run several, as in 1,4,16",
    )
    parser.add_argument("--context", type=_count, metavar="N", help="tokens per slot")
    parser.add_argument("--threads", type=_count, metavar="N", help="CPU threads")
    parser.add_argument(
        "--trials",
        type=_count,
        default=DEFAULT_TRIALS,
        metavar="N",
        help=f"how often everything is asked (default: {DEFAULT_TRIALS})",
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter prompts, or cells")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the certificate there as well"
    )
    run = parser.add_argument_group("a whole run instead of single prompts")
    run.add_argument(
        "--run",
        type=Path,
        dest="scenario",
        metavar="SCENARIO",
        help="run it in fresh processes over hash seeds and slots and compare the trace hashes",
    )
    run.add_argument("--seed", type=int, default=DEFAULT_SEED, help="seed of the runs")
    run.add_argument("--epochs", type=_count, metavar="N", help="beats the scenario's number")
    run.add_argument("--steps", type=_count, metavar="N", help="beats the scenario's number")


def certify_options(args: argparse.Namespace) -> CertifyOptions:
    """Return the options that were parsed."""
    run_options = ["--seed", str(args.seed)]
    for name, value in (("--epochs", args.epochs), ("--steps", args.steps)):
        run_options += [] if value is None else [name, str(value)]
    return CertifyOptions(
        config_file=args.inference_config,
        slots=args.slots,
        base_url=args.base_url,
        model=args.model,
        context=args.context,
        threads=args.threads,
        trials=args.trials,
        quick=args.quick,
        output=args.output,
        as_json=args.json,
        scenario=args.scenario,
        run_options=tuple(run_options),
    )


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from exc
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is below 1")
    return number


def _counts(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_count(part) for part in text.split(",")))
