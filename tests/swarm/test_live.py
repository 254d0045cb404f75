"""What a person sees while a run goes, on a terminal and elsewhere."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO, cast

import pytest

from scheduler.backends.fake import FakeBackend
from scheduler.engine import Scheduler
from swarm_integration import live
from swarm_integration.live import LiveView, PlainView, view_for, watching
from swarm_integration.progress import Progress
from tests.swarm.simulations import llm, write_config, write_scenario
from tests.swarm.test_progress import SNAPSHOT

if sys.platform != "win32":
    import fcntl
    import pty
    import struct
    import termios

on_terminals = pytest.mark.skipif(sys.platform == "win32", reason="it has no pseudo terminals")

PATIENCE_S = 100.0
HIDE, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"
VIEW = re.compile(rb"epoch \d/1 step \d/\d")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def a_progress() -> Progress:
    return Progress(Scheduler(FakeBackend()), epochs=1, steps_per_epoch=1, rounds_known=True)


# Which view


@pytest.mark.parametrize("term", ["dumb", "unknown", "DUMB"])
def test_terminal_that_cannot_move_its_cursor_gets_lines(
    term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    assert isinstance(view_for(Terminal()), PlainView)


def test_terminal_gets_the_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(view_for(Terminal()), LiveView)


def test_file_gets_lines_whatever_the_environment_forces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(view_for(io.StringIO()), PlainView)


def test_without_rich_a_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setitem(sys.modules, "rich.live", None)
    assert isinstance(view_for(Terminal()), PlainView)


# Lines


def test_a_line_per_step_but_not_too_often() -> None:
    stream = io.StringIO()
    view = PlainView(stream)
    often, seldom = live.LINE_EVERY_S, live.LINE_AT_LEAST_EVERY_S
    for steps_done, elapsed_s in [
        (0, often),
        (1, often),
        (2, often + 1),
        (3, 2 * often),
        (3, 2 * often + seldom - 1),
        (3, 2 * often + seldom),
    ]:
        view.show(dataclasses.replace(SNAPSHOT, steps_done=steps_done, elapsed_s=elapsed_s))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert all(line.startswith("epoch 1/2 step 2/3  requests 7/12") for line in lines)


class Broken(io.StringIO):
    """A terminal that has been closed."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("tty", [True, False])
def test_stream_that_breaks_does_not_break_the_run(
    tty: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(live, "LINE_AT_LEAST_EVERY_S", 0.0)
    stream = Broken()
    monkeypatch.setattr(stream, "isatty", lambda: tty)
    before = (sys.stdout, sys.stderr)
    with watching(a_progress(), stream=cast("TextIO", stream)):
        time.sleep(0.01)
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().err == ""


def test_quiet_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    with watching(a_progress(), quiet=True, stream=stream) as watch:
        assert watch is None
    assert stream.getvalue() == ""


def test_the_thread_ends_and_says_what_it_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(LiveView, "refresh_s", 0.001)
    stream = Terminal()
    with watching(a_progress(), stream=stream) as watch:
        assert watch is not None
        deadline = time.monotonic() + PATIENCE_S
        while "epoch 0/1" not in stream.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert watch.cpu_s > 0
    assert stream.getvalue().count("\x1b[?25h") == 1


# Real runs


class OnTerminal:
    """An interpreter on a pseudo terminal of a certain width."""

    def __init__(
        self, width: int, *words: object, environment: dict[str, str], out: int | None = None
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
        clean = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "NO_COLOR"}}
        self.process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            stdin=theirs,
            stdout=theirs if out is None else out,
            stderr=theirs,
            env={**clean, "TERM": "xterm-256color", "PYTHONHASHSEED": "0", **environment},
            start_new_session=True,
        )
        os.close(theirs)
        self.written = b""

    def read(self) -> bool:
        """Take what was written; return whether there will be more."""
        try:
            text = os.read(self._ours, 65536)
        except OSError:  # how Linux says that all other ends are closed
            text = b""
        self.written += text
        return bool(text)

    def read_to_the_end(self) -> int:
        while self.read():
            pass
        os.close(self._ours)
        return self.process.wait(PATIENCE_S)


def slow_run(tmp_path: Path, latency_s: float = 0.6) -> list[object]:
    scenario = write_scenario(tmp_path / "s.yaml", [llm(6)], steps=2)
    config = write_config(
        tmp_path / "c.yaml",
        backend={"kind": "fake", "fake": {"slots": 2, "latency_s": latency_s}},
    )
    mode = ("--inference-scheduler", "batch", "--run-dir", "the-run")
    return ["-m", "swarm_integration", "run", scenario, *mode, "--inference-config", config]


def visible(written: bytes) -> list[str]:
    """The lines as they were drawn, without what moves the cursor or colours them."""
    text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", written).decode()
    return re.split(r"[\r\n]+", text)


@on_terminals
@pytest.mark.parametrize("width", [80, 160])
def test_live_view_fits_the_terminal_and_leaves_the_summary(width: int, tmp_path: Path) -> None:
    terminal = OnTerminal(width, *slow_run(tmp_path), environment={})
    assert terminal.read_to_the_end() == 0
    drawn = [line for line in visible(terminal.written) if line.startswith("epoch ")]
    counts = [line for line in visible(terminal.written) if line.startswith("requests ")]
    assert drawn
    assert {len(line) for line in drawn} == {width - 1}
    assert all("slots " in line and len(line) < width for line in counts)
    assert terminal.written.count(HIDE) == terminal.written.count(SHOW_CURSOR) == 1
    after = terminal.written.split(SHOW_CURSOR)[1]
    assert VIEW.search(after) is None
    assert b"Inference\r\n" in after
    assert b"Trace hash:" in after


@on_terminals
def test_only_standard_error_has_the_view(tmp_path: Path) -> None:
    with Path("out.txt").open("wb") as file:
        terminal = OnTerminal(80, *slow_run(tmp_path), environment={}, out=file.fileno())
        assert terminal.read_to_the_end() == 0
    out = Path("out.txt").read_bytes()
    assert VIEW.search(terminal.written)
    assert b"\x1b" not in out
    assert b"requests 0/6" not in out
    assert b"Running simulation" in out
    assert b"Trace hash:" in out
    assert b"Trace hash" not in terminal.written


@on_terminals
def test_no_color_has_no_color(tmp_path: Path) -> None:
    terminal = OnTerminal(80, *slow_run(tmp_path), environment={"NO_COLOR": "1"})
    assert terminal.read_to_the_end() == 0
    assert VIEW.search(terminal.written)
    assert re.search(rb"\x1b\[[0-9;]*3[0-7]m", terminal.written) is None


@on_terminals
def test_dumb_terminal_gets_no_control_characters(tmp_path: Path) -> None:
    terminal = OnTerminal(80, *slow_run(tmp_path, 0.05), environment={"TERM": "dumb"})
    assert terminal.read_to_the_end() == 0
    assert b"\x1b" not in terminal.written


@on_terminals
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_gives_the_terminal_back_and_keeps_the_last_view(
    number: signal.Signals, tmp_path: Path
) -> None:
    terminal = OnTerminal(80, *slow_run(tmp_path, 9e6), environment={})
    while VIEW.search(terminal.written) is None:
        assert terminal.read()
    os.kill(terminal.process.pid, number)
    while b"Ctrl-C again ends at once" not in terminal.written:
        assert terminal.read()
    os.kill(terminal.process.pid, number)
    assert terminal.read_to_the_end() == 130
    before, after = terminal.written.split(SHOW_CURSOR)
    assert visible(before)[-2].startswith("requests 0/6  queue ")
    assert after.splitlines() == [b"interrupted"]


NOISY = """
import logging, sys, time
from scheduler.backends.fake import FakeBackend
from scheduler.engine import Scheduler
from swarm_integration.live import REFRESH_S, watching
from swarm_integration.progress import Progress

progress = Progress(Scheduler(FakeBackend()), epochs=1, steps_per_epoch=1, rounds_known=True)
with watching(progress):
    time.sleep(3 * REFRESH_S)
    print("TO OUT")
    print("TO ERR", file=sys.stderr)
    logging.getLogger("x").warning("LOGGED")
    time.sleep(3 * REFRESH_S)
"""


@on_terminals
def test_what_others_print_meanwhile_does_not_tear_the_view() -> None:
    terminal = OnTerminal(80, "-c", NOISY, environment={"PYTHONPATH": os.pathsep.join(sys.path)})
    assert terminal.read_to_the_end() == 0
    lines = visible(terminal.written)
    assert [lines.count(text) for text in ("TO OUT", "TO ERR", "LOGGED")] == [1, 1, 1]
    assert lines.index("LOGGED") < len(lines) - 3
