"""A managed llama-server as a real process: started, used, stopped, and never left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import gguf
import httpx
import pytest

from scheduler.errors import ConfigError, ServerError
from scheduler.server import ManagedServer, ServerBinary, ServerSpec, find_server
from scheduler.server_command import CHILD

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="asks ps and pgrep for processes"),
]

REAL_SERVER = f'exec {" ".join(CHILD)} "$@"'
NEVER_READY = "exec sleep 60"

Script = Callable[[str], ServerBinary]


@pytest.fixture
def wheel() -> ServerBinary:
    pytest.importorskip("xllamacpp")
    return find_server("xllamacpp")


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Makes a native `llama-server` out of shell lines."""

    def write(lines: str) -> ServerBinary:
        path = tmp_path / "llama-server"
        path.write_text(f"#!/bin/sh\n{lines}\n")
        path.chmod(0o755)
        return ServerBinary("llama-server", (str(path),))

    return write


@pytest.fixture
def spec(demo_model: Path) -> ServerSpec:
    return ServerSpec(demo_model, slots=4, ctx_per_slot=512, threads=2, alias="demo")


def is_alive(pid: int) -> bool:
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return bool(state) and not state.startswith("Z")


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(it) for it in found.stdout.split()]


def wait_until_gone(pids: list[int], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.02)


async def test_start_serves_the_slots_and_context_asked_for_and_stop_leaves_nothing(
    spec: ServerSpec, wheel: ServerBinary, tmp_path: Path
) -> None:
    server = ManagedServer(spec, binary=wheel, log_path=tmp_path / "logs" / "server.log")
    async with server:
        root = httpx.URL(server.base_url).join("/")
        async with httpx.AsyncClient(base_url=root, trust_env=False, timeout=20) as client:
            props = (await client.get("/props")).json()
            slots = (await client.get("/slots")).json()
            answer = await client.post(
                "/v1/chat/completions",
                json={"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4},
            )
            assert (await client.get("/metrics")).status_code == 200
        assert os.getsid(server.pid) != os.getsid(0)
        processes = [server.pid, *children_of(server.pid)]
    assert props["total_slots"] == 4
    assert props["default_generation_settings"]["n_ctx"] == 512
    assert props["model_alias"] == "demo"
    assert [slot["n_ctx"] for slot in slots] == [512] * 4
    assert answer.json()["usage"]["completion_tokens"] > 0
    assert server.poll() == 0
    assert root.port is not None
    wait_until_gone(processes, within_s=30)
    with socket.create_server(("127.0.0.1", root.port)):
        pass
    await server.stop()


async def test_invariant_profile_reaches_the_servers_process(
    spec: ServerSpec, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_API_KEY", "stray")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "7")
    seen = tmp_path / "seen"
    binary = script(f'env > "{seen}"; echo "$@" >> "{seen}"; exit 3')
    invariant = ServerSpec(spec.model_path, slots=1, ctx_per_slot=256, profile="invariant")
    with pytest.raises(ServerError, match="exited with status 3"):
        await ManagedServer(invariant, binary=binary, log_path=tmp_path / "log").start()
    text = seen.read_text()
    assert "GGML_CPU_TILED_MM=0" in text
    assert "--no-repack --cache-type-k bf16 --cache-type-v bf16" in text
    assert "LLAMA_API_KEY" not in text
    assert "LLAMA_ARG_" not in text


async def test_restart_after_a_kill_keeps_the_address(
    spec: ServerSpec, script: Script, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    async with ManagedServer(spec, binary=script(REAL_SERVER), log_path=tmp_path / "log") as server:
        with pytest.raises(ServerError, match="running already"):
            await server.start()
        first = (server.base_url, server.pid)
        os.kill(server.pid, signal.SIGKILL)
        while server.poll() is None:  # noqa: ASYNC110  # no event tells of an exit
            await anyio.sleep(0.01)
        await server.start()
        assert server.base_url == first[0]
        assert server.pid != first[1]


@pytest.mark.parametrize(
    "lines", [REAL_SERVER, NEVER_READY, None], ids=["native", "native still loading", "wheel"]
)
async def test_a_killed_parent_takes_its_server_along(
    spec: ServerSpec, script: Script, tmp_path: Path, lines: str | None
) -> None:
    pytest.importorskip("xllamacpp")
    binary = find_server("xllamacpp") if lines is None else script(lines)
    code = f"""
import anyio, pathlib
from scheduler.errors import ServerError
from scheduler.server import ManagedServer, ServerBinary, ServerSpec
async def main():
    spec = ServerSpec(pathlib.Path({str(spec.model_path)!r}), slots=1, ctx_per_slot=256)
    binary = ServerBinary({binary.kind!r}, {binary.argv!r})
    server = ManagedServer(spec, binary=binary, log_path=pathlib.Path({str(tmp_path / "log")!r}))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.start)
        while True:
            try:
                print(server.pid, flush=True)
            except ServerError:  # not started yet
                await anyio.sleep(0.01)
            else:
                break
        await anyio.sleep_forever()
anyio.run(main)
"""
    with subprocess.Popen(  # noqa: ASYNC220  # nothing else runs on this loop
        [sys.executable, "-c", code], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        while not (children := children_of(pid)):
            assert is_alive(pid)
            await anyio.sleep(0.01)
        processes = [pid, *children]
        assert len(processes) == 2
        parent.kill()
    wait_until_gone(processes, within_s=30)


async def test_a_broken_model_is_an_error_with_the_end_of_the_log(
    wheel: ServerBinary, tmp_path: Path
) -> None:
    model = tmp_path / "broken.gguf"
    writer = gguf.GGUFWriter(model, "of-no-kind-that-llama.cpp-knows")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    server = ManagedServer(ServerSpec(model, 1, 256), binary=wheel, log_path=tmp_path / "log")
    with pytest.raises(ServerError, match=r"(?s)exited with status 1 .*failed to load model"):
        await server.start()
    assert server.poll() == 1


async def test_an_unknown_flag_says_that_the_server_is_too_old(
    spec: ServerSpec, script: Script, tmp_path: Path
) -> None:
    binary = script("echo 'error: invalid argument: --no-repack' >&2; exit 1")
    with pytest.raises(ServerError, match="update llama"):
        await ManagedServer(spec, binary=binary, log_path=tmp_path / "log").start()


async def test_a_taken_port_is_an_error_before_anything_is_spawned(
    spec: ServerSpec, script: Script, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        taken = ServerSpec(spec.model_path, slots=1, ctx_per_slot=256, port=port)
        server = ManagedServer(taken, binary=script(REAL_SERVER), log_path=tmp_path / "log")
        with pytest.raises(ServerError, match=f"can't listen on 127.0.0.1:{port}"):
            await server.start()
    assert not (tmp_path / "log").exists()
    with pytest.raises(ServerError, match="not started"):
        _ = server.pid


async def test_a_port_lost_between_picking_and_binding_is_replaced_once(
    spec: ServerSpec, script: Script, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    thief = tmp_path / "thief"
    steal = "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1])))"
    first_time = f"""if [ ! -e "{thief}" ]; then
    {sys.executable} -c "{steal}; print(); sys.stdout.close(); import time; time.sleep(30)" \\
        "$6" > "{thief}.ready" &
    echo $! > "{thief}"
    while [ ! -s "{thief}.ready" ]; do sleep 0.02; done
    exit 1
fi
"""
    server = ManagedServer(spec, binary=script(first_time + REAL_SERVER), log_path=tmp_path / "log")
    try:
        async with server:
            assert server.poll() is None
    finally:
        os.kill(int(thief.read_text()), signal.SIGKILL)


async def test_a_server_that_is_never_ready_is_stopped_at_the_timeout(
    spec: ServerSpec, script: Script, tmp_path: Path
) -> None:
    server = ManagedServer(
        spec, binary=script(NEVER_READY), log_path=tmp_path / "log", start_timeout_s=0.3
    )
    with pytest.raises(ServerError, match=r"not ready after 0\.3 s"):
        await server.start()
    assert not is_alive(server.pid)


async def test_cancelling_the_start_leaves_no_child(
    spec: ServerSpec, script: Script, tmp_path: Path
) -> None:
    server = ManagedServer(spec, binary=script(NEVER_READY), log_path=tmp_path / "log")
    with anyio.move_on_after(0.3) as scope:
        await server.start()
    assert scope.cancelled_caught
    assert not is_alive(server.pid)


async def test_stop_kills_a_server_that_ignores_the_request_even_when_cancelled(
    spec: ServerSpec, script: Script, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    stubborn = f'trap "" TERM; : > "{ready}"; while :; do sleep 0.05; done'
    server = ManagedServer(
        spec, binary=script(stubborn), log_path=tmp_path / "log", stop_grace_s=0.2
    )
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.start)
            while not ready.exists():  # noqa: ASYNC110  # a file of another process
                await anyio.sleep(0.01)
            scope.cancel()
    assert server.poll() == -signal.SIGKILL


async def test_a_missing_model_is_a_configuration_error(script: Script, tmp_path: Path) -> None:
    server = ManagedServer(
        ServerSpec(tmp_path / "missing.gguf", slots=1, ctx_per_slot=256),
        binary=script(REAL_SERVER),
        log_path=tmp_path / "log",
    )
    with pytest.raises(ConfigError, match=r"missing\.gguf"):
        await server.start()
    await server.stop()
