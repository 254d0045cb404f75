"""One trace hash whatever the hash seed, the slots, the delays and the faults.

The whole matrix is `benchmarks/determinism_matrix.py`; what makes its cells worth
something, that unrepaired runs differ, is in `test_reproducible.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SCENARIOS = ("council", "feed_votes_and_proposals", "perturbed")


def test_three_cells_have_one_trace_hash_and_one_set_of_metrics() -> None:
    program = [sys.executable, str(ROOT / "benchmarks/determinism_matrix.py"), "--quick", "--json"]
    paths = [str(ROOT / f"tests/swarm/reproducible/{name}.yaml") for name in SCENARIOS]
    done = subprocess.run(
        [*program, *paths], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert len(found["cells"]) == 3
    for one in found["scenarios"]:
        assert (len(one["trace_hashes"]), len(one["metrics"])) == (1, 1), one
    assert done.returncode == 0
