"""The metrics endpoint of a run, when one is asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scheduler.engine import Scheduler
from scheduler.errors import ConfigError
from scheduler.observe import EventLog

if TYPE_CHECKING:
    from scheduler.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a run's metrics are shown, and what counts them; None when nobody asked."""

    metrics: Metrics | None = None
    port: int | None = None

    def listening(self, log: EventLog) -> EventLog:
        """Return a log that is listened to; the same one when there are no metrics."""
        if self.metrics is None:
            return log
        listened = self.metrics.log(log)
        listened.info("metrics.served", port=self.port)
        return listened

    def watch(self, scheduler: Scheduler) -> None:
        """Show the slots and queues of `scheduler`, which is open."""
        if self.metrics is not None:
            self.metrics.watch(scheduler)


NO_ENDPOINT = Endpoint()


@contextmanager
def metrics_endpoint(port: int | None, *, quiet: bool) -> Iterator[Endpoint]:
    """Serve a run's metrics for the time of the block; nothing without a port.

    Raises:
        ConfigError: The port is taken, or `prometheus-client` is not installed.
    """
    if port is None:
        yield NO_ENDPOINT
        return
    try:
        from scheduler.metrics import HOST, Metrics, served
    except ImportError as exc:
        raise ConfigError(
            f"metrics.port is {port}, but prometheus-client is not installed. Install it with: "
            'python -m pip install "swarm-inference-scheduler[metrics]"'
        ) from exc
    metrics = Metrics()
    with served(metrics.registry, port) as taken:
        if not quiet:
            print(f"Metrics: http://{HOST}:{taken}/metrics", file=sys.stderr)
        yield Endpoint(metrics, taken)
