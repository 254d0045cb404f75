"""What the batched engine decides without a model: turns, windows, places, kept calibrations."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.backends.batched_calibration import Calibration
from scheduler.backends.batched_prefixes import Place, Prefixes
from scheduler.backends.batched_rows import (
    PREFILL_CHUNKS,
    Turn,
    agreeing,
    next_turn,
    rows_for,
    window,
)
from scheduler.backends.calibration_cache import CalibrationCache, cache_folder
from scheduler.backends.llama_batched import sequences_for

ROWS = (8, 12, 16)


# Turns


def test_prompts_are_read_before_answers_are_written_but_not_for_ever() -> None:
    chunks, turns = 0, []
    for _ in range(3 * PREFILL_CHUNKS):
        turns.append(next_turn(reads=True, writes=True, chunks_since_step=chunks))
        chunks = chunks + 1 if turns[-1] is Turn.PREFILL else 0
    assert turns[:PREFILL_CHUNKS] == [Turn.PREFILL] * PREFILL_CHUNKS
    assert turns[PREFILL_CHUNKS] is Turn.DECODE
    assert turns.count(Turn.DECODE) == 2


def test_nothing_to_do_is_nothing() -> None:
    assert next_turn(reads=False, writes=False, chunks_since_step=0) is Turn.NOTHING
    assert next_turn(reads=True, writes=False, chunks_since_step=99) is Turn.PREFILL
    assert next_turn(reads=False, writes=True, chunks_since_step=0) is Turn.DECODE


# Windows


def test_rows_are_the_fewest_that_agree_and_hold_all() -> None:
    assert [rows_for(n, ROWS) for n in (1, 8, 9, 12, 13, 16, 17)] == [8, 8, 12, 12, 16, 16, None]
    assert rows_for(3, ()) == 3


@given(st.sets(st.integers(0, 15), min_size=1), st.sampled_from([ROWS, (16,), (2, 4, 16), ()]))
def test_a_window_holds_all_that_is_busy_in_rows_that_agree(
    busy: set[int], rows: tuple[int, ...]
) -> None:
    found = window(busy, rows, 20)
    assert busy <= set(found) <= set(range(20))
    assert not rows or len(found) in rows
    narrower = [n for n in rows if n < len(found)]
    assert max(busy) - min(busy) + 1 > max(narrower, default=0)


def test_no_window_is_wider_than_what_agrees() -> None:
    with pytest.raises(ValueError, match="no window"):
        window({0, 16}, ROWS, 20)


@pytest.mark.parametrize(
    ("slots", "rows", "sequences"),
    [(1, ROWS, 8), (4, ROWS, 8), (8, ROWS, 12), (12, ROWS, 16), (13, ROWS, 17), (16, ROWS, 20),
     (1, (1, 2, 3), 5), (3, (), 7)],
)  # fmt: skip
def test_padding_sequences_also_keep_prefixes(
    slots: int, rows: tuple[int, ...], sequences: int
) -> None:
    assert sequences_for(slots, rows) == sequences


# Row counts that agree


def signatures(bits: dict[int, str]) -> dict[int, dict[int, frozenset[str]]]:
    """One letter per row count: equal letters are equal bits; `?` differs by place."""
    return {
        rows: {
            probe: frozenset({f"{bit}{probe}", *([f"other{rows}"] if bit == "?" else [])})
            for probe in range(rows)
        }
        for rows, bit in bits.items()
    }


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        ({1: "a", 2: "a", 4: "b", 8: "c", 9: "?", 12: "c", 15: "d", 16: "c"}, (8, 12, 16)),
        (dict.fromkeys(range(1, 17), "a"), tuple(range(1, 17))),
        ({1: "a", 2: "b", 8: "b", 16: "b"}, (2, 8, 16)),
        ({1: "a", 8: "?", 12: "?", 16: "b"}, (16,)),
        ({8: "a", 12: "a", 16: "b"}, (8, 12)),
        ({1: "a", 2: "?", 4: "?", 16: "?"}, (1,)),
        ({8: "?", 16: "?"}, ()),
    ],
)
def test_the_set_that_agrees_is_found(bits: dict[int, str], expected: tuple[int, ...]) -> None:
    assert agreeing(signatures(bits)) == expected


# Prefixes

SYSTEM = ((1, 2), (3,))
OTHER = ((9, 9), (8,))


def test_a_prompt_goes_where_its_beginning_is() -> None:
    prefixes = Prefixes(slots=2, sequences=4)
    assert prefixes.find((*SYSTEM, (4,)), (), ()) == Place(0, 0, 0)
    prefixes.hold(1, (*SYSTEM, (7,)))
    assert prefixes.find((*SYSTEM, (4,)), (), ()) == Place(1, 1, 2)
    assert prefixes.find((*SYSTEM, (4,)), {1}, ()) == Place(0, 1, 2)


def test_a_prompt_is_copied_down_where_that_keeps_the_step_narrow() -> None:
    prefixes = Prefixes(slots=16, sequences=20)
    prefixes.hold(15, (*SYSTEM, (7,)))
    assert prefixes.find((*SYSTEM, (4,)), {0}, ROWS) == Place(1, 15, 2)
    assert prefixes.find((*SYSTEM, (4,)), {14}, ROWS).sequence == 15


def test_prefixes_that_were_used_least_recently_give_way() -> None:
    prefixes = Prefixes(slots=1, sequences=3)
    assert prefixes.keeper(SYSTEM) == 1
    prefixes.hold(1, SYSTEM)
    assert prefixes.keeper(OTHER) == 2
    prefixes.hold(2, OTHER)
    assert prefixes.keeper(SYSTEM) is None  # kept, and used again
    assert prefixes.keeper(((5,),)) == 2
    assert prefixes.find((*OTHER, (4,)), (), ()).source == 2


def test_without_spare_sequences_nothing_is_kept() -> None:
    assert Prefixes(slots=2, sequences=2).keeper(SYSTEM) is None


# Kept calibrations

FOUND = Calibration("invariant", (8, 12), (8, 9, 12), 77)


def test_a_kept_calibration_is_the_one_that_was_found(tmp_path: Path) -> None:
    cache = CalibrationCache({"model": "a"}, tmp_path / "deep" / "down")
    assert cache.read() is None
    cache.write(FOUND)
    assert CalibrationCache({"model": "a"}, cache.path.parent).read() == FOUND
    assert CalibrationCache({"model": "b"}, cache.path.parent).read() is None
    assert [path.name for path in cache.path.parent.iterdir()] == [cache.path.name]


@pytest.mark.parametrize(
    "damage",
    [
        {"rows": [8, 13]},
        {"rows": []},
        {"rows": ["8"]},
        {"rows": 8},
        {"level": "perfect"},
        {"comparisons": None},
        {"identity": {"model": "b"}},
    ],
)
def test_a_damaged_calibration_counts_as_none(tmp_path: Path, damage: dict[str, Any]) -> None:
    cache = CalibrationCache({"model": "a"}, tmp_path)
    cache.write(FOUND)
    data = json.loads(cache.path.read_text())
    cache.path.write_text(json.dumps(data | damage))
    assert cache.read() is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
def test_a_file_that_is_no_calibration_counts_as_none(tmp_path: Path, content: bytes) -> None:
    cache = CalibrationCache({"model": "a"}, tmp_path)
    cache.path.write_bytes(content)
    assert cache.read() is None
    cache.write(FOUND)
    assert cache.read() == FOUND


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = CalibrationCache({"model": "a"}, tmp_path / "file" / "folder")
    cache.write(FOUND)
    assert cache.read() is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such variable")
def test_the_users_cache_folder_is_honoured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "swarm-inference" / "calibration"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder().is_relative_to(Path.home())
