"""A mapping notes what is asked of it, in whichever way, and answers as a plain one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from swarm_integration.compat_reading import ReadMapping, read_in_place_of_files, watched

DATA = {"a": 1, "b": {"c": [{"d": 2}]}}


@pytest.mark.parametrize(
    ("read", "answer", "asked"),
    [
        (lambda m: m["a"], 1, {"a": None}),
        (lambda m: m.get("a", 5), 1, {"a": 5}),
        (lambda m: m.get("x", 5), 5, {"x": 5}),
        (lambda m: "a" in m, True, {"a": None}),
        (lambda m: "x" in m, False, {"x": None}),
        (lambda m: 3 in m, False, {"3": None}),
    ],
)
def test_a_key_that_is_asked_for_by_name_is_noted(
    read: Callable[[Any], Any], answer: Any, asked: dict[str, Any]
) -> None:
    mapping = ReadMapping(DATA)
    assert read(mapping) == answer
    assert (mapping.asked, mapping.whole) == (asked, False)


def test_the_default_of_the_first_question_is_the_one_that_is_kept() -> None:
    mapping = ReadMapping(DATA)
    mapping.get("a", 5)
    mapping.get("a", 6)
    assert mapping["a"] == 1
    assert mapping.asked == {"a": 5}
    with pytest.raises(KeyError):
        mapping["x"]
    assert mapping.asked == {"a": 5, "x": None}


@pytest.mark.parametrize(
    ("read", "answer"),
    [
        (list, ["a", "b"]),
        (lambda m: list(m.keys()), ["a", "b"]),
        (lambda m: list(m.values()), [1, DATA["b"]]),
        (lambda m: list(m.items()), [("a", 1), ("b", DATA["b"])]),
        (dict, DATA),
        (lambda m: {**m}, DATA),
    ],
    ids=["iterated", "keys", "values", "items", "copied", "unpacked"],
)
def test_who_takes_all_there_is_is_noted(read: Callable[[Any], Any], answer: Any) -> None:
    mapping = ReadMapping(DATA)
    assert mapping.whole is False
    assert read(mapping) == answer
    assert mapping.whole is True


def test_mappings_inside_are_watched_too_and_nothing_else_is_changed() -> None:
    data = watched(DATA)
    assert data == DATA
    assert data["b"]["c"][0].get("d") == 2
    assert data.asked == {"b": None}
    assert data["b"]["c"][0].asked == {"d": None}
    assert [watched(value) for value in ("text", 1, None)] == ["text", 1, None]


def test_upstreams_loader_reads_the_data_and_is_put_back(tmp_path: Path) -> None:
    from swarm.scenarios import loader

    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({"scenario_id": "on disk"}), encoding="utf-8")
    data = watched({"scenario_id": "in place"})
    with read_in_place_of_files(data):
        assert loader.load_scenario(path).scenario_id == "in place"
    assert loader.load_scenario(path).scenario_id == "on disk"
    assert "scenario_id" in data.asked
