"""Every input is checked before anything is written or started."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scheduler.errors import ConfigError
from swarm_integration import commands
from swarm_integration.bench.document import Place
from swarm_integration.bench.options import (
    WorkloadOptions,
    bench_options,
    check,
    command_of,
    workload_options,
)


def options_of(*words: str) -> WorkloadOptions:
    parser = argparse.ArgumentParser()
    bench_options(parser.add_subparsers())
    return workload_options(parser.parse_args(["bench", "workload", *words]))


@pytest.fixture
def plain() -> WorkloadOptions:
    """Options that need nothing installed but what every test needs."""
    pytest.importorskip("swarm")
    pytest.importorskip("xllamacpp")
    return WorkloadOptions(ways=("a",))


def test_without_options_all_ways_are_measured() -> None:
    assert options_of() == WorkloadOptions()


def test_options_reach_the_measurement() -> None:
    words = "--agents 12 48 12 --ways g a --prompt-layout shared_first upstream --json --slots 8"
    found = options_of(*words.split(), "--markdown", "tables.md", "--whole-runs")
    assert (found.agents, found.ways) == ((12, 48), ("a", "g"))
    assert found.layouts == ("shared_first", "upstream")
    assert (found.json, found.slots, found.whole_runs) == ("-", 8, True)
    assert found.markdown == "tables.md"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"agents": (12, 0)}, "--agents is 0"),
        ({"steps": 0}, "--steps is 0"),
        ({"rounds": 0}, "--rounds is 0"),
        ({"slots": 0}, "--slots is 0"),
        ({"threads": -1}, "--threads is -1"),
        ({"output_tokens": 193}, "--output-tokens is 193; it must be from 1 to 192"),
        ({"requests": 0}, "--requests is 0"),
        ({"preset": "huge"}, "no preset 'huge'; there are bench, bench-1b, demo"),
        ({"model": Path("nowhere.gguf")}, "nowhere.gguf"),
        ({"json": "nowhere/found.json"}, "there is no directory nowhere"),
        ({"markdown": "."}, "is a directory; name a file"),
        ({"markdown": "nowhere.md#name"}, "nowhere.md can't be read"),
    ],
)
def test_what_can_not_be_measured_is_refused(
    plain: WorkloadOptions, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        check(replace(plain, **change))


def test_a_file_that_is_no_model_is_refused(plain: WorkloadOptions, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(ConfigError, match=r"text\.gguf"):
        check(replace(plain, model=tmp_path / "text.gguf"))


def test_good_options_pass(plain: WorkloadOptions, tmp_path: Path) -> None:
    check(replace(plain, json=str(tmp_path / "found.json"), markdown=str(tmp_path / "found.md")))


def test_marks_that_are_missing_are_named(plain: WorkloadOptions, tmp_path: Path) -> None:
    (tmp_path / "found.md").write_text("<!-- end: speed -->\n<!-- begin: speed -->\n")
    with pytest.raises(ConfigError, match="has no lines `<!-- begin: speed -->`"):
        check(replace(plain, markdown=f"{tmp_path / 'found.md'}#speed"))


def test_tables_go_between_their_marks_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "found.md"
    path.write_text("before\n<!-- begin: one -->\nold\n<!-- end: one -->\nafter\n")
    place = Place.of(f"{path}#one")
    for text in ("first\n", "second\n"):
        place.put(text)
        assert path.read_text() == (
            f"before\n<!-- begin: one -->\n{text}<!-- end: one -->\nafter\n"
        )


def test_the_command_is_told_with_what_differs_from_the_defaults() -> None:
    words = "--agents 12 48 --ways a g --prompt-layout upstream shared_first --whole-runs"
    options = options_of(*words.split(), "--rounds", "5", "--json", "found.json")
    assert options_of(*command_of(options).split()[3:]) == replace(options, json=None)
    assert command_of(WorkloadOptions()) == "swarm-inference bench workload"


def test_a_bad_option_ends_the_command_before_it_writes(
    plain: WorkloadOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code = commands.main(["bench", "workload", "--ways", "a", "--rounds", "0"])
    assert code == 2
    assert "--rounds is 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
