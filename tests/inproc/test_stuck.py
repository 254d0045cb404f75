"""A real llama_decode that never returns, in a whole run: its thread is stopped by a debugger."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.swarm.simulations import llm, manifest, swarm, write_config, write_scenario
from tests.swarm.test_resume import check_is_like, check_nothing_was_asked_twice, command

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="one thread alone can't be stopped elsewhere"
)

RUN, FRESH = Path("the-run"), Path("fresh")
PATIENCE_S = 120.0
SEIZE, INTERRUPT, CONTINUE = 0x4206, 0x4207, 7
WALL = 0x40000000
"""So that waitpid also waits for threads (waitpid(2), __WALL)."""


def ptrace(request: int, thread: int) -> bool:
    call = ctypes.CDLL(None).ptrace
    call.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    call.restype = ctypes.c_long
    return int(call(request, thread, None, None)) == 0


class Stopped:
    """The thread of a process that works most, stopped in the middle of a llama.cpp kernel.

    Such a thread does not hold Python's lock, as one does not that is stuck in there by itself.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        before = self._cpu_times()
        deadline = time.monotonic() + PATIENCE_S
        while not (worked := self._worked_most(before)):
            assert time.monotonic() < deadline, "no thread works"
            time.sleep(0.1)
        self._thread = worked
        if not ptrace(SEIZE, self._thread):
            pytest.skip("this machine lets nobody stop another process's thread")
        while True:
            ptrace(INTERRUPT, self._thread)
            os.waitpid(self._thread, WALL)
            if "libggml" in self._place():
                return
            assert time.monotonic() < deadline, "it does not compute"
            ptrace(CONTINUE, self._thread)
            time.sleep(0.003)

    def bury(self) -> None:
        """Let it go, if its process has ended; else that waits for its debugger."""
        try:
            os.waitpid(self._thread, os.WNOHANG | WALL)
        except ChildProcessError:
            return

    def _threads(self) -> Iterator[int]:
        for path in Path(f"/proc/{self._pid}/task").iterdir():
            if int(path.name) != self._pid:
                yield int(path.name)

    def _cpu_times(self) -> dict[int, int]:
        times = {}
        for thread in self._threads():
            stat = Path(f"/proc/{self._pid}/task/{thread}/stat").read_text().rpartition(")")[2]
            times[thread] = sum(map(int, stat.split()[11:13]))
        return times

    def _worked_most(self, before: dict[int, int]) -> int | None:
        now = self._cpu_times()
        most = max(now, key=lambda thread: now[thread] - before.get(thread, 0))
        return most if now[most] - before.get(most, 0) > 3 else None

    def _place(self) -> str:
        """Return the file whose code it is in."""
        own = Path(f"/proc/{self._pid}/task/{self._thread}/syscall").read_text()
        counter = int(own.split()[-1], 16)
        for line in Path(f"/proc/{self._pid}/maps").read_text().splitlines():
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            if begin <= counter < end:
                return line.split()[-1]
        return ""


def scenario(timeout_s: int) -> None:
    agents = [llm(5, max_tokens=24, timeout=timeout_s, max_retries=1)]
    write_scenario(Path("s.yaml"), agents, epochs=1, steps=2)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("engine", ["locked", "batched"])
def test_a_run_whose_model_is_stuck_ends_with_its_process_and_is_resumed(
    engine: str,
    tmp_path: Path,
    models: dict[str, Path],
    kept: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("llama_cpp")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    scenario(timeout_s=300)
    backend = {
        "kind": "llama_inproc",
        "model_path": str(models["Q8_0"]),
        "threads": 1,
        "engine": engine,
    }
    config = write_config(Path("c.yaml"), backend=backend, scheduler={"slots": 2})
    assert swarm(*command(FRESH, config)) == 0
    scenario(timeout_s=20)
    words = [sys.executable, "-m", "swarm_integration", *map(str, command(RUN, config))]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONHASHSEED": "0",
    }
    with subprocess.Popen(words, stderr=subprocess.PIPE, env=environment, text=True) as run:
        log = RUN / "inference.jsonl"
        deadline = time.monotonic() + PATIENCE_S
        while not log.exists() or log.read_bytes().count(b'"request.answered"') < 2:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        stuck = Stopped(run.pid)
        while run.poll() is None:
            assert time.monotonic() < deadline + PATIENCE_S, "it does not end"
            stuck.bury()
            time.sleep(0.02)
        assert run.stderr is not None
        said = run.stderr.read()
    assert run.returncode == 1, said
    assert "which was told to stop, and is never used beside it" in said
    assert "To go on: add --resume --run-dir the-run" in said
    assert manifest(RUN)["state"] == "aborted"
    scenario(timeout_s=300)
    assert swarm(*command(RUN, config, "--resume")) == 0
    check_is_like(RUN, FRESH)
    check_nothing_was_asked_twice(RUN)
