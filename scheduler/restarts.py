"""Starting a managed server again when it has died or hangs, a bounded number of times.

Apart from the server, which watches nothing, and from the backend, which does not care who
started what it speaks to. It is asked when a connection has failed or a deadline was met, and
then only. Whether a server hangs is found out by who asks it (`patience.py`).
"""

from __future__ import annotations

import anyio

from scheduler.errors import BackendUnavailable, ServerError
from scheduler.observe import EventLog
from scheduler.server import ManagedServer


class Restarts:
    """Brings one managed server up again; asked by one task at a time.

    Args:
        server: The server, which has been started.
        limit: How often it is started again.
        log: Is told of each restart.
    """

    def __init__(
        self, server: ManagedServer, *, limit: int = 3, log: EventLog | None = None
    ) -> None:
        self.count = 0
        self._server = server
        self._limit = limit
        self._log = log

    async def revive(self, *, hangs: bool = False) -> str | None:
        """Return the server's base URL if it was started again, None if it needs no restart.

        Args:
            hangs: Whether it is known to answer nothing; then it is ended first.

        Raises:
            BackendUnavailable: It was started too often, or does not start or end any more.
            ConfigError: It can't be started as configured any more.
        """
        status = self._server.poll()
        if status is None and not hangs:
            return None
        trouble = "hangs" if status is None else f"has died (exit status {status})"
        if self.count >= self._limit:
            raise BackendUnavailable(
                f"the managed llama-server {trouble} after {self.count} "
                f"restarts, and backend.max_restarts is {self._limit}. Look into the server's log"
            )
        self.count += 1
        began = anyio.current_time()
        try:
            if status is None:
                await self._end()
            await self._server.start()
        except ServerError as exc:
            raise BackendUnavailable(
                f"the managed llama-server {trouble} and does not start again: {exc}"
            ) from exc
        if self._log is not None:
            self._log.warning(
                "server.restarted",
                reason="hung" if status is None else "died",
                exit_status=status,
                pid=self._server.pid,
                base_url=self._server.base_url,
                restarts=self.count,
                limit=self._limit,
                took_ms=round((anyio.current_time() - began) * 1000.0, 3),
            )
        return self._server.base_url

    async def _end(self) -> None:
        """End a server that hangs, by its own process id: SIGTERM, then SIGKILL."""
        if self._log is not None:
            self._log.warning("server.hung", pid=self._server.pid)
        await self._server.stop()
