"""What the live view costs: its share of a run's processor time and of its duration.

    python benchmarks/live_view.py [--seconds 20] [--slots 8] [--width 80] [--json]

A run of the scheduler is shown on a pseudo terminal, as `swarm run` shows one. Its model
is the fake backend, which computes nothing, so the process has little else to do; beside
a model in the same process the share is smaller. The view's processor time is that of
its thread. What is paid once, the import of rich, is told apart. Not for Windows, which
has no pseudo terminals.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import pty
import struct
import sys
import termios
import threading
import time

import anyio

from scheduler.backends.fake import FakeBackend
from scheduler.engine import Scheduler
from scheduler.types import Message, Request
from swarm_integration.live import REFRESH_S, LiveView, watching
from swarm_integration.progress import Progress

PER_STEP = 48


def import_rich() -> float:
    """Return the processor seconds that the import of what the view needs takes."""
    began = time.process_time()
    import rich.console  # noqa: PLC0415  # what is measured
    import rich.live  # noqa: F401, PLC0415  # what is measured

    return time.process_time() - began


async def run(scheduler: Scheduler, progress: Progress, seconds: float) -> None:
    """Ask step after step until the time is over."""
    step, end = 0, anyio.current_time() + seconds
    while anyio.current_time() < end:
        progress.begin_step(0, step)
        requests = [
            Request(f"agent-{n}", (Message("user", f"Question {n}?"),), step=step)
            for n in range(PER_STEP)
        ]
        await scheduler.run_step(requests)
        step += 1


async def measure(seconds: float, slots: int, width: int) -> dict[str, float]:
    """Run once with the view on a pseudo terminal and return what it cost."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    written = 0

    def read() -> None:
        nonlocal written
        while True:
            try:
                text = os.read(ours, 65536)
            except OSError:  # how Linux says that the other end is closed
                return
            if not text:
                return
            written += len(text)

    reader = threading.Thread(target=read)
    reader.start()
    backend = FakeBackend(slots, latency_s=0.5)
    async with Scheduler(backend) as scheduler:
        progress = Progress(scheduler, epochs=1, steps_per_epoch=1000, rounds_known=True)
        cpu, wall = time.process_time(), time.monotonic()
        with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
            with watching(progress, stream=terminal) as watch:
                await run(scheduler, progress, seconds)
            wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    reader.join()
    os.close(ours)
    view = 0.0 if watch is None else watch.cpu_s
    return {
        "wall_s": wall,
        "process_cpu_s": cpu,
        "view_cpu_s": view,
        "view_ms_per_refresh": 1000 * view * REFRESH_S / wall,
        "view_percent_of_run": 100 * view / wall,
        "terminal_bytes_per_s": written / wall,
        "requests": float(scheduler.stats.requests),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the run takes")
    parser.add_argument("--slots", type=int, default=8, help="slots of the fake backend")
    parser.add_argument("--width", type=int, default=80, help="columns of the terminal")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    os.environ["TERM"] = "xterm-256color"
    rich_s = import_rich()
    LiveView(sys.stderr)  # the first one imports what is left
    found = anyio.run(measure, options.seconds, options.slots, options.width)
    found["import_rich_cpu_s"] = rich_s
    machine = {"cores": os.cpu_count(), "machine": platform.machine()}
    if options.json:
        print(json.dumps({**machine, **found}, indent=2))
        return
    print("{cores} cores, {machine}".format(**machine))
    print("run of {wall_s:.1f} s, {requests:.0f} requests".format(**found))
    print("view: {view_cpu_s:.3f} s of processor time,".format(**found), end=" ")
    print("{view_percent_of_run:.2f} % of the run".format(**found), end=" ")
    print("({view_ms_per_refresh:.2f} ms for each refresh)".format(**found))
    print("written to the terminal: {terminal_bytes_per_s:.0f} bytes per second".format(**found))
    print("once: {import_rich_cpu_s:.2f} s of processor time to import rich".format(**found))


if __name__ == "__main__":
    main()
