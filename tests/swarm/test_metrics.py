"""The Prometheus endpoint of a run, asked over HTTP as Prometheus asks."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from scheduler.backends.fake import FakeBackend
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import ConfigError, RequestRejected, ServerFault
from scheduler.metrics import HOST, Metrics, served
from scheduler.observe import open_run_log
from scheduler.types import Message, Request
from tests.swarm.simulations import NOOP, json_lines, llm, swarm, write_config, write_scenario
from tests.wire.scripted_server import CHAT, Reply, ScriptedServer, answer_body

RUN = Path("the-run")
BATCH = ("--inference-scheduler", "batch", "--run-dir", RUN)
OWN = "inference_scheduler_"


class Scrape:
    """What an endpoint says now: the values by name and labels."""

    def __init__(self, port: int) -> None:
        answer = httpx.get(f"http://{HOST}:{port}/metrics", trust_env=False)
        answer.raise_for_status()
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }
        self.names = {name for name, _ in self.samples}

    def sum(self, name: str, **labels: str) -> float:
        """The sum over all samples of a name that have these labels."""
        wanted = labels.items()
        found = [v for (n, has), v in self.samples.items() if n == name and wanted <= has]
        assert found, f"no {name} with {labels}"
        return sum(found)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        scripted.on(CHAT, Reply(answer_body(NOOP)))
        yield scripted


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.create_server((HOST, 0)) as listening:
        yield int(listening.getsockname()[1])


def requests(count: int) -> list[Request]:
    return [
        Request(f"a{n}", (Message("user", f"question {n}"),), backend="b") for n in range(count)
    ]


# The library


async def test_every_count_is_that_of_the_scheduler(tmp_path: Path) -> None:
    def fault(request: Request, attempt: int) -> RequestRejected | ServerFault | None:
        if request.agent_id == "a0":
            return RequestRejected("no")
        return ServerFault("busy") if attempt == 1 else None

    metrics = Metrics()
    config = SchedulerConfig(on_failure="noop", retry_base_s=0.001)
    backend = FakeBackend(slots=3, fault=fault)
    with (tmp_path / "log").open("w") as file, served(metrics.registry, 0) as port:
        log = metrics.log(open_run_log(file))
        async with Scheduler({"b": backend}, config, log=log) as scheduler:
            metrics.watch(scheduler)
            await scheduler.run_step(requests(5))
            found = await anyio.to_thread.run_sync(Scrape, port)
        stats = scheduler.stats
    call = {
        "backend": "b",
        "gen_ai_operation_name": "chat",
        "gen_ai_provider_name": "fake",
        "gen_ai_request_model": "fake",
    }
    tokens = "gen_ai_client_token_usage"
    assert found.sum(f"{tokens}_sum", gen_ai_token_type="input", **call) == stats.prompt_tokens
    assert found.sum(f"{tokens}_sum", gen_ai_token_type="output") == stats.completion_tokens
    assert found.sum(f"{tokens}_count", gen_ai_token_type="output") == 4
    assert found.sum("gen_ai_client_operation_duration_seconds_count", **call) == 4
    seconds = found.sum("gen_ai_client_operation_duration_seconds_sum", **call)
    assert seconds == pytest.approx(sum(stats.service_ms) / 1000)
    assert found.sum("gen_ai_server_time_to_first_token_seconds_count", **call) == 4
    assert found.sum("gen_ai_server_time_per_output_token_seconds_count", **call) == 4
    assert found.sum(f"{OWN}retries_total", backend="b", error_type="ServerFault") == stats.retries
    assert found.sum(f"{OWN}requests_total", outcome="ok") == 4
    assert found.sum(f"{OWN}requests_total", outcome="failed") == 1
    assert found.sum(f"{OWN}slots", backend="b") == 3
    assert found.sum(f"{OWN}slots_busy") == found.sum(f"{OWN}queue_length") == 0
    lines = json_lines(tmp_path / "log")
    assert sum(line["event"] == "request.answered" for line in lines) == 4


async def test_slots_and_queue_are_those_of_the_moment() -> None:
    busy = anyio.Event()

    def delay(request: Request, attempt: int) -> float:
        busy.set()
        return 3600.0

    metrics = Metrics()
    with served(metrics.registry, 0) as port:
        async with Scheduler({"b": FakeBackend(slots=1, delay=delay)}) as scheduler:
            metrics.watch(scheduler)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(scheduler.run_step, requests(4))
                await busy.wait()
                found = await anyio.to_thread.run_sync(Scrape, port)
                tasks.cancel_scope.cancel()
    assert (found.sum(f"{OWN}slots_busy"), found.sum(f"{OWN}queue_length")) == (1, 3)


def test_nothing_is_left_after_the_block() -> None:
    threads = set(threading.enumerate())
    with served(Metrics().registry, 0) as port:
        assert Scrape(port).names
    for thread in set(threading.enumerate()) - threads:  # what is still hanging up
        thread.join(60)
        assert not thread.is_alive()
    with pytest.raises(httpx.ConnectError):
        Scrape(port)
    with served(Metrics().registry, port) as again:
        assert again == port


def test_taken_port_is_named_and_another_way_shown(taken: int) -> None:
    with (
        pytest.raises(ConfigError, match=rf"metrics\.port {taken} .* --metrics-port 0"),
        served(Metrics().registry, taken),
    ):
        pass


def test_two_runs_of_one_process_do_not_share_numbers() -> None:
    one, other = Metrics(), Metrics()
    one.count("request.recalled", {"backend": "b"})
    with served(one.registry, 0) as first, served(other.registry, 0) as second:
        assert Scrape(first).sum(f"{OWN}recalled_total") == 1
        assert f"{OWN}recalled_total" not in Scrape(second).names


# A run


def test_a_run_is_scraped_while_it_goes(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hold = threading.Event()
    server.on(CHAT, Reply(answer_body(NOOP)), Reply(answer_body(NOOP), hold=hold))
    config = write_config(
        tmp_path / "c.yaml",
        scheduler={"slots": 1},
        backend={"kind": "llama_server", "base_url": server.base_url},
    )
    scenario = write_scenario(tmp_path / "s.yaml", [llm(3)], steps=2)
    found: list[Scrape] = []

    def scrape() -> None:
        while len(server.requests(CHAT)) < 2:
            hold.wait(0.01)
        [port] = [
            line["port"]
            for line in json_lines(RUN / "inference.jsonl")
            if line["event"] == "metrics.served"
        ]
        found.append(Scrape(port))
        hold.set()

    thread = threading.Thread(target=scrape)
    thread.start()
    code = swarm("run", scenario, *BATCH, "--inference-config", config, "--metrics-port", 0)
    hold.set()
    thread.join()
    assert code == 0
    [seen] = found
    assert seen.sum(f"{OWN}requests_total", outcome="ok") == 1
    assert seen.sum(f"{OWN}slots_busy") == 1
    assert (seen.sum(f"{OWN}epoch"), seen.sum(f"{OWN}step")) == (0, 0)
    labels = {"gen_ai_provider_name": "llama.cpp", "gen_ai_token_type": "input"}
    assert seen.sum("gen_ai_client_token_usage_count", **labels) == 1
    [line] = [x for x in json_lines(RUN / "inference.jsonl") if x["event"] == "metrics.served"]
    assert f"Metrics: http://127.0.0.1:{line['port']}/metrics" in capsys.readouterr().err
    with pytest.raises(httpx.ConnectError):
        Scrape(line["port"])


def test_taken_port_is_refused_before_anything_is_made(
    taken: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "c.yaml", backend={"kind": "fake"}, metrics={"port": taken})
    scenario = write_scenario(tmp_path / "s.yaml", [llm()])
    assert swarm("run", scenario, *BATCH, "--inference-config", config) == 2
    assert f"metrics.port {taken} can't be used" in capsys.readouterr().err
    assert not RUN.exists()


def test_missing_library_is_named_with_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "scheduler.metrics")
    config = write_config(tmp_path / "c.yaml", backend={"kind": "fake"})
    scenario = write_scenario(tmp_path / "s.yaml", [llm()])
    words = ("--inference-config", config, "--metrics-port", 9464)
    assert swarm("run", scenario, *BATCH, *words) == 2
    assert "swarm-inference-scheduler[metrics]" in capsys.readouterr().err
    assert not RUN.exists()
    assert swarm("run", scenario, *BATCH, "--inference-config", config, "-q") == 0
