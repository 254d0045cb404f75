"""The process of one turn: `python -m swarm_integration.bench.turn TURN.json`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import anyio

from swarm_integration.bench.turns import Measured, Served, Turn
from swarm_integration.bench.workload import load_workload


def main(path: Path) -> None:
    """Do what the file says and write the result beside it."""
    turn = Turn(**json.loads(path.read_text(encoding="utf-8")))
    turn.result.write_text(json.dumps(asdict(_done(turn))), encoding="utf-8")


def _done(turn: Turn) -> Served | Measured:
    workload = load_workload(Path(turn.workload))
    match turn.part:
        case "a" | "b" | "c":
            from swarm_integration.bench.others import serve_on_server

            return serve_on_server(turn, workload)
        case "d":
            from swarm_integration.bench.library import serve_in_loop

            return serve_in_loop(turn, workload)
        case "e" | "f" | "g":
            from swarm_integration.bench.ours import serve_ours

            return anyio.run(serve_ours, turn, workload)
        case "rates-server":
            from swarm_integration.bench.rates_server import measure_server

            return anyio.run(measure_server, turn, workload)
        case "rates-inproc":
            from swarm_integration.bench.rates_inproc import measure_inproc

            return measure_inproc(turn, workload)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
