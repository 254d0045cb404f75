"""How far a sweep is: a live view on a terminal, a line for each run elsewhere.

All of it goes to standard error. A thread of its own looks at the counters of the runs a
few times a second, as for a single run (`live.py`).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from scheduler.sharing import SharedLanes
from swarm_integration.live import REFRESH_S, can_be_drawn_on
from swarm_integration.progress import Rate
from swarm_integration.progress_text import clock

if TYPE_CHECKING:
    from swarm_integration.run import Run
    from swarm_integration.sweep.shared import SharedPlace

_RATE_WINDOW_S = 30.0
_MOST_ROWS = 12
_GONE = (OSError, ValueError)
"""What writing raises once a terminal or a file is closed."""


@dataclass(eq=False)
class ActiveRun:
    """A run under way; called when it ends.

    Attributes:
        name: Its directory's.
        place: Where its questions go.
        status: Is told of its end.
        run: The run itself, once it has been opened.
    """

    name: str
    place: SharedPlace
    status: SweepStatus
    run: Run | None = None

    def watch(self, run: Run) -> None:
        """Look at `run` from now on."""
        self.run = run

    def __call__(self, state: str, error: Exception | None = None) -> None:
        """Note how it ended."""
        self.status.ended(self, state, error)

    @property
    def share(self) -> float:
        """How much of it is done, from 0 to 1."""
        progress = None if self.run is None else self.run.progress
        return 0.0 if progress is None else progress.look().share

    def line(self) -> str:
        """Return where it is."""
        progress = None if self.run is None else self.run.progress
        if progress is None:
            return f"{self.name}: starts"
        seen = progress.look()
        of = f"epoch {seen.epoch}/{seen.epochs} step {seen.step}/{seen.steps_per_epoch}"
        return f"{self.name}: {of}, requests {seen.settled}, slots {self.place.in_flight}"


class SweepStatus:
    """Counts the runs of a sweep and shows them.

    Attributes:
        lanes: The slots that they share, once there are some.
    """

    def __init__(self) -> None:
        self.lanes: SharedLanes | None = None
        self._lock = threading.Lock()
        self._active: dict[str, ActiveRun] = {}
        self._total = self._finished = self._done = self._failed = 0
        self._tokens = 0
        self._rate = Rate(_RATE_WINDOW_S)
        self._began = time.monotonic()
        self._stream: TextIO | None = None
        self._live = False

    def begin(self, total: int, *, finished: int) -> None:
        """Note how many runs there are, and how many of them an earlier attempt has finished."""
        self._total, self._finished = total, finished
        self._began = time.monotonic()

    def started(self, name: str, place: SharedPlace) -> ActiveRun:
        """Note that a run starts."""
        with self._lock:
            active = self._active[name] = ActiveRun(name, place, self)
        return active

    def ended(self, active: ActiveRun, state: str, error: Exception | None) -> None:
        """Note how a run ended, and say so."""
        with self._lock:
            del self._active[active.name]
            self._tokens += _tokens(active)
            self._done += state == "completed"
            self._failed += state == "failed"
            count = self._finished + self._done
        why = "" if error is None else f": {' '.join(str(error).split()) or type(error).__name__}"
        if not self._live or error is not None:
            self._say(f"{active.name} {state}{why} ({count} of {self._total} runs completed)")

    def _say(self, text: str) -> None:
        with suppress(*_GONE):
            if self._stream is not None:
                print(text, file=self._stream, flush=True)

    @contextmanager
    def shown(self, *, quiet: bool, stream: TextIO | None = None) -> Iterator[None]:
        """Show the sweep for the time of the block."""
        stream = stream or sys.stderr
        if quiet or stream is None:
            yield
            return
        self._stream = stream
        live = _live_on(stream)
        if live is None:
            yield
            return
        self._live = True
        over = threading.Event()

        def draw() -> None:
            with suppress(*_GONE):
                while not over.wait(REFRESH_S):
                    live.update("\n".join(self.lines()), refresh=True)

        thread = threading.Thread(target=draw, name="sweep view", daemon=True)
        try:
            with suppress(*_GONE):
                live.start()
                thread.start()
            yield
        finally:
            over.set()
            if thread.ident is not None:
                thread.join()
            with suppress(*_GONE):
                live.stop()

    def lines(self) -> list[str]:
        """Return the sweep as some lines of text."""
        with self._lock:
            active = list(self._active.values())
            tokens = self._tokens + sum(_tokens(one) for one in active)
        shares = sum(one.share for one in active)
        now = time.monotonic()
        self._rate.add(now, tokens)
        elapsed_s = now - self._began
        done = self._done + self._failed
        todo = self._total - self._finished
        share = (done + shares) / todo if todo else 1.0
        left = clock(elapsed_s / share * (1 - share)) if share > 0 else "-"
        head = (
            f"runs {self._finished + self._done}/{self._total}  failed {self._failed}  "
            f"under way {len(active)}  {round(100 * share)} %  {clock(elapsed_s)}  left {left}"
        )
        lanes = () if self.lanes is None else self.lanes.lanes
        busy, slots = sum(one.in_flight for one in lanes), sum(one.slots for one in lanes)
        queued = sum(one.waiting for one in lanes)
        rate = f"{self._rate.per_s:.1f}" if tokens else "-"
        rows = [one.line() for one in active[:_MOST_ROWS]]
        if len(active) > _MOST_ROWS:
            rows.append(f"and {len(active) - _MOST_ROWS} more")
        return [head, f"queue {queued}  slots {busy}/{slots}  tokens/s {rate}", *rows]


def _tokens(active: ActiveRun) -> int:
    scheduler = active.place.counted
    return 0 if scheduler is None else scheduler.stats.completion_tokens


def _live_on(stream: TextIO) -> Any:
    """Return rich's live view of a terminal; None where there is none to draw on, or no rich."""
    if not can_be_drawn_on(stream):
        return None
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        return None
    console = Console(file=stream, force_terminal=True, highlight=False, markup=False)
    return Live(
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=sys.stderr.isatty(),
    )
