"""The page: well formed, closed to the network, and deaf to what a directory says."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from swarm_integration.report.page import page
from swarm_integration.report.reading import read_run
from swarm_integration.report.summary import Summary, summarise
from swarm_integration.report.timeline import MOST_BARS, timelines
from tests.report.hostile import hostile_run
from tests.report.logs import ANN, BOB, event, in_time, run_of, served, started, write_run
from tests.report.pages import Page

STEPS = [event("step.started", n, epoch=0, step=n) for n in range(3)]


def summary_of(path: Path, events: list[object], **fields: object) -> Summary:
    return summarise(run_of(path, events, **fields))


def usual_run(path: Path) -> Summary:
    asked = [*served(ANN, 3, 4, 50, prefill_ms=9, decode_ms=20), *served(BOB, 3, 51, 99, slot=1)]
    events = in_time(started(), *STEPS, *asked, event("run.ended", 100))
    write_run(path, events, epochs=[{"epoch": 0, "welfare": 1.0}, {"epoch": 1, "welfare": 3.0}])
    return summarise(read_run(path))


def many(count: int, slots: int = 4) -> list[object]:
    events = [started(b=slots)]
    for n in range(count):
        who = {**ANN, "agent_id": f"agent_{n % 60}", "step": n // 60}
        at = 10.0 * (n // slots)
        events += served(who, at, at + 1, at + 9, slot=n % slots, prefill_ms=2, decode_ms=5)
    return in_time(*events)


def test_a_page_is_well_formed_and_says_what_a_run_did(tmp_path: Path) -> None:
    html = page([usual_run(tmp_path / "my-run")], "test")
    found = Page(html)
    assert html.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert found.headings().count("h1") == 1
    assert "my-run" in found.text
    assert "welfare" in found.text
    assert "p95" in found.text
    for drawing in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        root = ET.fromstring(drawing)
        assert root.find("title") is not None
        assert root.get("role") == "img"


def test_every_link_of_the_page_leads_to_a_section(tmp_path: Path) -> None:
    found = Page(page([usual_run(tmp_path / "r")], "test"))
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    links = [attributes["href"] for name, attributes in found.elements if name == "a"]
    assert len(ids) == len(set(ids))
    assert links
    assert {str(link) for link in links} <= {f"#{one}" for one in ids}


def test_a_page_loads_nothing_and_forbids_it(tmp_path: Path) -> None:
    found = Page(html := page([usual_run(tmp_path / "r")], "test"))
    assert not found.names() & {"script", "link", "img", "iframe", "object", "embed", "form"}
    attributes = {name for _, attributes in found.elements for name in attributes}
    assert not attributes & {"src", "style", "xlink:href", "action", "srcset"}
    assert not any(name.startswith("on") for name in attributes)
    [policy] = [a["content"] for n, a in found.elements if a.get("http-equiv")]
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    digest = b64encode(sha256(style[1].encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_a_hostile_directory_adds_no_element_and_no_attribute(tmp_path: Path) -> None:
    summary = summarise(read_run(hostile_run(tmp_path / "r")))
    for summaries in ([summary], [summary, usual_run(tmp_path / "good")]):
        html = page(summaries, "test").encode("utf-8").decode()
        found = Page(html)
        assert not found.names() & {"script", "img"}
        assert not any(n.startswith("on") for _, a in found.elements for n in a)
        assert "<script>alert(1)</script>" in found.text
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", html)


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c")])
def test_runs_stand_side_by_side(tmp_path: Path, names: tuple[str, ...]) -> None:
    runs = [
        summary_of(tmp_path / n, [started(), *served(ANN, 0, 1, 5)], seed=n, configuration={"k": n})
        for n in names
    ]
    found = Page(page(runs, "test"))
    assert f"{len(names)} runs side by side" in found.text
    for name in names:
        assert name in found.text
    assert "Configuration that differs" in found.text


def test_equal_transcripts_are_named(tmp_path: Path) -> None:
    for name, content in (("a", "x"), ("b", "x"), ("c", "y")):
        write_run(tmp_path / name)
        (tmp_path / name / "transcript.jsonl").write_text(content, encoding="utf-8")
    runs = [summarise(read_run(tmp_path / name)) for name in "abc"]
    assert "byte by byte: a = b. The others differ." in Page(page(runs, "test")).text
    assert "All transcripts are the same" in Page(page(runs[:2], "test")).text
    assert "All transcripts differ" in Page(page(runs[1:], "test")).text


def test_a_short_run_is_drawn_try_by_try(tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", many(100))
    slots, agents = timelines(run)
    assert slots.count("<rect") == 300  # other, prefill and decode of each
    assert slots.count(": attempt 1, answered") == 100
    assert agents.count("t-queue") == len([n for n in range(100) if n % 60 < 48])


def test_a_long_run_is_drawn_in_shares_and_says_so(tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", many(MOST_BARS + 100))
    shares, slots, _ = timelines(run)
    assert f"{MOST_BARS + 100:,} attempts are too many to draw one by one" in shares
    assert shares.count("<rect") == 0
    assert slots.count("<rect") < 3 * MOST_BARS


def test_a_page_of_many_requests_stays_small(tmp_path: Path) -> None:
    summary = summary_of(tmp_path / "r", many(5000, slots=64))
    html = page([summary], "test")
    assert len(html.encode()) < 5_000_000
    assert html.count("<") < 60_000


@pytest.mark.parametrize(
    "events",
    [
        [],
        [started()],
        [started(), event("request.queued", 1, **ANN)],
        [started(), event("request.dispatched", 0, **ANN, slot=0)],
        [started(), event("request.recalled", 1, **ANN), event("run.aborted", 2, reason="x")],
    ],
    ids=["empty", "begun", "queued", "no time", "recalled"],
)
def test_an_aborted_run_has_a_page(tmp_path: Path, events: list[object]) -> None:
    found = Page(page([summary_of(tmp_path / "r", events, state="aborted")], "test"))
    assert "aborted" in found.text
