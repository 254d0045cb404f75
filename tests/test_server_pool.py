"""Several servers are one backend: groups have homes, a lost server's share moves and returns."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import anyio
import pytest

from scheduler.backends.base import Placement, RawAnswer
from scheduler.backends.fake import FakeBackend
from scheduler.backends.server_pool import ServerPool
from scheduler.engine import Scheduler
from scheduler.errors import BackendUnavailable, ConfigError, ConnectionFailed
from scheduler.types import Completion, Request
from tests.doubles import NoLog, config
from tests.questions import names, question, transcript

pytestmark = pytest.mark.virtual_time

READY_TIMEOUT_S = 5.0


class Mortal(FakeBackend):
    """A server that can die and come back; remembers the groups that it answered."""

    def __init__(self, slots: int = 2, **options: Any) -> None:
        super().__init__(slots, **{"delay": lambda *_: 1.0, **options})
        self.alive = True
        self.hangs = False
        self.served: list[str] = []
        self.slots_seen: set[int] = set()
        self._died = anyio.Event()
        self._back = anyio.Event()

    def be(self, **fields: Any) -> Mortal:
        """Say something else of itself."""
        self._info = replace(self._info, **fields)
        return self

    def die(self) -> None:
        self.alive = False
        self._died.set()
        self._back = anyio.Event()

    def hang(self) -> None:
        """Take requests, and the question whether it is ready, and answer nothing."""
        self.alive = False
        self.hangs = True
        self._back = anyio.Event()

    def revive(self) -> None:
        self.hangs = False
        self.alive = True
        self._died = anyio.Event()
        self._back.set()

    async def wait_ready(self) -> None:
        with anyio.move_on_after(READY_TIMEOUT_S * (10 if self.hangs else 1)):
            if not self.alive:
                await self._back.wait()
            await anyio.lowlevel.checkpoint()
            return
        raise BackendUnavailable("it did not come back")

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
        assert 0 <= slot < self._info.slots
        if self.hangs:
            await anyio.sleep_forever()
        answer: list[RawAnswer] = []
        async with anyio.create_task_group() as group:

            async def work() -> None:
                made = super(Mortal, self).generate(request, seed=seed, slot=slot)
                answer.append(await made)
                group.cancel_scope.cancel()

            async def death() -> None:
                await self._died.wait()
                group.cancel_scope.cancel()

            group.start_soon(work)
            group.start_soon(death)
        if not answer:
            raise ConnectionFailed("the server has died")
        self.served.append(request.group)
        self.slots_seen.add(slot)
        return answer[0]


class Log(NoLog):
    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def info(self, event: str, **fields: Any) -> None:
        self._keep(event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._keep(event, fields)

    def _keep(self, event: str, fields: dict[str, Any]) -> None:
        if event.startswith("server."):
            self.events.append((event, fields["server"]))


def pool_of(servers: Sequence[FakeBackend], **options: Any) -> ServerPool:
    return ServerPool([(f"server-{n}", one) for n, one in enumerate(servers)], **options)


def asked(count: int, groups: int, **fields: Any) -> list[Request]:
    return [question(n, prefix_group=f"group-{n % groups}", **fields) for n in range(count)]


async def alone(requests: Sequence[Request]) -> list[Completion]:
    async with Scheduler(FakeBackend(8)) as scheduler:
        return await scheduler.run_step(requests)


async def test_a_pool_has_the_slots_of_all_and_the_fingerprint_of_one() -> None:
    one, two = Mortal(2), Mortal(3).be(context_per_slot=4096)
    info = await pool_of([one, two]).start()
    assert (info.slots, info.context_per_slot) == (5, 4096)
    assert info.fingerprint == (await one.start()).fingerprint
    assert isinstance(pool_of([one]), Placement)
    assert not isinstance(one, Placement)


@pytest.mark.parametrize(
    "other", [{"model": "other.gguf"}, {"build": "2"}, {"facts": {"template": "x"}}]
)
async def test_a_different_server_is_refused_by_name_unless_told_otherwise(
    other: dict[str, Any],
) -> None:
    servers = [
        Mortal().be(facts={"template": "a"}),
        Mortal().be(**{"facts": {"template": "a"}, **other}),
    ]
    with pytest.raises(ConfigError, match=r"server-1 is another server than server-0 \(\w+: "):
        await pool_of(servers).start()
    info = await pool_of(servers, allow_different=True).start()
    assert info.fingerprint not in {(await one.start()).fingerprint for one in servers}


async def test_each_group_is_answered_by_its_home_while_all_are_busy() -> None:
    servers = [Mortal(1), Mortal(1)]
    async with Scheduler(pool_of(servers), config(max_batch=200)) as scheduler:
        await scheduler.run_step(asked(120, 6))
    homes = [set(one.served) for one in servers]
    # Only the end of a step, when a server has nothing of its own left, may cross.
    crossed = homes[0] & homes[1]
    assert len(crossed) <= 1
    assert homes[0]
    assert homes[1]


async def test_an_idle_slot_takes_what_belongs_elsewhere() -> None:
    servers = [Mortal(2), Mortal(2)]
    async with Scheduler(pool_of(servers)) as scheduler:
        began = anyio.current_time()
        await scheduler.run_step(asked(8, 1))
        assert anyio.current_time() - began == 2.0
    assert [len(one.served) for one in servers] == [4, 4]
    assert [one.slots_seen for one in servers] == [{0, 1}, {0, 1}]


async def test_a_dead_servers_share_moves_and_comes_back() -> None:
    servers, log = [Mortal(2), Mortal(2)], Log()
    requests = asked(40, 8)
    async with Scheduler(pool_of(servers, log=log), config(max_batch=100)) as scheduler:
        before = await scheduler.run_step(requests)
        homes = [set(one.served) for one in servers]
        servers[0].die()
        for one in servers:
            one.served.clear()
        during = await scheduler.run_step(requests)
        assert not servers[0].served
        assert len(servers[1].served) == 40
        servers[0].revive()
        await anyio.sleep(READY_TIMEOUT_S)
        for one in servers:
            one.served.clear()
        after = await scheduler.run_step(requests)
    expected = transcript(await alone(requests))
    assert [transcript(step) for step in (before, during, after)] == [expected] * 3
    assert len(set(servers[0].served) & homes[0]) >= len(homes[0]) - 1
    events = ("server.lost", "server.missing", "server.back")
    assert log.events == [(event, "server-0") for event in events]


async def test_a_hung_servers_share_moves_after_one_deadline_and_comes_back() -> None:
    servers, log = [Mortal(2), Mortal(2)], Log()
    requests = asked(40, 8, max_retries=1, timeout_s=30.0)
    async with Scheduler(pool_of(servers, log=log), config(max_batch=100)) as scheduler:
        before = await scheduler.run_step(requests)
        for one in servers:
            one.served.clear()
        servers[0].hang()
        during = await scheduler.run_step(requests)
        assert scheduler.stats.retries == 2
        assert len(servers[1].served) == 40
        servers[0].revive()
        await anyio.sleep(10 * READY_TIMEOUT_S)
        after = await scheduler.run_step(requests)
    assert servers[0].served
    assert transcript(before) == transcript(during) == transcript(after)
    assert [event for event, _ in log.events] == ["server.lost", "server.back"]
    assert {name for _, name in log.events} == {"server-0"}


async def test_a_slow_server_is_not_lost_when_a_deadline_is_met() -> None:
    servers, log = [Mortal(1, delay=lambda _, nth: 99.0 if nth == 1 else 1.0), Mortal(1)], Log()
    async with Scheduler(pool_of(servers, log=log), config()) as scheduler:
        completions = await scheduler.run_step(asked(8, 4, timeout_s=10.0))
    assert all(one.ok for one in completions)
    assert log.events == []


async def test_a_server_that_comes_back_in_the_middle_of_a_step_is_used_again() -> None:
    servers = [Mortal(1), Mortal(1)]
    servers[0].die()
    async with anyio.create_task_group() as group, Scheduler(pool_of(servers)) as scheduler:

        async def mend() -> None:
            await anyio.sleep(3.0)
            servers[0].revive()

        group.start_soon(mend)
        completions = await scheduler.run_step(asked(20, 4))
    assert names(completions) == [f"agent-{n:03d}" for n in range(20)]
    assert 6 <= len(servers[0].served) <= 9
    assert scheduler.stats.retries <= 1


async def test_what_waits_is_sent_to_a_server_that_comes_back_while_the_others_are_busy() -> None:
    servers = [Mortal(1, delay=lambda *_: 1.0), Mortal(1, delay=lambda *_: 100.0)]
    async with Scheduler(pool_of(servers)) as scheduler, anyio.create_task_group() as group:
        servers[0].die()
        group.start_soon(scheduler.run_step, asked(2, 1, timeout_s=1000.0))
        await anyio.sleep(3.0)
        assert (scheduler.in_flight, scheduler.lanes["default"].waiting) == (1, 1)
        servers[0].revive()
        await anyio.sleep(3.0)
        assert len(servers[0].served) == 1


async def test_without_any_server_requests_fail_and_nothing_hangs() -> None:
    servers = [Mortal(1), Mortal(1)]
    for one in servers:
        one.die()
    async with Scheduler(pool_of(servers), config(on_failure="noop")) as scheduler:
        completions = await scheduler.run_step(asked(6, 2, max_retries=1))
        assert all(not one.ok for one in completions)
        for one in servers:
            one.revive()
        await anyio.sleep(3 * READY_TIMEOUT_S)
        assert all(one.ok for one in await scheduler.run_step(asked(6, 2)))


async def test_the_last_server_is_waited_for_although_another_was_given_up() -> None:
    class GivenUp(Mortal):
        async def wait_ready(self) -> None:
            await anyio.lowlevel.checkpoint()
            raise BackendUnavailable("looked for once")

    servers = [GivenUp(1), Mortal(1)]
    servers[0].die()
    async with Scheduler(pool_of(servers), config(on_failure="noop")) as scheduler:
        await scheduler.run_step(asked(4, 2))
        servers[1].die()
        async with anyio.create_task_group() as group:
            group.start_soon(_revive_later, servers[1])
            completions = await scheduler.run_step(asked(4, 2, max_retries=1))
    assert all(one.ok for one in completions)


async def _revive_later(server: Mortal) -> None:
    await anyio.sleep(READY_TIMEOUT_S / 2)
    server.revive()


async def test_a_server_that_comes_back_as_another_stays_out() -> None:
    class Changed(Mortal):
        async def wait_ready(self) -> None:
            await anyio.lowlevel.checkpoint()
            raise BackendUnavailable("came back as another one")

    servers, log = [Changed(1), Mortal(1)], Log()
    servers[0].die()
    async with Scheduler(pool_of(servers, log=log)) as scheduler:
        await scheduler.run_step(asked(10, 4))
        servers[0].revive()
        await anyio.sleep(60)
        await scheduler.run_step(asked(10, 4))
    assert not servers[0].served
    assert log.events == [("server.lost", "server-0"), ("server.missing", "server-0")]


@pytest.mark.parametrize("seed", range(40))
async def test_deaths_at_random_change_no_answer(seed: int) -> None:
    draw = random.Random(seed)
    servers = [
        Mortal(draw.randint(1, 3), delay=lambda *_: draw.choice([0.1, 1.0, 2.5])) for _ in range(3)
    ]
    requests = asked(40, 5, max_retries=1000)
    over = anyio.Event()

    async def fate(server: Mortal) -> None:
        while not over.is_set():
            await anyio.sleep(draw.uniform(0.5, 10))
            server.die()
            await anyio.sleep(draw.uniform(0.1, 4))
            server.revive()

    async with anyio.create_task_group() as group:
        async with Scheduler(pool_of(servers), config(retry_base_s=0.01)) as scheduler:
            for server in servers:
                group.start_soon(fate, server)
            completions = [await scheduler.run_step(requests) for _ in range(3)]
            assert scheduler.in_flight == 0
        over.set()
        group.cancel_scope.cancel()
    expected = transcript(await alone(requests))
    assert [transcript(step) for step in completions] == [expected] * 3, f"seed {seed}"


async def test_homes_are_stable_and_a_lost_server_moves_only_its_own() -> None:
    servers = [Mortal(1) for _ in range(4)]
    pool = pool_of(servers)
    await pool.start()

    def homes() -> dict[str, int]:
        groups = [f"g{n}" for n in range(200)]
        return {g: next(s for s in range(4) if pool.is_home(s, g)) for g in groups}

    before = homes()
    sizes: defaultdict[int, int] = defaultdict(int)
    for home in before.values():
        sizes[home] += 1
    assert min(sizes.values()) > 25
    servers[2].die()
    with pytest.raises(ConnectionFailed):
        await pool.generate(question(), seed=1, slot=2)
    after = homes()
    assert {g for g in before if before[g] != after[g]} == {g for g in before if before[g] == 2}
    assert 2 not in after.values()


async def test_closing_and_counting_go_to_the_servers() -> None:
    class Closing(Mortal):
        closed = 0

        async def aclose(self) -> None:
            self.closed += 1

    servers = [Closing(), Closing()]
    pool = pool_of(servers)
    await pool.start()
    messages = question().messages
    assert await pool.count_prompt_tokens(messages) == await servers[0].count_prompt_tokens(
        messages
    )
    await pool.wait_ready()
    await pool.aclose()
    assert [one.closed for one in servers] == [1, 1]


async def test_a_pool_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="one server or more"):
        pool_of([])
