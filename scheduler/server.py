"""Starts, waits for and stops one llama-server of our own.

It stands beside the backends, which speak to a server by URL and do not care who started it.
What is started is decided in `scheduler.server_command`. It watches nothing and restarts nothing
by itself: after a crash, `start()` brings a server up again, at the same address if it is free.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import httpx

from scheduler.errors import ConfigError, ServerError
from scheduler.server_command import (
    CHILD,
    Profile,
    ServerBinary,
    ServerSpec,
    check_spec,
    find_server,
    server_environment,
    server_flags,
)
from scheduler.xllamacpp_server import EXEC, STOP_WITH_STDIN

__all__ = [
    "ManagedServer",
    "Profile",
    "ServerBinary",
    "ServerSpec",
    "check_spec",
    "find_server",
    "server_environment",
    "server_flags",
]

_POLL_S = 0.02
_HEALTH_TIMEOUT_S = 2.0
_LOG_LINES = 15


class _PortTakenError(ServerError, ConfigError):
    """Another process has the port; nothing has been started."""


class ManagedServer:
    """One llama-server of our own; an async context manager, on asyncio and on trio.

    The child leaves with its parent, even a killed one (a native server on Windows excepted), and
    does not see the terminal's Ctrl-C, so that a run can drain. LLAMA_ARG_* and LLAMA_API_KEY are
    kept from it: only `server_flags` configures it.

    Args:
        binary: None finds one.
        log_path: The server's stdout and stderr are appended here.
        start_timeout_s: Seconds from the spawn to a healthy server, model loading included.
        stop_grace_s: Seconds between SIGTERM and SIGKILL.
        flags: Which flags a spec becomes; a measurement compares others.
    """

    def __init__(
        self,
        spec: ServerSpec,
        *,
        binary: ServerBinary | None = None,
        log_path: Path,
        start_timeout_s: float = 120.0,
        stop_grace_s: float = 5.0,
        flags: Callable[[ServerSpec], list[str]] = server_flags,
    ) -> None:
        """Remember what to run; nothing is read or started."""
        self.spec = replace(spec, model_path=spec.model_path.absolute())
        self.command: list[str] = []
        self.environment: dict[str, str] = {}
        self._binary = binary
        self._log_path = log_path
        self._log_start = 0
        self._port = spec.port
        self._start_timeout_s = start_timeout_s
        self._stop_grace_s = stop_grace_s
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        """The address as asked for, and what became of the process."""
        state = "new" if self._process is None else f"pid={self.pid} status={self.poll()}"
        return f"<ManagedServer {self.spec.host}:{self.spec.port} {state}>"

    async def __aenter__(self) -> Self:
        """Start it."""
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it, whatever happened."""
        await self.stop()

    @property
    def base_url(self) -> str:
        """Where the OpenAI-compatible routes are; the port is known once it has started."""
        return f"{self._root_url}/v1"

    @property
    def pid(self) -> int:
        """The server's process id.

        Raises:
            ServerError: it was never started.
        """
        if self._process is None:
            raise ServerError("the server was not started; call start() first.")
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status of the last server, or None while it runs or if none was started."""
        return None if self._process is None else self._process.poll()

    async def start(self) -> None:
        """Start the server and wait until it is healthy; no child is left when this raises.

        Raises:
            ConfigError: the spec can't be run; nothing was started.
            ServerError: no server was found, the port is taken, or the server exited or was not
                healthy in time; with the end of its log.
        """
        if self._process is not None and self.poll() is None:
            raise ServerError(f"the server is running already (pid {self.pid}); stop it first.")
        check_spec(self.spec)
        binary = self._binary or find_server()
        try:
            await self._start_on(binary, self._pick_port())
        except _PortTakenError:
            if self.spec.port:
                raise
            await self._start_on(binary, _bindable(self.spec.host, 0))

    async def stop(self) -> None:
        """End the server: SIGTERM, then SIGKILL after the grace. Safe to call again.

        Raises:
            ServerError: it survived both, and is still there.
        """
        process = self._process
        if process is None:
            return
        with anyio.CancelScope(shield=True):
            for signal_it in (process.terminate, process.kill):
                if process.poll() is None:
                    signal_it()
                with anyio.move_on_after(self._stop_grace_s):
                    while process.poll() is None:  # noqa: ASYNC110  # no event tells of an exit
                        await anyio.sleep(_POLL_S)
        if process.stdin is not None:
            process.stdin.close()
        if process.poll() is None:
            raise ServerError(
                f"llama-server (pid {process.pid}) does not end; see {self._log_path}."
            )

    @property
    def _root_url(self) -> str:
        if not self._port:
            raise ServerError("the server was not started; call start() first.")
        host = f"[{self.spec.host}]" if ":" in self.spec.host else self.spec.host
        return f"http://{host}:{self._port}"

    def _pick_port(self) -> int:
        if self.spec.port:
            return _bindable(self.spec.host, self.spec.port)
        try:
            return _bindable(self.spec.host, self._port)
        except _PortTakenError:
            return _bindable(self.spec.host, 0)

    async def _start_on(self, binary: ServerBinary, port: int) -> None:
        self._port = port
        self._spawn(binary)
        try:
            with anyio.move_on_after(self._start_timeout_s):
                await self._wait_until_healthy()
                return
            raise ServerError(
                f"llama-server was not ready after {self._start_timeout_s:g} s; give it more time, "
                f"or a smaller model. {self._log_tail()}"
            )
        except BaseException:
            await self.stop()
            raise

    def _spawn(self, binary: ServerBinary) -> None:
        spec = replace(self.spec, port=self._port)
        flags = self._flags(spec)
        self.command = [*binary.argv, *flags]
        self.environment = server_environment(spec, binary)
        argv = self.command
        if binary.kind == "xllamacpp":
            argv = [*binary.argv, STOP_WITH_STDIN, *flags]
        elif sys.platform != "win32":
            argv = [*CHILD, STOP_WITH_STDIN, EXEC, *self.command]
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("LLAMA_ARG_") and name != "LLAMA_API_KEY"
        }
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("ab") as log:
            self._log_start = log.tell()
            # Not anyio's open_process: nothing may be awaited between the spawn and the moment
            # this object owns the child, or a cancellation there would leave it behind.
            self._process = subprocess.Popen(  # noqa: S603  # our own words, and no shell
                argv,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=inherited | self.environment,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )

    async def _wait_until_healthy(self) -> None:
        async with httpx.AsyncClient(
            base_url=self._root_url,
            trust_env=False,
            follow_redirects=False,
            timeout=_HEALTH_TIMEOUT_S,
        ) as client:
            while (status := self.poll()) is None:
                if await self._is_healthy(client):
                    return
                await anyio.sleep(_POLL_S)
        _bindable(self.spec.host, self._port)
        raise ServerError(
            f"llama-server exited with status {status} before it was ready. {self._log_tail()}"
        )

    async def _is_healthy(self, client: httpx.AsyncClient) -> bool:
        try:
            if (await client.get("/health")).status_code != httpx.codes.OK:
                return False
            answer = await client.get("/props")
            model_path = answer.json()["model_path"]
        except httpx.RequestError:
            return False
        except (ValueError, KeyError, TypeError):
            model_path = None
        if model_path != str(self.spec.model_path):
            raise _PortTakenError(f"port {self._port} answers, but not as the server started here.")
        return True

    def _log_tail(self) -> str:
        with self._log_path.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
        hint = ""
        if any("invalid argument" in line for line in lines):
            hint = "It does not know one of the flags: update llama.cpp. "
        return hint + "\n".join([f"The end of {self._log_path}:", *(f"  {it}" for it in lines)])


def _bindable(host: str, port: int) -> int:
    """The port, or a free one for 0, once it is known that nothing listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if sys.platform != "win32":
            # Connections of an earlier server that linger in TIME_WAIT do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise _PortTakenError(
                f"can't listen on {host}:{port} ({exc.strerror}); stop what uses it, or take "
                "another port (0 picks a free one)."
            ) from exc
        return int(probe.getsockname()[1])
