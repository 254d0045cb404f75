"""`swarm-inference report`: what it prints, writes and refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from swarm_integration.commands import main
from tests.report.hostile import hostile_run
from tests.report.logs import ANN, BOB, event, served, started, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    events: list[Any] = [started(b=2, c=1), event("step.started", 0, epoch=0, step=0)]
    events += served(ANN, 0, 10, 60, prefill_ms=20, decode_ms=25)
    events += [
        event("request.queued", 60, **{**BOB, "backend": "c"}),
        event("request.dispatched", 61, **{**BOB, "backend": "c"}, slot=0, attempt=1),
        event("request.retried", 70, **{**BOB, "backend": "c"}, error="ServerFault", reason="500"),
        event("run.ended", 100, state="completed"),
    ]
    return write_run(tmp_path / "run", events, seed=7)


def test_report_prints_tables_and_writes_a_page(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run)]) == 0
    out = capsys.readouterr().out
    for part in ("run", "completed", "ServerFault: 500", "queue", "50.0 ms", "report.html"):
        assert part in out
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert not list(run.glob(".*"))


def test_no_html_writes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run.iterdir())
    assert main(["report", str(run), "--no-html"]) == 0
    assert sorted(run.iterdir()) == before


def test_json_is_one_object_with_the_numbers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--json", str(run)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["written"] == {"html": str(run / "report.html")}
    [told] = data["runs"]
    assert (told["requests"], told["retries"], told["outcomes"]) == (2, 1, {"ok": 1, "open": 1})
    assert told["service_ms"]["p50"] == 50.0
    assert told["errors"][0]["error"] == "ServerFault: 500"
    assert [slot["busy"] for slot in told["slots"]] == [0.5, 0.0, 0.09]


def test_several_runs_make_a_comparison(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_run(tmp_path / "elsewhere/run", [started(), *served(ANN, 0, 1, 2)])
    assert main(["report", str(run), str(other)]) == 0
    out = capsys.readouterr().out
    assert "Numbers" in out
    html = (run / "comparison.html").read_text(encoding="utf-8")
    assert f"{tmp_path}/run" in html
    assert f"{tmp_path}/elsewhere/run" in html


@pytest.mark.parametrize("argument", [".", "missing"])
def test_what_is_no_run_is_refused(
    argument: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", argument]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.out == ""


def test_a_page_that_can_not_be_written_is_an_error(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run), "--output", str(tmp_path / "no/such/x.html")]) == 2
    assert "can't be written" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--output", "--png", "--trace"])
def test_a_runs_own_file_is_not_written_over(
    option: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in run.iterdir()}
    for file in before:
        assert main(["report", str(run), option, str(file)]) == 2
        assert f"{file} exists and is something else" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in run.iterdir()} == before
    for _ in range(2):  # the second time over its own earlier file
        assert main(["report", str(run), option, str(tmp_path / "x")]) == 0


def test_a_link_in_place_of_the_page_is_replaced_and_not_followed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept", encoding="utf-8")
    (run / "report.html").symlink_to(precious)
    assert main(["report", str(run)]) == 0
    assert precious.read_text(encoding="utf-8") == "kept"
    assert not (run / "report.html").is_symlink()


def test_a_hostile_directory_sends_nothing_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = hostile_run(tmp_path / "r")
    assert main(["report", str(path), "--trace", str(tmp_path / "t.json")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[red]b[/red]" in out
    json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))


def test_a_missing_package_is_named_with_what_to_type(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["report", str(run)]) == 2
    assert "pip install" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(run), "--json", "--png", "x.png"]) == 2
    assert "--png needs matplotlib" in capsys.readouterr().err
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("make", ["usual", "hostile"])
def test_a_picture_is_a_png(
    make: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run if make == "usual" else hostile_run(tmp_path / "hostile")
    png = tmp_path / "x.png"
    assert main(["report", str(path), "--json", "--no-html", "--png", str(png)]) == 0
    assert png.read_bytes().startswith(b"\x89PNG\r\n")
    assert main(["report", str(path), str(path), "--png", str(png)]) == 2


def test_a_trace_has_a_track_for_each_slot(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "t.json"
    assert main(["report", str(run), "--no-html", "--trace", str(trace)]) == 0
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    for one in events:
        assert {"name", "ph", "pid", "tid"} <= one.keys()
        assert one["ph"] in {"M", "X", "C", "i"}
        if one["ph"] != "M":
            assert one["ts"] >= 0
        if one["ph"] == "X":
            assert one["dur"] >= 0
    named = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    tracks = sorted((processes[pid], name) for (pid, _), name in named.items())
    assert tracks == [
        ("backend b", "slot 0"),
        ("backend b", "slot 1"),
        ("backend c", "slot 0"),
        ("simulation", "errors"),
        ("simulation", "steps"),
    ]
    [request] = [e for e in events if e["name"] == "ann act"]
    assert (request["ts"], request["dur"]) == (10_000, 50_000)
    parts = [(e["name"], e["ts"], e["dur"]) for e in events if e.get("cat") == "phase"]
    assert parts == [("prefill", 15_000, 20_000), ("decode", 35_000, 25_000)]
    waiting = [e["args"]["waiting"] for e in events if e["name"] == "queue"]
    assert waiting == [1, 0, 1, 0]
