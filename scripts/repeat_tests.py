"""Runs tests again and again, each time in another order and with another hash seed.

python scripts/repeat_tests.py 20                # units and simulations, 20 times
python scripts/repeat_tests.py 3 tests           # the whole suite; what follows goes to pytest

Stops at the first failure and says how to repeat it.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
QUIET = ("-q", "--no-header", "-p", "no:cacheprovider")


def unit_tests() -> list[str]:
    """Return the files of the unit and simulation tests: those that start no model."""
    return [*sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/test_*.py"))]


def run_once(tests: Sequence[str], seed: int) -> int:
    """Run `tests` with what `seed` decides and return pytest's exit code."""
    order = ["--random-order", f"--random-order-seed={seed}"]
    command = [sys.executable, "-m", "pytest", *order, *tests]
    done = subprocess.run(  # noqa: S603  # what was typed
        [*command, *QUIET],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        check=False,
    )
    if done.returncode:
        print(f"\nexit code {done.returncode}; to repeat it:")
        print(f"PYTHONHASHSEED={seed} {shlex.join(command)}")
    return done.returncode


def main() -> int:
    """Run the tests as often as asked for, or until they fail."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("times", type=int, metavar="N")
    options, tests = parser.parse_known_args()
    for number in range(1, options.times + 1):
        began = time.monotonic()
        code = run_once(tests or unit_tests(), random.randrange(2**32))
        print(f"run {number} of {options.times}: {time.monotonic() - began:.0f} s", flush=True)
        if code:
            return code
    print(f"{options.times} runs without a failure")
    return 0


if __name__ == "__main__":
    sys.exit(main())
