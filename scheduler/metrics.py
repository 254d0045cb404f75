"""A scheduler's metrics for Prometheus, with OpenTelemetry's names for generative AI.

Needs `prometheus-client` (the extra `metrics`), so nothing imports this module unless it
is asked for. What happens is taken from the log's events (`Metrics.log` stands before a
log and passes everything on); slots and queues are read when somebody looks.

Names, units and buckets: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from scheduler.engine import Scheduler
from scheduler.errors import ConfigError
from scheduler.observe import EventLog

HOST = "127.0.0.1"

TOKENS = tuple(4.0**n for n in range(14))
SECONDS = tuple(0.01 * 2**n for n in range(14))
FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
PER_TOKEN_SECONDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2),
    *(0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)

_PROVIDERS = {"llama_server": "llama.cpp", "llama_inproc": "llama.cpp"}
"""What stands in `gen_ai.provider.name`; other kinds of backend are their own names."""

_CALL = ("backend", "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
_OWN = "inference_scheduler"


class Metrics:
    """The metrics of one scheduler; make one for each run.

    Attributes:
        registry: Where `prometheus_client` finds them.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._lanes = _Lanes()
        self.registry.register(self._lanes)
        self._tokens = self._histogram(
            "gen_ai_client_token_usage",
            "Tokens of a prompt (input) or an answer (output).",
            (*_CALL, "gen_ai_token_type"),
            TOKENS,
        )
        self._duration = self._histogram(
            "gen_ai_client_operation_duration_seconds",
            "From the dispatch of an attempt to its answer; attempts that failed are not in it.",
            _CALL,
            SECONDS,
        )
        self._served = self._histogram(
            "gen_ai_server_request_duration_seconds",
            "What the backend spent on a request, as it measured it itself.",
            _CALL,
            SECONDS,
        )
        self._first_token = self._histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Reading the prompt until the first token, as the backend measured it.",
            _CALL,
            FIRST_TOKEN_SECONDS,
        )
        self._per_token = self._histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Time for each token after the first one, as the backend measured it.",
            _CALL,
            PER_TOKEN_SECONDS,
        )
        self._queued = self._histogram(
            f"{_OWN}_queue_duration_seconds",
            "From a request's arrival to its first slot.",
            ("backend",),
            SECONDS,
        )
        self._requests = self._counter(
            "requests", "Requests by how they ended.", ("backend", "outcome")
        )
        self._recalled = self._counter("recalled", "Requests that the journal answered.")
        self._retries = self._counter(
            "retries", "Attempts that failed and were tried again.", ("backend", "error_type")
        )
        self._reasks = self._counter("reasks", "Questions put again, after a wrong answer.")
        self._cached = self._counter("cached_tokens", "Prompt tokens found in a slot's cache.")
        self._epoch = Gauge(f"{_OWN}_epoch", "Epoch under way, from 0.", registry=self.registry)
        self._step = Gauge(f"{_OWN}_step", "Step of the epoch, from 0.", registry=self.registry)
        self._counts = {
            "request.answered": self._answered,
            "request.settled": self._settled,
            "request.retried": self._retried,
            "request.recalled": self._recalled_one,
            "step.started": self._step_started,
        }

    def log(self, inner: EventLog) -> EventLog:
        """Return a log that passes every event to `inner` and counts it."""
        return _CountingLog(inner, self)

    def watch(self, scheduler: Scheduler) -> None:
        """Show the slots and queues of `scheduler`, which is open."""
        self._lanes.scheduler = scheduler

    def count(self, event: str, fields: Mapping[str, Any]) -> None:
        """Count an event of the log."""
        count = self._counts.get(event)
        if count is not None:
            count(fields)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ("backend",)) -> Counter:
        return Counter(f"{_OWN}_{name}", text, labels, registry=self.registry)

    def _answered(self, fields: Mapping[str, Any]) -> None:
        call = self._call(fields["backend"])
        prompt, completion = fields["prompt_tokens"], fields["completion_tokens"]
        for kind, tokens in (("input", prompt), ("output", completion)):
            if tokens:  # 0 stands for a backend that does not say
                self._tokens.labels(*call, kind).observe(tokens)
        self._duration.labels(*call).observe(fields["service_ms"] / 1000)
        prefill_ms, decode_ms = fields["prefill_ms"], fields["decode_ms"]
        if prefill_ms is not None:
            self._first_token.labels(*call).observe(prefill_ms / 1000)
        if decode_ms is not None and completion > 1:
            self._per_token.labels(*call).observe(decode_ms / 1000 / (completion - 1))
        if prefill_ms is not None and decode_ms is not None:
            self._served.labels(*call).observe((prefill_ms + decode_ms) / 1000)
        if fields["reask"]:
            self._reasks.labels(fields["backend"]).inc()
        else:
            self._queued.labels(fields["backend"]).observe(fields["queue_ms"] / 1000)
        self._cached.labels(fields["backend"]).inc(fields["cached_tokens"])

    def _settled(self, fields: Mapping[str, Any]) -> None:
        self._requests.labels(fields["backend"], fields["outcome"]).inc()

    def _retried(self, fields: Mapping[str, Any]) -> None:
        self._retries.labels(fields["backend"], fields["error"]).inc()

    def _recalled_one(self, fields: Mapping[str, Any]) -> None:
        self._recalled.labels(fields["backend"]).inc()

    def _step_started(self, fields: Mapping[str, Any]) -> None:
        self._epoch.set(fields["epoch"])
        self._step.set(fields["step"])

    def _call(self, backend: str) -> tuple[str, str, str, str]:
        scheduler = self._lanes.scheduler
        lane = None if scheduler is None else scheduler.lanes.get(backend)
        kind, model = ("", "") if lane is None else (lane.info.kind, lane.info.model)
        return backend, "chat", _PROVIDERS.get(kind, kind), model


class _CountingLog:
    def __init__(self, inner: EventLog, metrics: Metrics) -> None:
        self._inner = inner
        self._metrics = metrics

    def info(self, event: str, **fields: Any) -> Any:
        self._inner.info(event, **fields)
        self._metrics.count(event, fields)

    def warning(self, event: str, **fields: Any) -> Any:
        self._inner.warning(event, **fields)
        self._metrics.count(event, fields)

    def error(self, event: str, **fields: Any) -> Any:
        self._inner.error(event, **fields)
        self._metrics.count(event, fields)


class _Lanes(Collector):
    """Slots and queues, read when they are asked for."""

    scheduler: Scheduler | None = None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        lanes = [] if self.scheduler is None else list(self.scheduler.lanes.values())
        gauges = (
            ("slots", "How many requests run at once.", [lane.slots for lane in lanes]),
            ("slots_busy", "How many run now.", [lane.in_flight for lane in lanes]),
            ("queue_length", "How many wait for a slot.", [lane.waiting for lane in lanes]),
        )
        for name, text, values in gauges:
            family = GaugeMetricFamily(f"{_OWN}_{name}", text, labels=("backend",))
            for lane, value in zip(lanes, values, strict=True):
                family.add_metric((lane.name,), value)
            yield family


@contextmanager
def served(registry: CollectorRegistry, port: int) -> Iterator[int]:
    """Answer `http://127.0.0.1:PORT/metrics` for the time of the block.

    Args:
        registry: What is shown.
        port: Where; 0 picks a free port.

    Yields:
        The port.

    Raises:
        ConfigError: The port can't be had.
    """
    try:
        server, thread = start_http_server(port, addr=HOST, registry=registry)
    except OSError as exc:
        raise ConfigError(
            f"metrics.port {port} can't be used on {HOST}: {exc.strerror}. Give another one, or "
            "let a free one be picked: --metrics-port 0"
        ) from exc
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
