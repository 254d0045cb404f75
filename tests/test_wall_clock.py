"""The time of day decides nothing."""

from __future__ import annotations

import io
import itertools
import time

import pytest

from scheduler.backends.fake import FakeBackend
from scheduler.engine import Scheduler
from scheduler.errors import ConnectionFailed, ServerBusy
from scheduler.observe import open_run_log
from scheduler.types import Request
from tests.doubles import failing
from tests.questions import question, transcript

pytestmark = pytest.mark.virtual_time

DAY_S = 86400.0


def _delay(request: Request, attempt: int) -> float:
    return 0.1 + request.base_seed % 3 + (3 if attempt == 1 else 0)


async def test_a_wall_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [question(i, base_seed=i, timeout_s=4.5, max_retries=9) for i in range(30)]
    seen: list[tuple[bytes, list[int]]] = []
    for jumps in (False, True):
        if jumps:
            days = itertools.cycle([0.0, DAY_S, -DAY_S, 30 * DAY_S])
            monkeypatch.setattr(time, "time", lambda: 1.7e9 + next(days))  # noqa: B023 - used now
        faults = failing(ServerBusy("busy", 2.0), ConnectionFailed("refused"))
        backend = FakeBackend(delay=_delay, fault=faults)
        log = open_run_log(io.StringIO())
        async with Scheduler(backend, log=log) as scheduler:
            completions = await scheduler.run_step(requests)
        seen.append((transcript(completions), [one.attempts for one in completions]))
    assert seen[0] == seen[1]
