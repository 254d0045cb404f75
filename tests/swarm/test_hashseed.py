"""The re-start with a fixed PYTHONHASHSEED: once, only where it helps, with the exit code."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from swarm_integration.hashseed import SWITCH_OFF, _wait_for, restart_environment

PROGRAM = """
import os, sys
from swarm_integration.hashseed import restart_with_fixed_hash_seed
print("started", os.environ.get("PYTHONHASHSEED"), sys.argv[1:], flush=True)
restart_with_fixed_hash_seed()
sys.exit(7)
"""


def run(*flags: str, **environment: str) -> list[str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in {"PYTHONHASHSEED", "SWARM_INFERENCE_RESTARTED", SWITCH_OFF}
    }
    done = subprocess.run(
        [sys.executable, *flags, "-c", PROGRAM, "run", "a b"],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    return done.stdout.splitlines()


def test_restarts_once_with_the_same_arguments() -> None:
    assert run() == ["started None ['run', 'a b']", "started 0 ['run', 'a b']"]


def test_random_counts_as_unset() -> None:
    assert len(run(PYTHONHASHSEED="random")) == 2


@pytest.mark.parametrize(
    "environment", [{"PYTHONHASHSEED": "5"}, {"PYTHONHASHSEED": "0"}, {SWITCH_OFF: "1"}]
)
def test_stays_where_the_hash_seed_is_fixed_or_shall_be_kept(environment: dict[str, str]) -> None:
    assert len(run(**environment)) == 1


def test_stays_where_the_interpreter_ignores_its_environment() -> None:
    assert len(run("-E")) == 1


class InterruptedOnce(subprocess.Popen[bytes]):
    """A real process, during the wait for which Ctrl-C is pressed."""

    interrupted = False

    def wait(self, timeout: float | None = None) -> int:
        if not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt
        return super().wait(timeout)


def test_where_a_process_cannot_be_replaced_the_second_one_decides_about_ctrl_c(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess, "Popen", InterruptedOnce)
    program = "import os, sys; sys.exit(int(os.environ['CODE']))"
    assert _wait_for([sys.executable, "-c", program], {**os.environ, "CODE": "7"}) == 7


def test_second_start_never_restarts_even_if_the_hash_seed_got_lost() -> None:
    first = restart_environment({"PATH": "/bin"})
    assert first is not None
    del first["PYTHONHASHSEED"]
    assert restart_environment(first) is None
