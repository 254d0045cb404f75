"""Ends a process in which a simulated world hangs, and says how to repeat that world.

A world on virtual time takes milliseconds; one that takes minutes of real time hangs, and on
trio nothing else ends it: a clock that jumps has nowhere to jump to when nobody waits for it.
"""

from __future__ import annotations

import faulthandler
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 70


@contextmanager
def watchdog(limit_s: float, otherwise: str) -> Iterator[None]:
    """End this process, with all threads' tracebacks, if the block takes longer than `limit_s`.

    Args:
        limit_s: Seconds of real time.
        otherwise: What is said then, on standard error.
    """
    over = threading.Event()

    def watch() -> None:
        if over.wait(limit_s):
            return
        os.write(2, f"{otherwise}\n".encode())
        faulthandler.dump_traceback(file=2, all_threads=True)
        os._exit(EXIT_CODE)

    # The second one needs no interpreter lock, in case the world hangs while it holds that.
    faulthandler.dump_traceback_later(limit_s + 30.0, exit=True, file=2)
    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        faulthandler.cancel_dump_traceback_later()
        thread.join()
