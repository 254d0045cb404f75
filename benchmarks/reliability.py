"""Runs the tests behind each fault of `faults.yaml` and writes the results to docs/reliability.md.

    python benchmarks/reliability.py           # run them all and print the table
    python benchmarks/reliability.py --write   # ... and put it into docs/reliability.md
    python benchmarks/reliability.py --check   # run nothing: do list, tests and document agree?

Exit code 1 when a test failed, or the document names other faults or tests than this list.
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import yaml

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- begin: benchmarks/reliability.py -->", "<!-- end -->"


@dataclass(frozen=True, slots=True)
class Fault:
    """What can go wrong, what must happen then, and the tests that show it."""

    name: str
    wanted: str
    tests: tuple[str, ...]


def _listed() -> tuple[Fault, ...]:
    data = yaml.safe_load((ROOT / "benchmarks" / "faults.yaml").read_text(encoding="utf-8"))
    return tuple(Fault(one["fault"], one["wanted"], tuple(one["tests"])) for one in data)


FAULTS = _listed()


def defined() -> set[str]:
    """Return the tests that the test files define, as pytest names them."""
    return {
        f"{path.relative_to(ROOT).as_posix()}::{name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in _names(ast.parse(path.read_text(encoding="utf-8")))
    }


def _names(module: ast.Module) -> Iterator[str]:
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield f"{node.targets[0].id}::runTest"


def run() -> dict[str, list[str]]:
    """Run all tests and return the outcomes of each, one per parameter."""
    tests = sorted({test for fault in FAULTS for test in fault.tests})
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", "-o", "timeout=600"]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        subprocess.run(command, cwd=ROOT, check=False)
        cases = ElementTree.parse(report).iter("testcase")
        outcomes: dict[str, list[str]] = {test: [] for test in tests}
        for case in cases:
            outcomes[_test_of(case, tests)].append(_outcome(case))
    return outcomes


def _test_of(case: ElementTree.Element, tests: list[str]) -> str:
    place, name = case.attrib["classname"], case.attrib["name"].split("[")[0]
    return next(
        test
        for test in tests
        if test.replace("/", ".").replace(".py::", "::").replace("::", ".") == f"{place}.{name}"
    )


def _outcome(case: ElementTree.Element) -> str:
    kinds = {child.tag for child in case}
    if kinds & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in kinds else "passed"


def table(outcomes: dict[str, list[str]]) -> str:
    """Return the faults as a Markdown table, with results where there are any."""
    lines = ["| fault | what must happen | test | result |", "|---|---|---|---|"]
    for fault in FAULTS:
        names = "<br>".join(f"`{test.partition('::')[2]}`" for test in fault.tests)
        found = [outcome for test in fault.tests for outcome in outcomes.get(test, [])]
        counts = {kind: found.count(kind) for kind in ("passed", "failed", "skipped")}
        said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        lines.append(f"| {fault.name} | {fault.wanted} | {names} | {said or 'not run'} |")
    return "\n".join(lines)


def check() -> list[str]:
    """Return what is wrong with the list and the document."""
    known = defined()
    text = DOCUMENT.read_text(encoding="utf-8")
    wrong = [f"no such test: {t}" for f in FAULTS for t in f.tests if t not in known]
    written = text.partition(BEGIN)[2].partition(END)[0]
    rows = [row.rpartition(" | ")[0] for row in table({}).splitlines()[2:]]
    missing = [row for row in rows if row not in written]
    wrong += [f"not in {DOCUMENT.name}: {row}" for row in missing]
    if written.count("\n| ") != len(FAULTS) + 1:
        wrong.append(f"{DOCUMENT.name} has rows that are not in the list")
    return wrong


def main() -> int:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into the document")
    parser.add_argument("--check", action="store_true", help="run nothing")
    args = parser.parse_args()
    if args.check:
        wrong = check()
        print("\n".join(wrong) or "the list, the tests and the document agree")
        return 1 if wrong else 0
    outcomes = run()
    printed = table(outcomes)
    machine = f"{os.cpu_count()} {platform.machine()} cores, Python {platform.python_version()}"
    printed += f"\n\nPrinted by `python benchmarks/reliability.py` on {machine}."
    print(printed)
    if args.write:
        before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        DOCUMENT.write_text(f"{before}{BEGIN}\n{printed}\n{END}{after}", encoding="utf-8")
    return 1 if any("failed" in found or not found for found in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
