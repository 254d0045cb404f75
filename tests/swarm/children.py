"""The `swarm` command in child processes that start quickly and can be killed.

They are forked from one process that has everything imported, where the system can
do that.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from swarm_integration import cli

_WAYS = multiprocessing.get_all_start_methods()
_context: Any = multiprocessing.get_context("forkserver" if "forkserver" in _WAYS else "spawn")
_context.set_forkserver_preload(["swarm_integration.run", "swarm.__main__", "openai"])

PATIENCE_S = 100.0


class Child:
    """A `swarm` command under way; its output goes to a file.

    Args:
        *arguments: What follows `swarm`.
    """

    def __init__(self, *arguments: object) -> None:
        self.output = Path(f"output-{time.monotonic_ns()}.txt").absolute()
        words = [str(argument) for argument in arguments]
        self._process: BaseProcess = _context.Process(
            target=_main, args=(words, str(self.output)), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()
        self.wait()

    def wait(self) -> int:
        """Return the exit code, which is negative after a signal."""
        self._process.join(PATIENCE_S)
        assert self._process.exitcode is not None, "still running"
        return self._process.exitcode

    def wait_for(self, directory: Path, event: str, count: int) -> bool:
        """Wait until the log has `event` so often; return whether it still runs then."""
        log, wanted = directory / "inference.jsonl", f'"{event}"'.encode()
        deadline = time.monotonic() + PATIENCE_S
        while not (log.exists() and log.read_bytes().count(wanted) >= count):
            if not self.running:
                return False
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.001)
        return self.running

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8") if self.output.exists() else ""


def _main(words: list[str], output: str) -> None:
    # A shell lets the commands that it starts in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(target, stream)
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr] # a text stream
    code = cli.main(words)
    sys.stdout.flush()
    sys.exit(code)
