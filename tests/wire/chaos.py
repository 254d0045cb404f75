"""Starts, kills and reads the record of a chaos server from a test."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.wire.chaos_server import Settings
from tests.wire.scripted_server import CHAT

ROOT = Path(__file__).parents[2]


class Chaos:
    """A chaos server under way.

    Args:
        settings: What it does; a restart takes the same port.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.start()

    def start(self) -> None:
        """Start it, again after a kill."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.wire.chaos_server", self._settings.json()],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        port = int(self._process.stdout.readline())
        self._settings = replace(self._settings, port=port)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._settings.port}/v1"

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self._end()

    def stop(self) -> None:
        """End it; its record is whole then."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._end()

    def _end(self) -> None:
        self._process.wait(timeout=30)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def record(self, route: str = CHAT) -> list[dict[str, Any]]:
        """What it wrote down of the requests on `route`, in the order of their ends."""
        lines = Path(self._settings.record).read_text(encoding="utf-8").splitlines()
        # A kill may tear the last line.
        whole = [json.loads(line) for line in lines if line.endswith("}")]
        return [line for line in whole if line["route"] == route]


@contextmanager
def chaos(record: Path, **settings: Any) -> Iterator[Chaos]:
    """A chaos server as `settings` say, ended with the block."""
    server = Chaos(Settings(str(record), **settings))
    try:
        yield server
    finally:
        if server.running:
            server.stop()
