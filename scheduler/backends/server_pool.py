"""Several equal servers as one backend: each prefix group has a home, a dead server none.

A group's home is found by rendezvous hashing, so that only a dead server's share moves to
the others, and back when it is there again. The engine owns queue and slots; the pool says
which server a slot is on, whether that is up, and which groups it is home to. A slot whose
server is home to nothing that waits takes what another server would: no slot stays idle.
What a request is answered does not say by whom; the log does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import anyio

from scheduler.backends.base import Backend, BackendInfo, RawAnswer
from scheduler.backends.llama_probe import difference
from scheduler.errors import (
    BackendUnavailable,
    ConfigError,
    ConnectionFailed,
    SchedulerError,
    ServerLoading,
)
from scheduler.observe import EventLog
from scheduler.types import Message, Request

_LOOK_AGAIN_S = 1.0
_ANSWERS_WITHIN_S = 5.0


@dataclass(eq=False, slots=True)
class _Member:
    """One server: where it is, what it said at its start, and whether it is up.

    `broke_off` says that a request was cancelled there, perhaps because it met its deadline.
    """

    number: int
    name: str
    backend: Backend
    info: BackendInfo
    up: bool = True
    reason: str = ""
    broke_off: bool = False
    lost: anyio.Event = field(default_factory=anyio.Event)


class ServerPool:
    """Answers by way of several servers; has the slots of all of them.

    Args:
        servers: The servers by name, in the configured order.
        allow_different: Take servers of different model, build or settings; then an answer
            depends on who gave it.
        log: Is told which server is lost and which is back.

    Raises:
        ConfigError: There is no server.
    """

    def __init__(
        self,
        servers: Sequence[tuple[str, Backend]],
        *,
        allow_different: bool = False,
        log: EventLog | None = None,
    ) -> None:
        if not servers:
            raise ConfigError("a pool needs one server or more")
        self._servers = list(servers)
        self._allow_different = allow_different
        self._log = log
        self._members: list[_Member] = []
        self._places: list[tuple[_Member, int]] = []
        self._info: BackendInfo | None = None
        self._came_back = anyio.Event()

    def __repr__(self) -> str:
        up = sum(member.up for member in self._members)
        return f"<ServerPool {up} of {len(self._servers)} servers up>"

    async def start(self) -> BackendInfo:
        """Start all servers and check that they are equal; called again, say the same.

        Raises:
            BackendUnavailable: One can't be reached, or did not get ready in time.
            ConfigError: They differ in what answers depend on, or one is no llama-server.
        """
        if self._info is None:
            members = []
            for number, (name, backend) in enumerate(self._servers):
                members.append(_Member(number, name, backend, await backend.start()))
            self._check_equal(members)
            self._members = members
            # Slot numbers go round the servers, so that low ones, which fill first, are on all.
            local = [(place, one.number) for one in members for place in range(one.info.slots)]
            self._places = [(members[number], place) for place, number in sorted(local)]
            self._info = _joint(members)
        return self._info

    async def wait_ready(self) -> None:
        """Return once one of the servers can be asked; `watch` finds out which.

        Those that hang are told from the others here, since a missed deadline does not say.

        Raises:
            BackendUnavailable: None came back in time.
        """
        async with anyio.create_task_group() as looks:
            for member in self._members:
                if member.up and member.broke_off:
                    looks.start_soon(self._look_whether_it_hangs, member)
        if self._any_up:
            await anyio.lowlevel.checkpoint()
            return
        # All of them, since one that was given up long ago is not waited for again.
        async with anyio.create_task_group() as looks:
            for member in self._members:
                looks.start_soon(self._look_until_one_is_up, member, looks.cancel_scope)
        if not self._any_up:
            first = self._members[0]
            raise BackendUnavailable(
                f"none of {len(self._members)} servers can be asked; {first.name}: {first.reason}"
            )

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
        """Answer `request` on the server that has `slot`.

        Raises:
            AttemptError: No answer; the subclass says why.
        """
        member, local = self._places[slot]
        try:
            return await member.backend.generate(request, seed=seed, slot=local)
        except (ConnectionFailed, ServerLoading) as exc:
            self._mark_lost(member, str(exc))
            raise
        except anyio.get_cancelled_exc_class():
            member.broke_off = True
            raise

    async def count_prompt_tokens(self, messages: Sequence[Message]) -> int | None:
        """Return how many tokens `messages` are for the first server."""
        return await self._servers[0][1].count_prompt_tokens(messages)

    async def aclose(self) -> None:
        """Close the connections to all servers; may be called twice."""
        for _, backend in self._servers:
            await backend.aclose()

    def has_slot(self, slot: int) -> bool:
        """Whether `slot` is on a server that is up; if none is, on any, so that errors are seen."""
        return self._places[slot][0].up or not self._any_up

    def is_home(self, slot: int, group: str) -> bool:
        """Whether `slot` is on the server that `group` belongs to, among those that are up."""
        up = [member for member in self._members if member.up] or self._members
        return self._places[slot][0] is max(up, key=lambda member: _weight(group, member.number))

    async def watch(self, changed: Callable[[], object]) -> None:
        """Look for servers that were lost, until cancelled; call `changed` when one is back."""
        async with anyio.create_task_group() as group:
            for member in self._members:
                group.start_soon(self._watch_one, member, changed)

    async def _watch_one(self, member: _Member, changed: Callable[[], object]) -> None:
        while True:
            await member.lost.wait()
            while not member.up:
                await self._look_for(member)
                if not member.up:
                    await anyio.sleep(_LOOK_AGAIN_S)
            changed()

    async def _look_whether_it_hangs(self, member: _Member) -> None:
        """Mark a server as lost that does not answer soon."""
        member.broke_off = False
        try:
            with anyio.fail_after(_ANSWERS_WITHIN_S):
                await member.backend.wait_ready()
        except TimeoutError:
            self._mark_lost(member, f"it hangs: no health check answered in {_ANSWERS_WITHIN_S} s")
        except SchedulerError as exc:
            self._mark_lost(member, str(exc))

    async def _look_until_one_is_up(self, member: _Member, looks: anyio.CancelScope) -> None:
        await self._look_for(member)
        if self._any_up:
            looks.cancel()

    async def _look_for(self, member: _Member) -> None:
        """Wait for a server for a while; mark it as up when it is there and still the same."""
        try:
            await member.backend.wait_ready()
        except SchedulerError as exc:
            if str(exc) != member.reason:
                self._tell("warning", "server.missing", member, reason=str(exc))
            member.reason = str(exc)
            return
        if not member.up:
            member.up, member.reason, member.lost = True, "", anyio.Event()
            self._tell("info", "server.back", member)

    def _mark_lost(self, member: _Member, reason: str) -> None:
        if member.up:
            member.up, member.reason = False, reason
            member.lost.set()
            self._tell("warning", "server.lost", member, reason=reason)

    def _tell(self, level: str, event: str, member: _Member, **fields: Any) -> None:
        if self._log is not None:
            up = sum(one.up for one in self._members)
            getattr(self._log, level)(event, server=member.name, servers_up=up, **fields)

    @property
    def _any_up(self) -> bool:
        return any(member.up for member in self._members)

    def _check_equal(self, members: Sequence[_Member]) -> None:
        first = members[0]
        for other in members[1:]:
            if other.info.fingerprint == first.info.fingerprint or self._allow_different:
                continue
            same = replace(
                other.info, slots=first.info.slots, context_per_slot=first.info.context_per_slot
            )
            raise ConfigError(
                f"{other.name} is another server than {first.name} "
                f"({difference(first.info, same)}), so an answer would depend on who gave it. "
                "Start both with the same build, model and settings, or set "
                "backend.allow_different_servers to true"
            )


def _weight(group: str, number: int) -> bytes:
    return sha256(f"{number}\0{group}".encode()).digest()


def _joint(members: Sequence[_Member]) -> BackendInfo:
    """Return what the servers are together: one of them, with the slots of all.

    Equal servers have the fingerprint of one, so that a run can be resumed with more or fewer.
    """
    infos = [member.info for member in members]
    contexts = [info.context_per_slot for info in infos]
    known = [context for context in contexts if context is not None]
    joint = replace(
        infos[0],
        slots=sum(info.slots for info in infos),
        context_per_slot=min(known) if len(known) == len(contexts) else None,
    )
    fingerprints = sorted({info.fingerprint for info in infos})
    if len(fingerprints) > 1:
        joint = replace(joint, facts={**joint.facts, "different_servers": fingerprints})
    return joint
