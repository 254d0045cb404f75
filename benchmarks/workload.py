"""Serves the prompts of one simulation in seven ways: `swarm-inference bench workload`.

    python benchmarks/workload.py [the options of `swarm-inference bench workload`]

The same command from a checkout; what it does is in `swarm_integration/bench/`, so that it comes
with the installed package.
"""

from __future__ import annotations

import sys

from swarm_integration.commands import main

if __name__ == "__main__":
    sys.exit(main(["bench", "workload", *sys.argv[1:]]))
