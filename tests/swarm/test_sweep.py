"""Whole sweeps through the command: what they write, share, survive and refuse."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from swarm_integration.config import InferenceConfig
from swarm_integration.replay import replay
from swarm_integration.sweep import SweepConfig, SweepRunner
from tests.swarm.children import Child
from tests.swarm.simulations import (
    POST,
    council,
    json_lines,
    llm,
    manifest,
    swarm,
    write_config,
    write_scenario,
)
from tests.wire.scripted_server import CHAT, Reply, ScriptedServer, answer_body, error_body

TAX = ("--param", "governance.transaction_tax:0.0,0.2")
NAMES = [f"transaction_tax={tax}-seed{seed}" for tax in ("0.0", "0.2") for seed in (5, 6, 7)]
OUT = Path("results/tax.csv")
RUNS = Path("results/tax.runs")


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    agents = [llm(3, persona="honest"), council(2), {"type": "honest", "count": 2}]
    write_scenario(tmp_path / "s.yaml", agents, epochs=1, steps=2)
    write_config(tmp_path / "fake.yaml", backend={"kind": "fake", "fake": {"slots": 3}})
    slow = {"kind": "fake", "fake": {"slots": 3, "latency_s": 0.05}}
    write_config(tmp_path / "slow.yaml", backend=slow)


def sweep(*more: object, config: str = "fake.yaml", seeds: str = "5-7") -> list[object]:
    common = ["--seeds", seeds, "--inference-config", config, "--output", OUT, "-q", "--no-plot"]
    return ["sweep", "s.yaml", *TAX, *common, *more]


def rows(path: Path = OUT) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def summary() -> list[dict[str, str]]:
    return rows(OUT.with_suffix(".summary.csv"))


def said_of_the_sweep() -> dict[str, bytes]:
    """What is known of a sweep as a whole."""
    names = ("sweep.json", "sweep.yaml", "scenario.yaml", "configuration.yaml")
    return {name: (RUNS / name).read_bytes() for name in names}


def alone(name: str, seed: int, mode: str, config: str = "fake.yaml") -> str:
    """The trace hash of `swarm run` on the same scenario and seed."""
    target, scenario = Path(f"alone-{mode}-{name}"), RUNS / name / "scenario.yaml"
    words = ["run", scenario, "--seed", seed, "--inference-scheduler", mode]
    assert swarm(*words, "--inference-config", config, "--run-dir", target, "-q") == 0
    found: str = manifest(target)["trace_hash"]
    return found


# --- what a sweep gives


@pytest.mark.parametrize("mode", ["batch", "serial"])
def test_runs_that_share_slots_give_the_hash_of_each_run_alone(mode: str) -> None:
    assert swarm(*sweep("--jobs", 4, "--inference-scheduler", mode)) == 0
    found = rows()
    assert [row["run"] for row in found] == NAMES
    assert {row["state"] for row in found} == {"completed"}
    assert len({row["trace_hash"] for row in found}) > 3
    for row in found:
        assert row["trace_hash"] == manifest(RUNS / row["run"])["trace_hash"]
    for row in (found[0], found[5]):
        assert row["trace_hash"] == alone(row["run"], int(row["seed"]), mode)


def test_the_tables_are_the_same_for_any_number_of_jobs() -> None:
    assert swarm(*sweep("--jobs", 1)) == 0
    first = OUT.read_bytes(), OUT.with_suffix(".summary.csv").read_bytes()
    OUT.parent.rename("one-by-one")
    assert swarm(*sweep("--jobs", 6)) == 0
    assert (OUT.read_bytes(), OUT.with_suffix(".summary.csv").read_bytes()) == first


def test_a_points_row_is_the_mean_of_its_runs() -> None:
    assert swarm(*sweep("--jobs", 3)) == 0
    assert [(row["governance.transaction_tax"], row["n"]) for row in summary()] == [
        ("0.0", "3"),
        ("0.2", "3"),
    ]
    welfare = [float(row["welfare"]) for row in rows()[:3]]
    assert float(summary()[0]["welfare_mean"]) == pytest.approx(sum(welfare) / 3, rel=1e-8)
    low, high = (float(summary()[0][f"total_interactions_ci95_{end}"]) for end in ("low", "high"))
    assert low <= float(summary()[0]["total_interactions_mean"]) <= high


def test_each_runs_directory_is_one_of_swarm_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert swarm(*sweep("--jobs", 3)) == 0
    for name in NAMES[:2]:
        assert replay(RUNS / name).problem is None
    words = ["run", RUNS / NAMES[0] / "scenario.yaml", "--seed", 5, "-q"]
    words += ["--inference-scheduler", "serial", "--inference-config", "fake.yaml"]
    before = manifest(RUNS / NAMES[0])["trace_hash"]
    assert swarm(*words, "--resume", "--run-dir", RUNS / NAMES[0]) == 0
    assert manifest(RUNS / NAMES[0])["trace_hash"] == before


def test_runs_that_ask_one_by_one_fill_the_slots_together() -> None:
    """In serial order one run can only ever hold one slot; three of them hold three."""
    words = sweep("--jobs", 6, "--inference-scheduler", "serial", config="slow.yaml")
    assert swarm(*words) == 0
    most = 0
    for name in NAMES:
        for event in json_lines(RUNS / name / "inference.jsonl"):
            if event["event"] == "request.dispatched":
                most = max(most, event["in_flight"])
        assert manifest(RUNS / name)["inference"]["max_in_flight"] <= 2  # a council of two
    assert most == 3


def test_a_sweep_can_be_repeated_from_what_it_kept() -> None:
    assert swarm(*sweep("--jobs", 2)) == 0
    kept = ["sweep", RUNS / "sweep.yaml", "--inference-config", RUNS / "configuration.yaml"]
    assert swarm(*kept, "--output", "again/tax.csv", "-q", "--no-plot") == 0
    assert Path("again/tax.csv").read_bytes() == OUT.read_bytes()
    assert (RUNS / "sweep.yaml").read_text("utf-8").splitlines()[0] == (
        "# swarm sweep sweep.yaml --inference-config configuration.yaml "
        "--inference-scheduler serial --output again/"
    )
    data = json.loads((RUNS / "sweep.json").read_text("utf-8"))
    assert data["state"] == "completed"
    assert data["seeds"] == [5, 6, 7]
    assert [run["trace_hash"] for run in data["runs"]] == [row["trace_hash"] for row in rows()]


def test_a_sweep_from_a_file_writes_into_a_folder(tmp_path: Path) -> None:
    described = {
        "name": "my-sweep",
        "base_scenario": "../s.yaml",
        "sweep": {
            "parameters": [{"name": "agents[0].count", "values": [1, 2]}],
            "replications": 2,
            "seeds": "auto",
        },
    }
    (tmp_path / "sub").mkdir()
    Path("sub/sweep.yaml").write_text(yaml.safe_dump(described), "utf-8")
    words = ["sweep", "sub/sweep.yaml", "--inference-config", "fake.yaml", "--output", "out/"]
    assert swarm(*words, "-q") == 0
    found = rows(Path("out/my-sweep.csv"))
    assert [(row["agents[0].count"], row["seed"]) for row in found] == [
        ("1", "7"),
        ("1", "8"),
        ("2", "7"),
        ("2", "8"),
    ]
    assert [row["n_agents"] for row in found] == ["4", "4", "5", "5"]
    assert Path("out/my-sweep.png").read_bytes().startswith(b"\x89PNG")


def test_json_says_it_all_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in sweep("--json", seeds="5") if word != "-q"]
    assert swarm(*words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["completed"] is True
    assert [run["seed"] for run in told["runs"]] == [5, 5]
    assert told["points"][0]["n"] == 1


def test_a_program_runs_a_sweep_and_reads_its_results() -> None:
    calls: list[tuple[int, int, Any]] = []
    inference = InferenceConfig.model_validate({"backend": {"kind": "fake"}})
    config = SweepConfig(
        Path("s.yaml"), {"payoff.theta": [0.2, 0.8]}, replications=2, inference=inference
    )
    results = SweepRunner(config, "r.csv", jobs=2).run(lambda *told: calls.append(told))
    assert results.completed
    assert [row["n"] for row in results.summary()] == [2, 2]
    assert [number for number, _, _ in calls] == [1, 2, 3, 4]
    assert calls[3][1:] == (4, {"payoff.theta": 0.8})
    assert results.runs[3].to_dict()["seed"] == 8


def test_a_sweep_without_models_runs_scripted_agents() -> None:
    write_scenario(Path("scripted.yaml"), [{"type": "honest", "count": 3}], epochs=1, steps=2)
    words = ["sweep", "scripted.yaml", "--seeds", "1-3", "--jobs", 3, "--output", OUT, "-q"]
    assert swarm(*words) == 0
    assert [row["state"] for row in rows()] == ["completed"] * 3


# --- broken off and resumed


def dispatched(name: str) -> int:
    log = RUNS / name / "inference.jsonl"
    return log.read_text(encoding="utf-8").count('"request.dispatched"') if log.exists() else 0


@pytest.mark.skipif(sys.platform == "win32", reason="a kill can't be aimed there")
def test_killed_anywhere_and_resumed_writes_the_same_bytes() -> None:
    assert swarm(*sweep("--jobs", 3)) == 0
    whole = OUT.read_bytes(), OUT.with_suffix(".summary.csv").read_bytes()
    traces = {name: (RUNS / name / "transcript.jsonl").read_bytes() for name in NAMES}
    asked = sum(dispatched(name) for name in NAMES)
    OUT.parent.rename("whole")
    seed = random.randrange(10**6)
    print(f"seed of the kills: {seed}")
    draw, kills = random.Random(seed), 0
    for _ in range(3):
        more = ["--resume"] if RUNS.exists() else []
        child = Child(*sweep("--jobs", 3, *more, config="slow.yaml"))
        until, deadline = sum(map(dispatched, NAMES)) + draw.randint(1, asked // 4), 60
        began = time.monotonic()
        while child.running and sum(map(dispatched, NAMES)) < until:
            assert time.monotonic() - began < deadline, child.text()
            time.sleep(0.002)
        kills += child.running
        child.kill()
    assert kills
    assert not OUT.exists()
    finished = [n for n in NAMES if _state(n) == "completed"]
    before = {name: dispatched(name) for name in finished}
    child = Child(*sweep("--jobs", 3, "--resume", config="slow.yaml"))
    assert child.wait() == 0, child.text()
    assert (OUT.read_bytes(), OUT.with_suffix(".summary.csv").read_bytes()) == whole
    assert {name: (RUNS / name / "transcript.jsonl").read_bytes() for name in NAMES} == traces
    assert {name: dispatched(name) for name in finished} == before
    assert sum(map(dispatched, NAMES)) <= asked + 4 * 3  # what was in flight at each end


def _state(name: str) -> str:
    path = RUNS / name / "manifest.json"
    return str(manifest(RUNS / name)["state"]) if path.exists() else "none"


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT can't be sent to one process there")
def test_ctrl_c_ends_resumably_and_says_how_to_go_on() -> None:
    assert swarm(*sweep("--jobs", 2)) == 0
    whole = OUT.read_bytes()
    OUT.parent.rename("whole")
    child = Child(*sweep("--jobs", 2, config="slow.yaml"))
    assert child.wait_for((RUNS / NAMES[0]).absolute(), "request.answered", 3), child.text()
    os.kill(child.pid, signal.SIGINT)
    assert child.wait() == 130, child.text()
    assert "--resume" in child.text()
    states = [row["state"] for row in rows()]
    assert "not started" in states
    assert "interrupted" in states
    assert json.loads((RUNS / "sweep.json").read_text("utf-8"))["state"] == "interrupted"
    assert swarm(*sweep("--jobs", 2, "--resume")) == 0
    assert OUT.read_bytes() == whole


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT can't be sent to one process there")
def test_a_second_ctrl_c_ends_at_once() -> None:
    write_config(
        Path("slower.yaml"), backend={"kind": "fake", "fake": {"slots": 3, "latency_s": 60.0}}
    )
    child = Child(*sweep("--jobs", 3, config="slower.yaml"))
    assert child.wait_for((RUNS / NAMES[0]).absolute(), "request.dispatched", 1), child.text()
    os.kill(child.pid, signal.SIGINT)
    began = time.monotonic()
    while "again ends at once" not in child.text():
        assert time.monotonic() - began < 30, child.text()
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGINT)
    assert child.wait() == 130, child.text()
    assert time.monotonic() - began < 45  # answers take up to a minute
    assert _state(NAMES[0]) == "interrupted"


def test_a_run_that_fails_leaves_the_others_and_can_be_mended(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second question is refused: whose it is fails, and the next sweep mends that run."""
    write_scenario(Path("s.yaml"), [llm(2, max_retries=0)], epochs=1, steps=2)
    refusal = Reply(error_body(400, "out of luck", "invalid_request_error"), status=400)
    with ScriptedServer() as server:
        server.on(CHAT, Reply(answer_body(POST)), refusal, Reply(answer_body(POST)))
        address = {"kind": "llama_server", "base_url": server.base_url, "ready_timeout_s": 0.5}
        write_config(Path("server.yaml"), backend=address)
        assert swarm(*sweep("--jobs", 1, config="server.yaml")) == 1
        told = capsys.readouterr().err
        assert "1 of 6 runs are not completed" in told
        assert "out of luck" in told
        assert "To go on: swarm sweep" in told
        assert [row["state"] for row in rows()] == ["aborted"] + ["completed"] * 5
        assert rows()[0]["welfare"] == ""
        assert [row["n"] for row in summary()] == ["2", "3"]
        assert swarm(*sweep("--jobs", 1, "--resume", config="server.yaml")) == 0
    assert {row["state"] for row in rows()} == {"completed"}


def test_a_resumed_sweep_may_have_more_seeds_but_not_fewer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert swarm(*sweep(seeds="5-6")) == 0
    first = rows()
    assert swarm(*sweep("--resume", seeds="5-7")) == 0
    assert [row["trace_hash"] for row in rows() if row["seed"] != "7"] == [
        row["trace_hash"] for row in first
    ]
    assert swarm(*sweep("--resume", seeds="5-6")) == 2
    assert "seed7" in capsys.readouterr().err


def test_a_resumed_sweep_must_be_the_same_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert swarm(*sweep()) == 0
    assert swarm(*sweep("--resume", "--inference-scheduler", "batch")) == 2
    assert "mode was 'serial', is 'batch'" in capsys.readouterr().err


@pytest.mark.parametrize("seeds", ["5-7", "5-8"])
def test_a_resumed_sweep_must_have_the_same_simulation(
    seeds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert swarm(*sweep()) == 0
    path = RUNS / NAMES[2] / "manifest.json"
    data = manifest(path.parent)
    data["identity"]["versions"]["swarm-safety"] = "0.0.1"
    path.write_text(json.dumps(data), encoding="utf-8")
    assert swarm(*sweep("--resume", seeds=seeds)) == 2
    assert "versions.swarm-safety was '0.0.1'" in capsys.readouterr().err
    data["identity"]["versions"]["swarm-safety"] = manifest(RUNS / NAMES[0])["identity"][
        "versions"
    ]["swarm-safety"]
    data["identity"]["repairs"] = []
    path.write_text(json.dumps(data), encoding="utf-8")
    assert swarm(*sweep("--resume", seeds=seeds)) == 2
    assert "repairs was []" in capsys.readouterr().err


def sweep_on(server: ScriptedServer) -> None:
    """Run a sweep of two seeds that `server` answers."""
    server.on(CHAT, *[Reply(answer_body(POST))] * 500)
    address = {"kind": "llama_server", "base_url": server.base_url, "ready_timeout_s": 0.5}
    write_config(Path("server.yaml"), backend=address)
    assert swarm(*sweep(config="server.yaml", seeds="5-6")) == 0


def test_what_answered_the_finished_runs_answers_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ScriptedServer() as server:
        sweep_on(server)
        before = said_of_the_sweep()
        assert swarm(*sweep("--resume", seeds="5-7")) == 2  # of the fake backend
        told = capsys.readouterr().err
        assert "can't be resumed" in told
        assert "kind llama_server), is 'fake' (build 1, kind fake)" in told
        assert said_of_the_sweep() == before
        assert not (RUNS / NAMES[2]).exists()
        assert swarm(*sweep("--resume", config="server.yaml", seeds="5-7")) == 0
    assert {row["state"] for row in rows()} == {"completed"}
    configuration = (RUNS / "configuration.yaml").read_bytes()
    assert swarm(*sweep("--resume", seeds="5-7")) == 0  # nothing is left to be asked
    assert (RUNS / "configuration.yaml").read_bytes() == configuration


def test_a_resume_that_can_not_start_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedServer() as server:
        sweep_on(server)
    before = said_of_the_sweep()
    assert swarm(*sweep("--resume", config="server.yaml", seeds="5-20")) == 2
    assert "could be reached" in capsys.readouterr().err
    assert said_of_the_sweep() == before
    assert swarm(*sweep("--resume", config="server.yaml", seeds="5-6")) == 0


def test_why_a_run_can_not_go_on_is_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert swarm(*sweep()) == 0
    path = RUNS / NAMES[1] / "manifest.json"
    data = manifest(path.parent)
    path.write_text(json.dumps({**data, "state": "running"}), encoding="utf-8")
    path.with_name("journal.sqlite3").write_text("no journal " * 99, encoding="utf-8")
    capsys.readouterr()
    assert swarm(*sweep("--resume")) == 1
    told = capsys.readouterr().err
    assert f"{NAMES[1]}  failed" in told
    assert "not a journal, or is damaged" in told


def test_what_answered_a_run_that_has_begun_answers_all_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ScriptedServer() as server:
        sweep_on(server)
        path = RUNS / "transaction_tax=0.0-seed5" / "manifest.json"
        for name in sorted(RUNS.iterdir()):  # nothing is finished, and one run has begun
            if name.is_dir() and name != path.parent:
                shutil.rmtree(name)
        path.write_text(json.dumps({**manifest(path.parent), "state": "interrupted"}))
        before = said_of_the_sweep()
        assert swarm(*sweep("--resume", seeds="5-6")) == 2  # of the fake backend
        assert "seed5 was another one" in capsys.readouterr().err
        assert said_of_the_sweep() == before
        assert [name.name for name in RUNS.iterdir() if name.is_dir()] == [path.parent.name]
        assert swarm(*sweep("--resume", config="server.yaml", seeds="5-6")) == 0
    assert {row["state"] for row in rows()} == {"completed"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_table_that_can_not_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if "tax.csv" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        assert swarm(*sweep()) == 1
    told = capsys.readouterr().err
    assert f"{OUT} can't be written" in told
    assert "make room" in told
    assert swarm(*sweep("--resume")) == 0
    assert {row["state"] for row in rows()} == {"completed"}


@pytest.mark.skipif(sys.platform == "win32", reason="files can't be taken there")
def test_a_sweep_under_way_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    child = Child(*sweep("--jobs", 2, config="slow.yaml"))
    assert child.wait_for((RUNS / NAMES[0]).absolute(), "request.answered", 1), child.text()
    assert swarm(*sweep("--resume")) == 2
    assert "under way in another process" in capsys.readouterr().err
    assert child.wait() == 0, child.text()


# --- bad input


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--param", "payoff.tehta:1,2"], "payoff.theta"),
        (["--param", "payoff.theta"], "has no values"),
        (["--param", "payoff.theta:0.1,0.1"], "twice"),
        (["--param", "payoff.theta:"], "value is empty"),
        (["--values", "1,2"], "--values belongs to one --param"),
        (["--seeds", ""], "seeds must be"),
        (["--seeds", "1-3", "--replications", "2"], "do not fit together"),
        (["--output", "x.txt"], "ends in .csv"),
        (["--output", "s.yaml/x.csv"], "is a file"),
        (["--resume"], "no sweep to resume"),
        (["--slots", "9"], "scheduler.slots is 9"),
    ],
)
def test_bad_input_is_told_before_anything_is_there(
    more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "s.yaml", "--inference-config", "fake.yaml", "--output", OUT]
    assert swarm(*words, *more) == 2
    assert says in capsys.readouterr().err
    assert not RUNS.exists()


@pytest.mark.skipif(
    sys.platform == "win32" or not hasattr(os, "geteuid") or os.geteuid() == 0,
    reason="needs a user whom the system refuses something",
)
def test_an_output_where_nobody_may_write_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("locked").mkdir(mode=0o500)
    words = ["sweep", "s.yaml", "--inference-config", "fake.yaml", "--output", "locked/x.csv"]
    assert swarm(*words) == 2
    assert "can't be written" in capsys.readouterr().err


def test_nothing_is_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    OUT.parent.mkdir()
    OUT.write_text("mine")
    assert swarm(*sweep()) == 2
    told = capsys.readouterr().err
    assert "exists already" in told
    assert "--resume" not in told  # there is no sweep
    assert OUT.read_text() == "mine"


def test_an_output_that_looks_as_if_it_could_be_written_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, **_: Any) -> None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refuse)
        assert swarm(*sweep()) == 2
    assert "results can't be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"journal": {"path": "one.sqlite3"}}, "each run of a sweep has its own journal"),
        ({"determinism": {"repair_simulation": False}}, "--jobs 1"),
    ],
)
def test_settings_by_which_runs_would_meet_are_refused(
    section: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(Path("bad.yaml"), backend={"kind": "fake"}, **section)
    assert swarm(*sweep("--jobs", 2, config="bad.yaml")) == 2
    assert says in capsys.readouterr().err
