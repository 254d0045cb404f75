"""The load benchmark at a small size: nothing is lost, and it says so when something is."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

load = import_module("benchmarks.load")  # a program beside the packages, for mypy too

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform == "win32", reason="starts a server with signals"),
]


@pytest.fixture(scope="module")
def found() -> Any:
    sizes = ["--agents", "60", "--requests", "40", "--seconds", "120"]
    program = [sys.executable, str(ROOT / "benchmarks/load.py"), *sizes, "--json"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_all_is_answered_and_nothing_is_left(found: Any) -> None:
    assert found["broken"] == []
    sockets, steps = found["sockets"], found["steps"]
    assert sockets["answered"] == sockets["right"] == 40
    assert sockets["retries"] == sockets["faults_of_the_server"] > 0
    assert steps["requests"] > 0
    assert steps["retries"] > 0
    assert steps["steps_cancelled"] > 0
    assert found["files"]["after"] <= found["files"]["before"]


@pytest.mark.parametrize(
    ("part", "name", "value", "says"),
    [
        ("agents", "in_order", False, "agents: results not in order"),
        ("agents", "most_in_flight", 65, "agents: more in flight than slots"),
        ("sockets", "right", 39, "sockets: wrong answers"),
        ("sockets", "retries", -1, "sockets: retries differ from the server's record"),
        ("sockets", "answered_twice", 1, "sockets: answered twice"),
        ("steps", "wrong", 1, "steps: wrong answers"),
        ("steps", "in_flight_at_the_end", 1, "steps: something is in flight at the end"),
        ("steps", "bytes_per_request", 1e6, "steps: memory grows"),
        ("steps", "drift", 9.0, "steps: CPU time of a step drifts"),
        ("files", "after", 10**6, "steps: open files left"),
        ("threads", "after", 10**6, "steps: threads left"),
    ],
)
def test_a_broken_bound_is_named(found: Any, part: str, name: str, value: Any, says: str) -> None:
    worse = copy.deepcopy(found)
    worse["steps"] |= {"steps": load.FEWEST_STEPS, "bytes_per_request": 0.0, "drift": 1.0}
    assert load.broken(worse) == []
    worse[part][name] = value
    assert load.broken(worse) == [says]
