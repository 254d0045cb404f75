"""Shows a run while it goes: a live view on a terminal, plain lines elsewhere.

All of it goes to standard error, since scripts read standard output. A thread of its
own looks at the run's counters a few times a second; when nobody can be shown anything
any more (a closed terminal), it ends and the run goes on. Without `rich`, and on a
terminal that can't move its cursor, there are plain lines too.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, TextIO

from swarm_integration.progress import Progress, Snapshot
from swarm_integration.progress_text import plain_line, render

REFRESH_S = 0.25
LINE_EVERY_S = 5.0
"""Plain lines come at the end of a step, and not more often than this."""
LINE_AT_LEAST_EVERY_S = 60.0
_GONE = (OSError, ValueError)
"""What writing raises once a terminal or a file is closed."""


class View(Protocol):
    """Something that shows snapshots."""

    refresh_s: float

    def open(self) -> None:
        """Begin."""

    def show(self, snapshot: Snapshot) -> None:
        """Show the run as it is now."""

    def close(self, snapshot: Snapshot, *, completed: bool) -> None:
        """End; what is shown of a run that was broken off stays."""


class Watch:
    """Shows a run on a view, from a thread of its own.

    Attributes:
        cpu_s: Seconds of processor time that the thread has used, once it has ended.
    """

    def __init__(self, progress: Progress, view: View) -> None:
        self._progress = progress
        self._view = view
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="live view", daemon=True)
        self.cpu_s = 0.0

    def start(self) -> None:
        """Open the view and begin to look."""
        with suppress(*_GONE):
            self._view.open()
            self._thread.start()

    def stop(self, *, completed: bool) -> None:
        """Look no more and leave the terminal as it was."""
        self._over.set()
        try:
            if self._thread.ident is not None:
                self._thread.join()
        finally:
            with suppress(*_GONE):
                self._view.close(self._progress.look(), completed=completed)

    def _watch(self) -> None:
        with suppress(*_GONE):
            while not self._over.wait(self._view.refresh_s):
                self._view.show(self._progress.look())
        self.cpu_s = time.thread_time()


@contextmanager
def watching(
    progress: Progress, *, quiet: bool = False, stream: TextIO | None = None
) -> Iterator[Watch | None]:
    """Show a run for the time of the block.

    Args:
        progress: Looks at the run.
        quiet: Show nothing.
        stream: Where to; standard error if not given.
    """
    stream = stream or sys.stderr
    if quiet or stream is None:  # a process without a console has no standard error
        yield None
        return
    watch = Watch(progress, view_for(stream))
    watch.start()
    completed = False
    try:
        yield watch
        completed = True
    finally:
        watch.stop(completed=completed)


def view_for(stream: TextIO) -> View:
    """Return the view that fits a stream."""
    if not can_be_drawn_on(stream):
        return PlainView(stream)
    try:
        return LiveView(stream)
    except ImportError:
        return PlainView(stream)


def can_be_drawn_on(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in {"dumb", "unknown"}


class PlainView:
    """Writes a line when a step is over, and now and then in a long one.

    Args:
        stream: Where to.
    """

    refresh_s = 0.5

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last_s = 0.0
        self._last_step = 0

    def open(self) -> None:
        """Do nothing."""

    def show(self, snapshot: Snapshot) -> None:
        """Write a line if it is time for one."""
        since_s = snapshot.elapsed_s - self._last_s
        moved = snapshot.steps_done > self._last_step
        if since_s < (LINE_EVERY_S if moved else LINE_AT_LEAST_EVERY_S):
            return
        self._last_s, self._last_step = snapshot.elapsed_s, snapshot.steps_done
        print(plain_line(snapshot), file=self._stream, flush=True)

    def close(self, snapshot: Snapshot, *, completed: bool) -> None:
        """Do nothing: the summary, or an error, comes next."""


class LiveView:
    """Draws some lines on a terminal again and again, with `rich`.

    Lines that others print meanwhile appear above them. A completed run's view is wiped
    away, since the summary follows; that of a broken one stays.

    Args:
        stream: A terminal.

    Raises:
        ImportError: `rich` is not installed.
    """

    refresh_s = REFRESH_S

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream, force_terminal=True, highlight=False)
        # Only what would appear on the terminal may be led through it.
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )

    def open(self) -> None:
        """Take the terminal."""
        self._live.start()

    def show(self, snapshot: Snapshot) -> None:
        """Draw the run as it is now."""
        self._live.update(render(snapshot, self._console), refresh=True)

    def close(self, snapshot: Snapshot, *, completed: bool) -> None:
        """Give the terminal back."""
        self._live.transient = completed
        try:
            if not completed:
                self.show(snapshot)
        finally:
            self._live.stop()
