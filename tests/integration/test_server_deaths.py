"""A real llama-server that is killed while a run needs it, and what becomes of the run."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from scheduler.backends.llama_server import LlamaServerBackend
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import AttemptTimeout, BackendUnavailable, RequestFailed, StepAborted
from scheduler.gguf_models import write_model
from scheduler.journal import Journal
from scheduler.restarts import Restarts
from scheduler.server import ManagedServer, Profile, ServerSpec, find_server
from scheduler.types import Completion, Sampling
from tests.doubles import NoLog
from tests.integration.conftest import ENDLESS, endless_flags
from tests.questions import questions
from tests.swarm.simulations import llm, manifest, swarm, write_config, write_scenario
from tests.swarm.test_resume import check_is_like, check_nothing_was_asked_twice, events

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="a kill can't be aimed there"),
]

SHORT = Sampling(max_tokens=12)
MODE = ("--inference-scheduler", "batch")
RUN = Path("the-run")
FRESH = Path("fresh")


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLAMA_SERVER", "xllamacpp")


class Restarted(NoLog):
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    def of(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]


def managed(
    model: Path, port: int = 0, profile: Profile = "invariant", **options: Any
) -> ManagedServer:
    spec = ServerSpec(model, 4, 2048, port=port, threads=1, profile=profile, alias="demo")
    return ManagedServer(
        spec, binary=find_server("xllamacpp"), log_path=Path("server.log"), **options
    )


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def stop(pid: int) -> None:
    """Let a process hang: its port still takes connections, and nothing is answered."""
    os.kill(pid, signal.SIGSTOP)


def texts(completions: list[Completion]) -> list[str]:
    return [completion.text for completion in completions]


# --- a server of our own, below the simulation


@pytest.mark.anyio
async def test_a_killed_server_of_our_own_is_started_again_and_answers_the_same(
    demo_model: Path,
) -> None:
    log = Restarted()
    asked = questions(8, sampling=SHORT)
    async with managed(demo_model) as server:
        restarts = Restarts(server, limit=3, log=log)
        backend = LlamaServerBackend(server.base_url, pin_slots=True, restarts=restarts)
        async with Scheduler(backend, log=log) as scheduler:
            before = await scheduler.run_step(asked)
            for _ in range(2):
                first = server.pid
                kill(first)
                assert texts(await scheduler.run_step(asked)) == texts(before)
                assert server.pid != first
        await backend.aclose()
    restarted = log.of("server.restarted")
    assert [one["restarts"] for one in restarted] == [1, 2]
    assert {one["exit_status"] for one in restarted} == {-signal.SIGKILL}
    assert restarts.count == 2
    assert log.of("backend.lost") == []


@pytest.mark.anyio
async def test_a_hung_server_of_our_own_is_ended_and_started_again(demo_model: Path) -> None:
    log = Restarted()
    asked = questions(8, sampling=SHORT, timeout_s=5.0)
    async with managed(demo_model, stop_grace_s=0.5) as server:
        restarts = Restarts(server, limit=1, log=log)
        backend = LlamaServerBackend(server.base_url, restarts=restarts, ready_timeout_s=2.0)
        async with Scheduler(backend, SchedulerConfig(retry_base_s=0.01), log=log) as scheduler:
            before = await scheduler.run_step(asked)
            first = server.pid
            stop(first)
            assert texts(await scheduler.run_step(asked)) == texts(before)
            assert server.pid != first
            with pytest.raises(ProcessLookupError):
                os.kill(first, 0)
            stop(server.pid)
            with pytest.raises(StepAborted, match=r"hangs after 1 restarts, .*max_restarts is 1"):
                await scheduler.run_step(questions(8, step=1, sampling=SHORT, timeout_s=5.0))
        await backend.aclose()
    assert [one["pid"] for one in log.of("server.hung")] == [first]
    [restarted] = log.of("server.restarted")
    assert (restarted["reason"], restarted["exit_status"]) == ("hung", None)


@pytest.mark.anyio
async def test_a_busy_server_of_our_own_is_not_taken_for_a_hung_one(demo_model: Path) -> None:
    log = Restarted()
    async with managed(demo_model, profile="fast", flags=endless_flags) as server:
        restarts = Restarts(server, limit=1, log=log)
        backend = LlamaServerBackend(server.base_url, restarts=restarts)
        settings = SchedulerConfig(on_failure="noop")
        async with Scheduler(backend, settings, log=log) as scheduler:
            # Each meets its deadline while the server is still at its work.
            asked = questions(4, sampling=ENDLESS, timeout_s=0.2, max_retries=1)
            completions = await scheduler.run_step(asked)
        await backend.aclose()
    causes = [type(one.error.__cause__) for one in completions if one.error]
    assert causes == [AttemptTimeout] * 4
    assert restarts.count == 0
    assert log.of("server.hung") == []


@pytest.mark.anyio
async def test_a_model_that_is_swapped_between_two_rounds_answers_nothing(
    demo_model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "another.gguf"
    write_model(other, "demo", seed=99)
    async with managed(demo_model) as server:
        port = int(server.base_url.rpartition(":")[2].removesuffix("/v1"))
        backend = LlamaServerBackend(server.base_url, ready_timeout_s=5.0)
        journal = Journal(tmp_path / "journal")
        await journal.open()
        async with Scheduler(backend, journal=journal) as scheduler:
            await scheduler.run_step(questions(4, sampling=SHORT))
            await server.stop()
            async with managed(other, port):
                with pytest.raises(StepAborted, match=r"as another one \(model_file: 'demo.gguf'"):
                    await scheduler.run_step(questions(4, step=1, sampling=SHORT))
        await backend.aclose()
        await journal.aclose()
    assert journal.stored == 4


@pytest.mark.anyio
async def test_a_server_that_dies_too_often_is_given_up_at_once_and_for_good(
    demo_model: Path,
) -> None:
    log = Restarted()
    asked = questions(8, sampling=SHORT, max_retries=1)
    async with managed(demo_model) as server:
        restarts = Restarts(server, limit=0)
        backend = LlamaServerBackend(server.base_url, restarts=restarts, ready_timeout_s=3600)
        settings = SchedulerConfig(on_failure="noop")
        async with Scheduler(backend, settings, log=log) as scheduler:
            kill(server.pid)
            with anyio.fail_after(60):
                completions = await scheduler.run_step(asked)
                later = await scheduler.run_step(questions(8, step=1))
        await backend.aclose()
    for completion in (*completions, *later):
        assert completion.error is not None
        assert isinstance(completion.error.__cause__, BackendUnavailable)
        assert "max_restarts is 0" in str(completion.error)
    assert {completion.attempts for completion in later} == {0}
    assert len(log.of("backend.lost")) == 1


@pytest.mark.anyio
async def test_a_restarted_server_is_followed_to_another_port(demo_model: Path) -> None:
    asked = questions(4, sampling=SHORT)
    async with managed(demo_model) as server:
        backend = LlamaServerBackend(server.base_url, restarts=Restarts(server))
        async with Scheduler(backend) as scheduler:
            before = await scheduler.run_step(asked)
            address = server.base_url
            kill(server.pid)
            with taken(int(address.rpartition(":")[2].removesuffix("/v1"))):
                assert texts(await scheduler.run_step(asked)) == texts(before)
            assert server.base_url != address
        await backend.aclose()


@contextlib.contextmanager
def taken(port: int) -> Iterator[None]:
    """Hold `port` as soon as its server is gone, and answer nobody."""
    deadline = time.monotonic() + 100
    while True:
        try:
            listener = socket.create_server(("127.0.0.1", port))
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    over = threading.Event()

    def turn_away() -> None:
        listener.settimeout(0.05)
        while not over.is_set():
            with contextlib.suppress(OSError):
                listener.accept()[0].close()

    thread = threading.Thread(target=turn_away)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        listener.close()


@pytest.mark.anyio
async def test_a_server_whose_model_is_gone_does_not_start_again_and_says_so(
    tmp_path: Path, demo_model: Path
) -> None:
    model = tmp_path / "demo.gguf"
    shutil.copy(demo_model, model)
    async with managed(model) as server:
        backend = LlamaServerBackend(server.base_url, restarts=Restarts(server))
        async with Scheduler(backend, SchedulerConfig(on_failure="noop")) as scheduler:
            kill(server.pid)
            model.write_bytes(b"GGUF, once")
            [completion] = await scheduler.run_step(questions(1, sampling=SHORT))
        await backend.aclose()
    assert isinstance(completion.error, RequestFailed)
    assert "demo.gguf is GGUF version" in str(completion.error)


# --- a whole run


def scenario() -> None:
    write_scenario(Path("s.yaml"), [llm(5, max_tokens=12, timeout=60)], epochs=1, steps=2)


def command(run: Path, config: Path, *more: object) -> list[object]:
    return ["run", "s.yaml", *MODE, "--run-dir", run, "--inference-config", config, "-q", *more]


class Killer:
    """Kills, from a thread, the run's server each time that enough has been answered."""

    def __init__(self, run: Path, *after: int) -> None:
        self._run = run
        self._after = after
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.killed: list[int] = []

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        for after in self._after:
            while not self._over.wait(0.002):
                if not (self._run / "inference.jsonl").exists():
                    continue
                seen = events(self._run)
                pids = [one["pid"] for one in seen if one["event"].startswith("server.")]
                answered = sum(one["event"] == "request.answered" for one in seen)
                if answered >= after and pids[-1] not in self.killed:
                    self.killed.append(pids[-1])
                    kill(pids[-1])
                    break


def test_a_run_whose_server_is_killed_ends_as_if_it_had_not_been(demo_model: Path) -> None:
    scenario()
    served = {"kind": "llama_server", "managed": True, "model_path": str(demo_model), "threads": 1}
    sections = {"scheduler": {"slots": 4}, "determinism": {"server_profile": "invariant"}}
    config = write_config(Path("config.yaml"), backend=served, **sections)
    assert swarm(*command(FRESH, config)) == 0
    with Killer(RUN.absolute(), 2, 7) as killer:
        assert swarm(*command(RUN, config)) == 0
    assert len(killer.killed) == 2
    check_is_like(RUN, FRESH)
    check_nothing_was_asked_twice(RUN)
    restarted = [event for event in events(RUN) if event["event"] == "server.restarted"]
    assert [event["restarts"] for event in restarted] == [1, 2]
    assert manifest(RUN)["inference"]["server_restarts"] == 2
    assert manifest(FRESH)["inference"]["server_restarts"] == 0


@pytest.fixture
def own_server(demo_model: Path) -> Iterator[tuple[Any, ManagedServer]]:
    """A server that a user has started, and what runs its coroutines."""
    server = managed(demo_model)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(server):
        yield portal, server


def unmanaged(server: ManagedServer, ready_timeout_s: float) -> Path:
    address = {
        "kind": "llama_server",
        "base_url": server.base_url,
        "ready_timeout_s": ready_timeout_s,
    }
    return write_config(Path("config.yaml"), backend=address)


def test_a_users_server_is_waited_for_and_the_run_goes_on(
    own_server: tuple[Any, ManagedServer],
) -> None:
    portal, server = own_server
    scenario()
    config = unmanaged(server, 60.0)
    assert swarm(*command(FRESH, config)) == 0

    def restart() -> None:
        wait_for_answers(4)
        kill(server.pid)
        while server.poll() is None:
            time.sleep(0.01)
        portal.call(server.start)

    thread = threading.Thread(target=restart)
    thread.start()
    assert swarm(*command(RUN, config)) == 0
    thread.join()
    check_is_like(RUN, FRESH)
    check_nothing_was_asked_twice(RUN)


def wait_for_answers(count: int) -> None:
    log = RUN.absolute() / "inference.jsonl"
    deadline = time.monotonic() + 100
    while not log.exists() or log.read_bytes().count(b'"request.answered"') < count:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_users_server_that_does_not_come_back_ends_the_run_which_is_resumed_later(
    own_server: tuple[Any, ManagedServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    portal, server = own_server
    scenario()
    config = unmanaged(server, 10.0)
    assert swarm(*command(FRESH, config)) == 0

    def end() -> None:
        wait_for_answers(4)
        kill(server.pid)

    thread = threading.Thread(target=end)
    thread.start()
    assert swarm(*command(RUN, config)) == 1
    thread.join()
    err = capsys.readouterr().err
    assert "no llama-server could be reached" in err
    assert "--resume --run-dir the-run" in err
    assert manifest(RUN)["state"] == "aborted"

    other = tmp_path / "demo.gguf"
    write_model(other, "demo", seed=99)
    port = int(server.base_url.rpartition(":")[2].removesuffix("/v1"))
    spec = ServerSpec(other, 4, 2048, port=port, threads=1, alias="another")
    stranger = ManagedServer(
        spec, binary=find_server("xllamacpp"), log_path=tmp_path / "stranger.log"
    )
    with portal.wrap_async_context_manager(stranger):
        assert swarm(*command(RUN, config, "--resume")) == 2
    assert "another" in capsys.readouterr().err

    portal.call(server.start)
    assert swarm(*command(RUN, config, "--resume")) == 0
    check_is_like(RUN, FRESH)
    check_nothing_was_asked_twice(RUN)


def test_a_users_server_that_hangs_is_waited_for_and_then_ends_the_run_which_is_resumed(
    own_server: tuple[Any, ManagedServer], capsys: pytest.CaptureFixture[str]
) -> None:
    _, server = own_server
    scenario()
    config = unmanaged(server, 10.0)
    assert swarm(*command(FRESH, config)) == 0
    write_scenario(Path("s.yaml"), [llm(5, max_tokens=12, timeout=15)], epochs=1, steps=2)

    def hang() -> None:
        wait_for_answers(4)
        stop(server.pid)

    thread = threading.Thread(target=hang)
    thread.start()
    try:
        assert swarm(*command(RUN, config)) == 1
    finally:
        thread.join()
        os.kill(server.pid, signal.SIGCONT)
    err = capsys.readouterr().err
    assert "hangs: it has answered nothing" in err
    assert "--resume --run-dir the-run" in err
    assert manifest(RUN)["state"] == "aborted"
    scenario()
    assert swarm(*command(RUN, config, "--resume")) == 0
    check_is_like(RUN, FRESH)
    check_nothing_was_asked_twice(RUN)


def test_a_users_server_that_comes_back_with_another_model_is_refused(
    own_server: tuple[Any, ManagedServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    portal, server = own_server
    scenario()
    config = unmanaged(server, 60.0)
    port = int(server.base_url.rpartition(":")[2].removesuffix("/v1"))
    other = tmp_path / "another.gguf"
    write_model(other, "demo", seed=99)
    spec = ServerSpec(other, 4, 2048, port=port, threads=1, alias="demo")
    stranger = ManagedServer(
        spec, binary=find_server("xllamacpp"), log_path=tmp_path / "stranger.log"
    )

    def swap() -> None:
        wait_for_answers(4)
        kill(server.pid)
        while server.poll() is None:
            time.sleep(0.01)
        portal.call(stranger.start)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        assert swarm(*command(RUN, config)) == 1
    finally:
        thread.join()
        portal.call(stranger.stop)
    assert "came back as another one (model_file: 'demo.gguf', now 'another.gguf'" in (
        capsys.readouterr().err
    )
