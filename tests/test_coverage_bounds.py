"""The bounds on coverage hold a report to what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts/coverage_bounds.py"
WHOLE = ("queue", "plan", "places", "engine", "step", "lane", "answering", "retry", "journal")


def report(**percents: float) -> dict[str, Any]:
    """What `coverage json` writes, less what the script does not read."""
    percents = {**dict.fromkeys(WHOLE, 100.0), **percents}
    files = {
        f"scheduler/{name}.py": {
            "summary": {"percent_covered": percent},
            "missing_lines": [] if percent == 100.0 else [7],
            "missing_branches": [] if percent == 100.0 else [[6, 7]],
        }
        for name, percent in percents.items()
    }
    totals = {"percent_covered": 99.0, "covered_lines": 9, "num_statements": 10}
    return {
        "meta": {"branch_coverage": True},
        "files": files,
        "totals": {**totals, "covered_branches": 3, "num_branches": 4},
    }


def judge(found: dict[str, Any], tmp_path: Path) -> tuple[int, str]:
    (tmp_path / "coverage.json").write_text(json.dumps(found), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "coverage.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_all_within_their_bounds_is_fine(tmp_path: Path) -> None:
    code, said = judge(report(other=90.0), tmp_path)
    assert (code, "0 of 10 modules below" in said) == (0, True)


@pytest.mark.parametrize(("name", "percent"), [("engine", 99.9), ("other", 89.9)])
def test_one_below_its_bound_fails_and_is_named_with_what_is_missing(
    name: str, percent: float, tmp_path: Path
) -> None:
    code, said = judge(report(**{name: percent}), tmp_path)
    assert code == 1
    [line] = [line for line in said.splitlines() if line.startswith("!")]
    assert f"scheduler/{name}.py" in line
    assert line.endswith("7, 6->7")


def test_a_module_that_was_renamed_is_noticed(tmp_path: Path) -> None:
    found = report()
    del found["files"]["scheduler/retry.py"]
    code, said = judge(found, tmp_path)
    assert code == 1
    assert "scheduler/retry.py names no module" in said


def test_a_report_without_branches_is_refused(tmp_path: Path) -> None:
    found = report()
    found["meta"]["branch_coverage"] = False
    code, said = judge(found, tmp_path)
    assert code == 2
    assert "--branch" in said
