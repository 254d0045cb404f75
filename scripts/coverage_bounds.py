"""Says how much of the sources the tests take, and fails where that is too little.

coverage json && python scripts/coverage_bounds.py coverage.json

What must not lose or repeat a request has every branch taken: queue, plan, engine, retries
and journal. Of each other module at least 90 %, lines and branches together.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

WHOLE = (
    "scheduler/queue*.py",
    "scheduler/plan*.py",
    "scheduler/places.py",
    "scheduler/engine*.py",
    "scheduler/step.py",
    "scheduler/lane.py",
    "scheduler/answering.py",
    "scheduler/retry.py",
    "scheduler/journal*.py",
)
"""The modules of which every line and branch is taken."""

REST_PERCENT = 90.0


@dataclass(frozen=True, slots=True)
class Module:
    """How much of one module was taken."""

    name: str
    percent: float
    lines: tuple[int, ...]
    branches: tuple[tuple[int, int], ...]

    @property
    def bound(self) -> float:
        """The least that is allowed, in percent."""
        return 100.0 if any(fnmatch(self.name, one) for one in WHOLE) else REST_PERCENT

    @property
    def missing(self) -> str:
        """Lines and branches that were not taken; a branch to a negative line leaves a function."""
        branches = [f"{start}->{end}" for start, end in self.branches]
        return ", ".join([*map(str, self.lines), *branches])


def modules(report: dict[str, Any]) -> list[Module]:
    """Return the modules of a report of `coverage json`, by name."""
    return [
        Module(
            name.replace("\\", "/"),
            one["summary"]["percent_covered"],
            tuple(one["missing_lines"]),
            tuple((start, end) for start, end in one["missing_branches"]),
        )
        for name, one in sorted(report["files"].items())
    ]


def main() -> int:
    """Print each module's share; return 1 where one is below its bound."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path)
    report = json.loads(parser.parse_args().report.read_text(encoding="utf-8"))
    if not report["meta"]["branch_coverage"]:
        parser.error("the report has no branches; measure with `coverage run --branch`")
    found = modules(report)
    for one in found:
        sign = "!" if one.percent < one.bound else " "
        print(
            f"{sign} {one.percent:6.2f} % of {one.bound:3.0f}  {one.name}  {one.missing}".rstrip()
        )
    low = [one for one in found if one.percent < one.bound]
    for pattern in WHOLE:
        if not any(fnmatch(one.name, pattern) for one in found):
            print(f"! {pattern} names no module that was measured")
            return 1
    totals = report["totals"]
    print(
        f"\n{totals['percent_covered']:.2f} % of all: {totals['covered_lines']} of "
        f"{totals['num_statements']} lines, {totals['covered_branches']} of "
        f"{totals['num_branches']} branches; {len(low)} of {len(found)} modules below their bound"
    )
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
