"""This project's ways: a run's own backends, scheduler, journal and log, without the simulation."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

from scheduler.backends.base import Backend, RawAnswer
from scheduler.backends.native_model import import_llama_cpp
from scheduler.engine import Scheduler
from scheduler.journal import Journal
from scheduler.observe import EventLog, open_run_log
from scheduler.server import ManagedServer
from scheduler.types import Message, Request, Sampling
from swarm_integration.bench.builds import Build, inproc_build
from swarm_integration.bench.library import NativeClock, endless
from swarm_integration.bench.servers import ServerView, config_of, rehearsal_of, server_of
from swarm_integration.bench.turns import TIMEOUT_S, WARM_UP, Served, Turn
from swarm_integration.bench.usage import cpu, peak_bytes
from swarm_integration.bench.workload import MAX_TOKENS, Place, Question, Workload, place_of
from swarm_integration.managed import with_prefix_copies
from swarm_integration.rundir import JOURNAL, LOG, SERVER_LOG
from swarm_integration.scenario import Rehearsal
from swarm_integration.services import Fleet, muster


async def serve_ours(turn: Turn, workload: Workload) -> Served:
    """Serve the workload in way `e`, `f` or `g`."""
    async with AsyncExitStack() as stack:
        if turn.part != "e":
            meter: _Meter = _LibraryMeter()
            return await _serve(turn, workload, None, meter, stack)
        server = await stack.enter_async_context(server_of(turn, workload))
        view = stack.enter_context(ServerView(server, Path(turn.folder) / SERVER_LOG))
        return await _serve(turn, workload, server, _ServerMeter(server, view), stack)


class _Meter(Protocol):
    """What is read before and after the work.

    Attributes:
        pid: The server's process, or None.
    """

    pid: int | None

    async def warm_up(self, backends: Iterable[Backend]) -> None:
        """Let the model write a little, so that all weights have been read once."""
        ...

    def read(self) -> tuple[int | None, float | None]:
        """Return prompt tokens that were evaluated, and seconds inside the library, until now."""
        ...

    def build(self) -> Build:
        """Return what compiled llama.cpp."""
        ...


class _ServerMeter:
    def __init__(self, server: ManagedServer, view: ServerView) -> None:
        self.pid: int | None = server.pid
        self.build = view.build
        self._view = view

    async def warm_up(self, backends: Iterable[Backend]) -> None:  # noqa: ARG002  # the server itself
        self._view.warm_up()

    def read(self) -> tuple[int | None, float | None]:
        return self._view.counters()[0], None


class _LibraryMeter:
    def __init__(self) -> None:
        self.pid: int | None = None
        self._lib = import_llama_cpp()
        self._clock = NativeClock(self._lib)
        endless(self._lib)

    async def warm_up(self, backends: Iterable[Backend]) -> None:
        sampling, messages = Sampling(max_tokens=2), (Message("user", WARM_UP),)
        request = Request("warm-up", messages, sampling=sampling, timeout_s=TIMEOUT_S)
        for each in backends:
            await each.generate(request, seed=1, slot=0)

    def read(self) -> tuple[int | None, float | None]:
        return None, self._clock.seconds

    def build(self) -> Build:
        return inproc_build(self._lib)


class _AsRecorded:
    """A backend whose answers get the recorded lengths, which the scheduler does not know.

    Args:
        backend: The backend of a run.
        lengths: Tokens of each answer.
    """

    def __init__(self, backend: Backend, lengths: Mapping[Place, int]) -> None:
        self._backend = backend
        self._lengths = lengths
        self.start = backend.start
        self.wait_ready = backend.wait_ready
        self.count_prompt_tokens = backend.count_prompt_tokens
        self.aclose = backend.aclose

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
        sampling = request.sampling
        length = self._lengths.get(place_of(request), sampling.max_tokens)
        sampling = replace(sampling, max_tokens=length)
        return await self._backend.generate(
            replace(request, sampling=sampling), seed=seed, slot=slot
        )


async def _serve(
    turn: Turn,
    workload: Workload,
    server: ManagedServer | None,
    meter: _Meter,
    stack: AsyncExitStack,
) -> Served:
    folder, rehearsal = Path(turn.folder), rehearsal_of(turn, workload)
    fleet, log = _mustered(turn, workload, rehearsal, server, stack)
    settings = with_prefix_copies(config_of(turn), rehearsal, server)
    lengths = {question.place: question.output_tokens for question in workload.questions}
    backends = {name: _AsRecorded(each, lengths) for name, each in fleet.backends.items()}
    for each in backends.values():
        await stack.enter_async_context(aclosing(each))
    journal = await stack.enter_async_context(aclosing(Journal(folder / JOURNAL, log=log)))
    await journal.open()
    async with Scheduler(backends, settings, log=log, journal=journal) as scheduler:
        await meter.warm_up(backends.values())
        rounds = [[_request(fleet, question) for question in one] for one in workload.rounds]
        before, used = meter.read(), cpu(meter.pid)
        began = time.perf_counter()
        answered = [await scheduler.run_step(requests) for requests in rounds]
        seconds = time.perf_counter() - began
        after, spent = meter.read(), cpu(meter.pid)
        slots = sum(lane.slots for lane in scheduler.lanes.values())
    usages = [completion.answers[-1].usage for one in answered for completion in one]
    computed = _less(after[0], before[0])
    if computed is None:
        computed = sum(usage.prompt_tokens - usage.cached_tokens for usage in usages)
    build = meter.build()
    return Served(
        seconds=seconds,
        requests=len(usages),
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        computed_tokens=computed,
        output_tokens=sum(usage.completion_tokens for usage in usages),
        slots=slots,
        cpu_s=used.until(spent),
        peak_bytes=peak_bytes(meter.pid),
        build=build.name,
        instructions=build.instructions,
        native_s=_less(after[1], before[1]),
    )


def _mustered(
    turn: Turn,
    workload: Workload,
    rehearsal: Rehearsal,
    server: ManagedServer | None,
    stack: AsyncExitStack,
) -> tuple[Fleet, EventLog]:
    """Return the backends that a run of the workload's scenario would have, and its log."""
    folder, config = Path(turn.folder), config_of(turn)
    log_file = stack.enter_context((folder / LOG).open("w", encoding="utf-8"))
    log = open_run_log(log_file, run=folder.name)
    fleet = muster(
        rehearsal,
        config.backend,
        managed_url=None if server is None else server.base_url,
        context=workload.context,
        slots=config.scheduler.slots,
        log=log,
    )
    return fleet, log


def _request(fleet: Fleet, question: Question) -> Request:
    service = fleet.services[question.agent_id]
    return question.request(
        backend=service.backend,
        model=service.model,
        timeout_s=TIMEOUT_S,
        max_tokens=MAX_TOKENS,
    )


N = TypeVar("N", int, float)


def _less(after: N | None, before: N | None) -> N | None:
    return None if after is None or before is None else after - before
