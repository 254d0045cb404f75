"""The documents that are made by commands are what the commands make."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_configuration_document_is_up_to_date() -> None:
    check = [sys.executable, str(ROOT / "scripts/configuration_doc.py"), "--check"]
    assert subprocess.run(check, check=False).returncode == 0, (
        "run: python scripts/configuration_doc.py"
    )


def test_structured_example_runs_and_counts_every_vote() -> None:
    example = [sys.executable, str(ROOT / "examples/structured_answers.py")]
    output = subprocess.run(example, check=True, capture_output=True, text=True).stdout
    assert [line.split(":")[0] for line in output.splitlines()] == ["step 0", "step 1"]
    assert all(" of 5 say yes" in line for line in output.splitlines())


@pytest.mark.parametrize("command", ["reliability", "mutants"])
def test_the_reliability_document_its_lists_and_the_tests_agree(command: str) -> None:
    check = [sys.executable, str(ROOT / f"benchmarks/{command}.py"), "--check"]
    done = subprocess.run(check, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
