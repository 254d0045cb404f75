"""Reports of real runs: `swarm run`, the fake backend, interruptions and resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swarm_integration import commands
from swarm_integration.report.reading import read_run
from swarm_integration.report.records import End
from swarm_integration.report.summary import Summary, summarise
from tests.report.pages import Page
from tests.swarm.simulations import json_lines, llm, manifest, swarm, write_config, write_scenario

RUN = Path("the-run")


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    agents = [llm(3, persona="honest"), llm(2, persona="open"), {"type": "honest", "count": 1}]
    return write_scenario(tmp_path / "s.yaml", agents, epochs=2, steps=2)


def run(scenario: Path, *options: object, directory: Path = RUN, **fake: Any) -> int:
    config = write_config(
        scenario.with_name("fake.yaml"),
        backend={"kind": "fake", "fake": {"slots": 3, **fake}},
        scheduler={"retry_base_s": 0.001, "retry_cap_s": 0.002},
    )
    mode = () if "--inference-scheduler" in options else ("--inference-scheduler", "batch")
    return swarm(
        "run", scenario, "--inference-config", config, "--run-dir", directory, *mode, *options
    )


def summary(directory: Path = RUN) -> Summary:
    return summarise(read_run(directory))


@pytest.mark.parametrize("mode", ["batch", "serial"])
def test_a_report_agrees_with_the_runs_own_summary(scenario: Path, mode: str) -> None:
    assert run(scenario, "--inference-scheduler", mode, fault_rate=0.3, latency_s=0.002) == 0
    found, told = summary(), manifest(RUN)["inference"]
    assert told["retries"] > 0
    assert (found.requests, found.outcomes["ok"]) == (told["requests"], told["answered_ok"])
    assert (found.retries, found.reasks) == (told["retries"], told["reasks"])
    tokens = (found.prompt_tokens, found.cached_tokens, found.completion_tokens)
    assert tokens == tuple(
        told[name] for name in ("prompt_tokens", "cached_tokens", "completion_tokens")
    )
    assert found.queue is not None
    assert found.service is not None
    assert (found.queue.p50, found.queue.p95) == pytest.approx(
        (told["queue_ms"]["median"], told["queue_ms"]["p95"]), abs=0.002
    )
    assert (found.service.p50, found.service.largest) == pytest.approx(
        (told["service_ms"]["median"], told["service_ms"]["max"]), abs=0.002
    )
    assert found.verdict.sound is True
    assert found.run.missing == ()
    assert len(found.slots) == 3
    assert {row.name for row in found.groups["persona"]} == {"honest", "open"}


def test_tries_on_a_slot_never_overlap(scenario: Path) -> None:
    assert run(scenario, fault_rate=0.3, latency_s=0.005) == 0
    ends: dict[int, float] = {}
    for one in read_run(RUN).log.tries:
        assert one.start_ms >= ends.get(one.slot, 0.0) - 0.01
        ends[one.slot] = one.end_ms
    assert set(ends) == {0, 1, 2}


def test_every_line_of_the_log_has_a_time_that_never_goes_back(scenario: Path) -> None:
    assert run(scenario) == 0
    times = [line["elapsed_ms"] for line in json_lines(RUN / "inference.jsonl")]
    assert times == sorted(times)
    assert manifest(RUN)["agents"]["llm_4"] == {"persona": "open"}


def test_a_run_that_was_cut_off_and_resumed_has_both_parts(scenario: Path) -> None:
    assert run(scenario, latency_s=0.002) == 0
    whole = summary()
    log = RUN / "inference.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    asked = [n for n, line in enumerate(lines) if b"request.dispatched" in line]
    cut = asked[len(asked) // 2] + 1
    log.write_bytes(b"".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2])
    assert summary().outcomes["open"] > 0
    assert run(scenario, "--resume", latency_s=0.002) == 0
    found = summary()
    assert len(found.run.log.parts_ms) == 2
    assert found.requests == found.outcomes["ok"] == whole.requests
    assert found.run.log.recalled == whole.requests
    assert sum(one.end is End.STOPPED for one in found.run.log.tries) > 0
    assert any("1 unreadable line" in note for note in found.run.missing)
    assert found.verdict.sound is True


def test_an_aborted_run_names_its_failure(scenario: Path, capsys: Any) -> None:
    config = write_config(
        scenario.with_name("server.yaml"),
        backend={"kind": "fake", "fake": {"slots": 3, "fault_rate": 1.0}},
        scheduler={"retry_base_s": 0.001, "retry_cap_s": 0.002, "retry_budget": 2},
    )
    mode = ("--inference-scheduler", "batch", "--inference-config", config, "--run-dir", RUN)
    assert swarm("run", scenario, *mode) == 1
    found = summary()
    assert found.state == "aborted"
    assert found.troubles[0].what == "run"
    assert "retry_budget" in found.troubles[0].error
    assert commands.main(["report", str(RUN)]) == 0
    page = Page((RUN / "report.html").read_text(encoding="utf-8"))
    assert "retry_budget" in page.text


def test_a_run_without_language_model_agents_has_a_report(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [{"type": "honest", "count": 3}])
    assert run(scenario) == 0
    assert commands.main(["report", "--json", str(RUN)]) == 0
    assert summary().requests == 0


def test_the_published_run_has_a_report_without_its_log(tmp_path: Path, capsys: Any) -> None:
    published = Path(__file__).parent / "published_run"
    page = tmp_path / "p.html"
    assert commands.main(["report", "--json", str(published), "--output", str(page)]) == 0
    [told] = json.loads(capsys.readouterr().out)["runs"]
    assert told["determinism"]["sound"] is True
    assert "inference.jsonl is not there" in told["notes"]
    assert "inference.jsonl is not there" in Page(page.read_text(encoding="utf-8")).text
