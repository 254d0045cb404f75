"""How a command ends: its exit code, and an error as a few lines instead of a traceback.

Both commands go through `guarded`. This module imports nothing heavy, so that what
is imported inside the guard is guarded too: Ctrl-C in the first second of a command,
which goes into imports, ends it as cleanly as later.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_ABORTED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def guarded(command: Callable[[], int], *, debug: bool = False, help_command: str = "") -> int:
    """Run a command; turn this project's errors into a message and an exit code.

    Args:
        command: What is run; it imports what it needs.
        debug: Let errors through, for their traceback.
        help_command: What to type after an error that does not say.
    """
    try:
        return _reported(command, debug=debug, help_command=help_command)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end what runs as Ctrl-C does: cleaned up, the terminal given back.

    Does nothing elsewhere than in the main thread, or where SIGTERM has a meaning already.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _as_ctrl_c)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _as_ctrl_c(_number: int, frame: FrameType | None) -> None:
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # ignored, as by a job in the background
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


def _reported(command: Callable[[], int], *, debug: bool, help_command: str) -> int:
    try:
        code = command()
        if sys.stdout is not None:  # closed by whoever started this
            sys.stdout.flush()  # here, where it may fail
        return code
    except Exception as exc:
        from scheduler.errors import ConfigError, SchedulerError
        from swarm_integration.complaint import complaint

        if debug or not isinstance(exc, SchedulerError | OSError):
            raise
        if isinstance(exc, BrokenPipeError):
            return _unheard()
        if sys.stdout is not None:
            sys.stdout.flush()
        print(complaint(exc, help_command=help_command), file=sys.stderr)
        return EXIT_BAD_INPUT if isinstance(exc, ConfigError) else EXIT_ABORTED


def _unheard() -> int:
    """Whoever read the output has left, as `head` does: end without a word."""
    # What is still buffered goes nowhere, or Python would complain at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_ABORTED
