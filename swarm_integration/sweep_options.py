"""The options of `swarm sweep`, and what its `--help` says."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from swarm_integration.help_texts import examples

Number = Callable[[str], int]


def sweep_parser(
    *, count: Number, slots: Callable[[str], int | str], port: Number
) -> argparse.ArgumentParser:
    """Return the parser.

    Args:
        count: Reads a whole number, 1 or more.
        slots: Reads a number of slots, or `auto`.
        port: Reads a port.
    """
    parser = argparse.ArgumentParser(
        prog="swarm sweep",
        description="Run many variants and seeds of one scenario, several runs at a time on one "
        "set of backends, and write their metrics, means and confidence intervals.",
        epilog=examples(
            {
                "swarm sweep scenarios/llm_batch_12.yaml --seeds 42-57 --jobs 8 "
                "--inference-config configs/managed_server.yaml --output results/seeds.csv": (
                    "16 seeds, 8 at a time on one server"
                ),
                "swarm sweep scenarios/llm_batch_12.yaml --param governance.transaction_tax "
                "--values 0.0,0.05 --replications 5 --output results/tax.csv": (
                    "two values of one parameter, 5 runs each"
                ),
                "swarm sweep scenarios/sweep_tax.yaml --inference-config configs/fake.yaml": (
                    "a sweep that is described in a file"
                ),
            }
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("scenario", type=Path, metavar="FILE", help="a scenario, or a sweep with base_scenario")
    add(
        "--param",
        action="append",
        metavar="NAME[:V1,V2]",
        help="what varies, such as governance.transaction_tax:0.0,0.05 or agents[0].count:1,2; "
        "several times for every combination",
    )
    add("--values", metavar="V1,V2", help="the values, where --param names one parameter alone")
    add(
        "--replications",
        type=count,
        metavar="N",
        help="runs for each point, with the scenario's seed and the numbers after it (default: 1)",
    )
    add("--seeds", metavar="LIST", help="the seeds of each point instead: 42-57, or 1,2,10-12")
    add(
        "--output",
        default="results/",
        metavar="PATH",
        help="a file that ends in .csv, or a folder (default: results/)",
    )
    add("--jobs", type=count, default=1, metavar="K", help="runs at a time (default: 1)")
    add(
        "--resume",
        action="store_true",
        help="go on with the sweep at --output; finished runs are not run again",
    )
    add("--epochs", type=count, metavar="N", help="in place of the scenario's n_epochs")
    add("--steps", type=count, metavar="N", help="in place of the scenario's steps_per_epoch")
    add(
        "--inference-scheduler",
        choices=["batch", "serial"],
        default="serial",
        help="batch: all agents of a step decide at once; serial: one after the other, which is "
        "upstream's order (default: serial)",
    )
    add("--inference-config", type=Path, metavar="FILE", help="settings; see configs/*.yaml")
    add("--slots", type=slots, metavar="N", help="requests that run at once, or auto")
    add("--max-batch", type=count, metavar="N", help="requests ordered and handed over together")
    add("--metrics-port", type=port, metavar="PORT", help="show metrics to Prometheus there")
    add("--no-plot", action="store_true", help="draw no picture")
    add("--json", action="store_true", help="print one JSON object")
    add("-q", "--quiet", action="store_true", help="print nothing but what went wrong")
    add("--debug", action="store_true", help="show the traceback when something goes wrong")
    return parser
