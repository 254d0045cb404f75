"""`swarm-inference certify --run SCENARIO`: whether a whole run is one, however it is run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from swarm_integration.certify import effective_config
from swarm_integration.certify_options import CertifyOptions
from swarm_integration.ending import EXIT_ABORTED
from swarm_integration.matrix import SLOTS, Plan, fake_cells, measure, model_cells


def certify_run(scenario: Path, options: CertifyOptions) -> int:
    """Run a scenario in many ways and print the table; return the exit code.

    Args:
        scenario: Its file.
        options: The backend, the numbers of slots, and whether to be quick.

    Raises:
        ConfigError: A cell can't be run.
        SchedulerError: A cell's run was aborted.
    """
    config = effective_config(options, slots=None)
    fake = config.backend.kind == "fake"
    ours = fake or config.backend.managed
    slots = options.slots or (SLOTS if ours else ())
    cells = (fake_cells if fake else model_cells)(slots, quick=options.quick)
    plan = Plan([scenario], config, cells, options=options.run_options, at_once=2 if fake else 1)
    found = measure(plan)
    print(json.dumps(found) if options.as_json else "\n".join(table(found)))
    return 0 if found["equal"] else EXIT_ABORTED


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that show what `matrix.measure` found, cell by cell."""
    yield "{cores} cores, {machine}, Python {python}; each cell is a fresh process".format(**found)
    for one in found["scenarios"]:
        yield f"{one['scenario']}, answered by {one['runs'][0]['backend'] or 'nobody'}"
        yield (
            f"{'PYTHONHASHSEED':14} {'slots':>6} {'delays':>8} {'faults':>7}  "
            f"{'trace hash':16}  {'metrics':16}"
        )
        for run in one["runs"]:
            slots = "-" if run["slots"] is None else run["slots"]
            yield (
                f"{run['hash_seed']:14} {slots:>6} {run['latency_s'] * 1000:5.0f} ms "
                f"{run['fault_rate']:7.0%}  {run['trace_hash'][:16]}  {run['metrics'][:16]}"
            )
        counts = len(one["trace_hashes"]), len(one["metrics"])
        if one["equal"]:
            yield "ONE trace hash and one set of metrics"
        else:
            yield f"{counts[0]} trace hashes and {counts[1]} sets of metrics: DIFFERENT"
