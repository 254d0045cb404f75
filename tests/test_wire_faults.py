"""Every fault of the wire, with what the scheduler makes of it and what the server saw."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

from scheduler.backends.llama_server import LlamaServerBackend
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import (
    AuthenticationFailed,
    ContextExceeded,
    RequestRejected,
)
from scheduler.observe import RunStats
from scheduler.types import Completion, Outcome, Request
from tests.doubles import config
from tests.questions import SCHEMA, question, questions, transcript
from tests.wire.chaos import Chaos, chaos
from tests.wire.chaos_server import FREE, LASTING, PASSING, SCHEMA_IGNORED
from tests.wire.scripted_server import HEALTH

pytestmark = pytest.mark.anyio

QUICK = {"retry_base_s": 0.01, "retry_cap_s": 0.2}
DEADLINE_S = 2.0


async def run(server: Chaos, requests: list[Request], settings: SchedulerConfig) -> Any:
    backend = LlamaServerBackend(server.base_url, ready_timeout_s=30)
    async with Scheduler(backend, settings) as scheduler:
        completions = await scheduler.run_step(requests)
        assert scheduler.idle
    await backend.aclose()
    return completions, scheduler.stats


def came(server: Chaos) -> Counter[str]:
    """How often the requests of each agent came in; all of them once the server has ended."""
    return Counter(line["prompt"].split()[2].rstrip(".") for line in server.record())


async def test_each_fault_of_the_wire_has_its_outcome_on_both_sides(tmp_path: Path) -> None:
    kinds = [*PASSING, *LASTING, *FREE]
    names = {f"agent-{i:03d}": kind for i, kind in enumerate(kinds)}
    calm = question("calm")
    # Only what needs a deadline has a short one: a busy machine misses it for no other reason.
    waits = {name: DEADLINE_S if kind in ("hang", "drip") else 60.0 for name, kind in names.items()}
    requests = [*(question(name, timeout_s=limit) for name, limit in waits.items()), calm]
    with chaos(tmp_path / "record", script={n: [kind] for n, kind in names.items()}) as server:
        completions, stats = await run(server, requests, config(on_failure="noop", **QUICK))
    arrived = came(server)
    for completion, (name, kind) in zip(completions, names.items(), strict=False):
        error = completion.error
        if kind in LASTING:
            assert error is not None, kind
            assert name in str(error), kind
            assert (completion.attempts, arrived[name]) == (1, 1), kind
        else:
            assert error is None, (kind, error)
            assert (completion.attempts, arrived[name]) == (2, 2), kind
    assert completions[-1].ok
    assert completions[-1].attempts == arrived["calm"] == 1
    hung_up = {line["did"] for line in server.record() if not line["served"]}
    assert hung_up == {"hang", "drip"}
    assert stats.retries == len(PASSING) + len(FREE)
    causes = {
        kind: c.error.__cause__ for c, kind in zip(completions, kinds, strict=False) if c.error
    }
    assert {kind: type(cause) for kind, cause in causes.items()} == {
        "400": RequestRejected,
        "401": AuthenticationFailed,
        "404": RequestRejected,
        "redirect": RequestRejected,
        "400 too long": ContextExceeded,
        "500 too long": ContextExceeded,
    }
    assert "has 4242 tokens, a slot of the server holds 1024" in str(causes["400 too long"])


async def test_a_fault_that_stays_uses_up_the_attempts_and_no_more(tmp_path: Path) -> None:
    kinds = [kind for kind in PASSING if kind not in ("hang", "drip")]
    names = [f"agent-{i:03d}" for i in range(len(kinds))]
    script = {name: [kind] * 9 for name, kind in zip(names, kinds, strict=True)}
    with chaos(tmp_path / "record", script=script) as server:
        requests = [question(name, max_retries=2) for name in names]
        completions, _ = await run(server, requests, config(on_failure="noop", **QUICK))
    assert came(server) == dict.fromkeys(names, 3)
    assert {completion.attempts for completion in completions} == {3}
    assert all("failed after 3 attempts" in str(completion.error) for completion in completions)


async def test_a_server_that_ignores_the_schema_is_asked_again_a_bounded_number_of_times(
    tmp_path: Path,
) -> None:
    script = {"agent-000": [SCHEMA_IGNORED], "agent-001": [SCHEMA_IGNORED] * 9}
    with chaos(tmp_path / "record", script=script) as server:
        requests = [question(0, schema=SCHEMA), question(1, schema=SCHEMA), question(2)]
        completions, stats = await run(server, requests, config(max_reasks=2, **QUICK))
    seeds = [line["seed"] for line in server.record() if "agent-001" in line["prompt"]]
    outcomes = [completion.answers[-1].outcome for completion in completions]
    assert outcomes == [Outcome.OK, Outcome.INVALID, Outcome.OK]
    assert len(seeds) == len(set(seeds)) == 3
    assert (stats.reasks, stats.invalid, stats.retries) == (3, 1, 0)


async def test_a_loading_server_is_waited_for_on_its_health_and_costs_no_attempt(
    tmp_path: Path,
) -> None:
    with chaos(tmp_path / "record", loading_s=1.0) as server:
        completions, stats = await run(server, questions(12, max_retries=0), config())
    assert {line["did"] for line in server.record()} == {"answered"}
    assert len(server.record(HEALTH)) > 2
    assert all(completion.ok for completion in completions)
    assert stats.retries == 0


async def test_many_requests_through_many_faults_are_as_through_none(tmp_path: Path) -> None:
    kinds = [kind for kind in PASSING if kind not in ("hang", "drip")]
    requests = questions(300, max_retries=3)
    chaotic = {"share": 0.2, "kinds": [*kinds, "loading"], "delay_s": 0.02, "seed": 11, "slots": 8}
    with chaos(tmp_path / "record", **chaotic) as server:
        completions, stats = await run(server, requests, config(**QUICK))
    record = server.record()  # whole, now that the server has ended
    with chaos(tmp_path / "calm", slots=8, seed=11) as server:
        calm, _ = await run(server, requests, config())
    assert transcript(completions) == transcript(calm)
    assert stats.retries > 30
    assert len(record) == sum(completion.attempts for completion in completions)
    answered = Counter(line["prompt"] for line in record if line["did"] == "answered")
    assert set(answered.values()) == {1}
    assert len(answered) == 300
    assert max(line["in_flight"] for line in record) <= 8


@pytest.mark.skipif(sys.platform == "win32", reason="kills with a signal")
async def test_a_server_killed_in_the_middle_of_a_batch_loses_nothing(tmp_path: Path) -> None:
    requests = questions(60, max_retries=3)
    with chaos(tmp_path / "record", delay_s=0.05, seed=3) as server:
        backend = LlamaServerBackend(server.base_url, ready_timeout_s=60)
        ended: list[list[Completion]] = []
        async with Scheduler(backend, config(retry_budget=20)) as scheduler:

            async def step() -> None:
                ended.append(await scheduler.run_step(requests))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(step)
                for _ in range(2):
                    answered = len(server.record())
                    while len(server.record()) < answered + 10:  # noqa: ASYNC110  # another process
                        await anyio.sleep(0.01)
                    await anyio.to_thread.run_sync(server.kill)
                    await anyio.to_thread.run_sync(server.start)
        await backend.aclose()
    arrived = came(server)
    [completions] = ended
    assert all(completion.ok for completion in completions)
    assert scheduler.stats.retries <= 2 * 4 + 2
    assert set(arrived.values()) <= {1, 2}
    with chaos(tmp_path / "calm", seed=3) as server:
        calm, _ = await run(server, requests, config())
    assert transcript(completions) == transcript(calm)


async def test_a_cancelled_step_hangs_up_on_everything_in_flight(tmp_path: Path) -> None:
    script = {f"agent-{i:03d}": ["hang"] for i in range(8)}
    with chaos(tmp_path / "record", script=script) as server:
        backend = LlamaServerBackend(server.base_url)
        async with Scheduler(backend) as scheduler:
            with anyio.move_on_after(2.0) as scope:
                await scheduler.run_step(questions(8))
            assert scope.cancelled_caught
            await scheduler.drain()
            with anyio.fail_after(30):
                while len(server.record()) < 4:  # noqa: ASYNC110  # another process's file
                    await anyio.sleep(0.01)
        await backend.aclose()
        assert [line["served"] for line in server.record()] == [False] * 4


async def test_a_server_that_dies_for_good_leaves_nobody_waiting(tmp_path: Path) -> None:
    with chaos(tmp_path / "record", delay_s=0.2) as server:
        backend = LlamaServerBackend(server.base_url, ready_timeout_s=2.0)
        async with Scheduler(backend, config(on_failure="noop", **QUICK)) as scheduler:
            assert (await scheduler.submit(question())).ok
            await anyio.to_thread.run_sync(server.kill)
            with anyio.fail_after(60):
                completions = await scheduler.run_step(questions(40))
        await backend.aclose()
    assert not any(completion.ok for completion in completions)
    assert [c.attempts for c in completions].count(0) == 36


async def test_a_stopped_server_process_is_timed_out_and_goes_on_when_it_continues(
    tmp_path: Path,
) -> None:
    if sys.platform == "win32":
        pytest.skip("stops with a signal")
    with chaos(tmp_path / "record") as server:
        backend = LlamaServerBackend(server.base_url, ready_timeout_s=30)
        async with Scheduler(backend, config(**QUICK)) as scheduler:
            assert (await scheduler.submit(question())).ok
            os.kill(server.pid, signal.SIGSTOP)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_continue_later, server, scheduler.stats)
                completions = await scheduler.run_step(
                    questions(4, step=1, timeout_s=1.0, max_retries=9)
                )
        await backend.aclose()
    assert all(completion.ok for completion in completions)
    # On a busy machine some are not sent before the first has been timed out.
    assert any(completion.attempts > 1 for completion in completions)


async def _continue_later(server: Chaos, stats: RunStats) -> None:
    """Let the server go on once a request has been timed out, or if the test is given up."""
    try:
        while not stats.retries:  # noqa: ASYNC110 - the stats are no event
            await anyio.sleep(0.01)
    finally:
        os.kill(server.pid, signal.SIGCONT)
