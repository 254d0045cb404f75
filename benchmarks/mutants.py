"""Makes the mistakes of `mutants.yaml` in a copy of the tree, one at a time: do tests notice?

    python benchmarks/mutants.py               # make them all and print the table
    python benchmarks/mutants.py --only NAME   # ... one of them; may be repeated
    python benchmarks/mutants.py --write       # ... all, and put the table into the document
    python benchmarks/mutants.py --check       # run nothing: do list, code, tests, document agree?

Exit code 1 when a mistake is not noticed, can't be made, or when a test fails without any.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import yaml
from reliability import DOCUMENT, FAULTS, ROOT, defined

BEGIN, END = "<!-- begin: benchmarks/mutants.py -->", "<!-- end -->"
SURVIVED = "SURVIVED"
SLOW = ("tests/integration/", "tests/inproc/")
"""Tests that need a real model; a fault with others has a mistake here."""

TEST_LIMIT_S = 120
"""How long one test may take; a mistake that lets it hang is noticed then."""

LIMIT_S = 600
"""How long the tests of one mistake may take together."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A small mistake, and the tests that must notice it.

    Attributes:
        name: What goes wrong, in a few words.
        file: Where it is made, from the root of the tree.
        old: The text as it is; found once in the file.
        new: The text that takes its place.
        breaks: The fault, or what always holds, that is not so any more.
        tests: Test files, or tests as pytest names them.
    """

    name: str
    file: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]


def _listed() -> tuple[Mutant, ...]:
    data = yaml.safe_load((ROOT / "benchmarks" / "mutants.yaml").read_text(encoding="utf-8"))
    return tuple(Mutant(**{**one, "tests": tuple(one["tests"])}) for one in data)


MUTANTS = _listed()


def check() -> list[str]:
    """Return what is wrong with the list, the code, the tests and the document."""
    known = defined()
    text = DOCUMENT.read_text(encoding="utf-8")
    promises = {fault.name for fault in FAULTS} | set(_invariants(text))
    wrong = [f"two of the name: {one}" for one in _repeated(mutant.name for mutant in MUTANTS)]
    for mutant in MUTANTS:
        wrong += [f"{mutant.name}: {reason}" for reason in _unmade(mutant, ROOT)]
        wrong += [f"{mutant.name}: no such test: {t}" for t in mutant.tests if not _is(t, known)]
        if mutant.breaks not in promises:
            wrong.append(f"{mutant.name}: breaks no fault and no invariant: {mutant.breaks}")
    broken = {mutant.breaks for mutant in MUTANTS}
    wrong += [f"no mistake breaks: {name}" for name in sorted(_wanted(text) - broken)]
    written = text.partition(BEGIN)[2].partition(END)[0]
    rows = [row.rpartition(" | ")[0] for row in table({}).splitlines()[2:]]
    wrong += [f"not in {DOCUMENT.name}: {row}" for row in rows if row not in written]
    if written.count("\n| ") != len(MUTANTS) + 1:
        wrong.append(f"{DOCUMENT.name} has mistakes that are not in the list")
    return wrong


def _wanted(document: str) -> set[str]:
    """Return what a mistake must break: all that always holds, and what fast tests show."""
    fast = {fault.name for fault in FAULTS if any(not t.startswith(SLOW) for t in fault.tests)}
    return fast | set(_invariants(document))


def _invariants(document: str) -> Iterator[str]:
    """Yield what always holds: the first sentence of each line of the document's list."""
    section = document.partition("## What always holds\n")[2].partition("\n## ")[0]
    for line in section.replace("\n   ", " ").strip().splitlines():
        _, _, says = line.partition(". ")
        yield says.partition(". ")[0].removesuffix(".")


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]  # None


def _is(test: str, known: set[str]) -> bool:
    return test.partition("[")[0] in known or ("::" not in test and (ROOT / test).is_file())


def _unmade(mutant: Mutant, root: Path) -> list[str]:
    """Return why `mutant` can't be made in the tree at `root`."""
    path = root / mutant.file
    if not path.is_file():
        return [f"no such file: {mutant.file}"]
    count = path.read_text(encoding="utf-8").count(mutant.old)
    return [] if count == 1 else [f"its text occurs {count} times in {mutant.file}"]


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the work tree, what is not committed included, for the time of the block."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        for name in filter(None, done.stdout.split("\0")):
            if (ROOT / name).is_file():
                (Path(directory) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, Path(directory) / name)
        yield Path(directory)


@contextmanager
def mistaken(mutant: Mutant, copy: Path) -> Iterator[None]:
    """Make the mistake in the copy for the time of the block."""
    path = copy / mutant.file
    right = path.read_text(encoding="utf-8")
    path.write_text(right.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(right, encoding="utf-8")


def first_failing(tests: Sequence[str], copy: Path) -> str:
    """Run `tests` in the copy; return the first that fails, or `SURVIVED`.

    Raises:
        RuntimeError: The tests could not be run, or took too long.
    """
    report = copy / "report.xml"
    report.unlink(missing_ok=True)
    options = ["-x", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    options += ["-o", f"timeout={TEST_LIMIT_S}", "--hypothesis-seed=0"]
    # Child processes take this tree too, and no bytecode of a file that has changed since.
    environment = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=copy,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    try:
        printed, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired as exc:
        raise RuntimeError(f"{', '.join(tests)} took longer than {LIMIT_S} s") from exc
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode == 0:
        return SURVIVED
    failed = [case for case in ElementTree.parse(report).iter("testcase") if _failed(case)]
    if process.returncode != 1 or not failed:
        raise RuntimeError(f"{', '.join(tests)} did not run:\n{printed}")
    return _name(failed[0])


def _name(case: ElementTree.Element) -> str:
    name = case.attrib["name"].partition("[")[0]
    return f"{case.attrib['classname'].rpartition('.')[2]}::{name}" if name == "runTest" else name


def _failed(case: ElementTree.Element) -> bool:
    return any(child.tag in ("failure", "error") for child in case)


def run(mutants: Sequence[Mutant]) -> dict[str, str]:
    """Make each mistake, and return by its name which test noticed it.

    Raises:
        RuntimeError: A mistake can't be made, tests can't be run, or fail without a mistake.
    """
    found: dict[str, str] = {}
    with copied() as copy:
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        if (failing := first_failing(tests, copy)) != SURVIVED:
            raise RuntimeError(f"{failing} fails without any mistake")
        for mutant in mutants:
            for reason in _unmade(mutant, copy):
                raise RuntimeError(f"{mutant.name}: {reason}")
            with mistaken(mutant, copy):
                found[mutant.name] = first_failing(mutant.tests, copy)
            print(f"{mutant.name}: {found[mutant.name]}", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, str], mutants: Sequence[Mutant] = MUTANTS) -> str:
    """Return the mistakes as a Markdown table, with who noticed each where that is known."""
    lines = ["| mistake | in | what it breaks | noticed by |", "|---|---|---|---|"]
    for mutant in mutants:
        by = f"`{found[mutant.name]}`" if mutant.name in found else "not run"
        by = by.replace(f"`{SURVIVED}`", SURVIVED)
        lines.append(f"| {mutant.name} | `{mutant.file}` | {mutant.breaks} | {by} |")
    return "\n".join(lines)


def main() -> int:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="make this mistake alone")
    parser.add_argument("--write", action="store_true", help="put the table into the document")
    parser.add_argument("--check", action="store_true", help="run nothing")
    args = parser.parse_args()
    if args.check:
        wrong = check()
        print("\n".join(wrong) or "the list, the code, the tests and the document agree")
        return 1 if wrong else 0
    if args.only and args.write:
        parser.error("--write needs all mistakes: leave --only out")
    names = args.only or [mutant.name for mutant in MUTANTS]
    if unknown := set(names) - {mutant.name for mutant in MUTANTS}:
        parser.error(f"no such mistake: {', '.join(sorted(unknown))}")
    chosen = [mutant for mutant in MUTANTS if mutant.name in names]
    try:
        found = run(chosen)
    except RuntimeError as exc:
        print(exc, file=sys.stderr)
        return 1
    printed = table(found, chosen)
    machine = f"{os.cpu_count()} {platform.machine()} cores, Python {platform.python_version()}"
    printed += f"\n\nPrinted by `python benchmarks/mutants.py` on {machine}."
    print(printed)
    if args.write:
        before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        DOCUMENT.write_text(f"{before}{BEGIN}\n{printed}\n{END}{after}", encoding="utf-8")
    return 1 if SURVIVED in found.values() else 0


if __name__ == "__main__":
    sys.exit(main())
