"""What the batched engine decides without a model: turns, windows, places, kept calibrations."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.backends.batched_calibration import Calibration
from scheduler.backends.batched_cuts import NOTHING, Cuts, Fixed, Grain, Grained, Text
from scheduler.backends.batched_grain import GRAINS
from scheduler.backends.batched_prefixes import Place, Prefixes
from scheduler.backends.batched_rows import (
    Turn,
    agreeing,
    groups,
    next_turn,
    rows_for,
    window,
)
from scheduler.backends.calibration_cache import (
    CalibrationCache,
    cache_folder,
    identity,
)
from scheduler.backends.llama_memory import sequences_for
from scheduler.backends.llama_prefix import CHUNK_TOKENS
from scheduler.backends.native_model import NativeSpec, arithmetic_variables

ROWS = (8, 12, 16)


# Turns


def test_prompts_are_read_until_the_slots_are_full_but_not_for_ever() -> None:
    prompts, turns = 0, []
    for _ in range(10):
        turns.append(next_turn(reads=True, writes=True, prompts_since_step=prompts, slots=4))
        prompts = prompts + 1 if turns[-1] is Turn.PREFILL else 0
    assert turns == [*[Turn.PREFILL] * 4, Turn.DECODE] * 2


def test_nothing_to_do_is_nothing() -> None:
    def turn(*, reads: bool, writes: bool, prompts: int) -> Turn:
        return next_turn(reads=reads, writes=writes, prompts_since_step=prompts, slots=1)

    assert turn(reads=False, writes=False, prompts=0) is Turn.NOTHING
    assert turn(reads=True, writes=False, prompts=99) is Turn.PREFILL
    assert turn(reads=False, writes=True, prompts=0) is Turn.DECODE


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


@given(st.sets(st.integers(0, 15), min_size=1), st.sampled_from([ROWS, (8,), (1,), (1, 2), ()]))
def test_groups_are_all_answers_once_in_steps_that_agree(
    busy: set[int], rows: tuple[int, ...]
) -> None:
    found = groups(busy, rows)
    assert [number for group in found for number in group] == sorted(busy)
    for group in found:
        assert set(group) <= set(window(group, rows, 20))
    assert len(found) == 1 or max(busy) - min(busy) >= max(rows)


def test_no_window_is_wider_than_what_agrees() -> None:
    with pytest.raises(ValueError, match="no window"):
        window({0, 16}, ROWS, 20)


@pytest.mark.parametrize(
    ("slots", "rows", "sequences"),
    [(1, ROWS, 8), (4, ROWS, 8), (8, ROWS, 12), (12, ROWS, 16), (13, ROWS, 17), (16, ROWS, 20),
     (1, (1, 2, 3), 5), (3, (), 7), (11, (8,), 15)],
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


# Cuts

GRAINED = Grained(Grain(4, 4))


def text_of(*tokens: int, cuts: Cuts = GRAINED, system: int = 0) -> Text:
    return cuts.text(tokens, system)


def chunks_of(cuts: Cuts, text: Text, start: int = 0) -> list[int]:
    ends = [start]
    while ends[-1] < len(text):
        ends.append(cuts.end(text, ends[-1]))
    return ends


@given(st.integers(1, 2000), st.sampled_from(GRAINS), st.integers(0, 2000), st.randoms())
def test_grained_cuts_are_multiples_and_no_chunk_is_a_rest(
    count: int, grain: Grain, system: int, rng: random.Random
) -> None:
    cuts = Grained(grain)
    text = cuts.text(range(count), system)
    assert text.border <= system
    start = rng.choice(range(0, max(1, count - grain.shortest + 1), grain.step))
    for ends in (chunks_of(cuts, text), chunks_of(cuts, text, start)):
        sizes = [end - begin for begin, end in pairwise(ends)]
        assert all(end % grain.step == 0 for end in ends[:-1])
        assert max(sizes) <= CHUNK_TOKENS
        assert min(sizes) >= min(grain.shortest, count)
        assert len(sizes) == -(-(count - ends[0]) // CHUNK_TOKENS)
        assert all(size == CHUNK_TOKENS for size in sizes[:-2])


def test_what_two_prompts_share_is_reused_up_to_a_cut() -> None:
    held = text_of(*range(40))
    assert GRAINED.reusable(held, text_of(*range(13), 99, *range(14, 40))) == 12
    assert GRAINED.reusable(held, text_of(*range(12), 99, *range(14, 40))) == 12
    assert GRAINED.reusable(held, text_of(*range(3), 99)) == 0
    assert GRAINED.reusable(NOTHING, held) == 0


@pytest.mark.parametrize(("count", "reused"), [(1, 0), (4, 0), (7, 0), (8, 4), (11, 4), (12, 8)])
def test_the_last_chunk_of_a_known_prompt_is_read_again(count: int, reused: int) -> None:
    held = text_of(*range(40))
    assert GRAINED.reusable(held, text_of(*range(count))) == reused


def test_a_prompt_too_short_to_be_a_chunk_shares_nothing() -> None:
    cuts = Grained(Grain(4, 16))
    wanted = text_of(*range(60), cuts=cuts)
    assert cuts.reusable(text_of(*range(12), cuts=cuts), wanted) == 0
    assert cuts.reusable(text_of(*range(15), cuts=cuts), wanted) == 0
    assert cuts.reusable(text_of(*range(16), cuts=cuts), wanted) == 16
    assert text_of(*range(60), cuts=cuts, system=12).border == 0
    assert text_of(*range(60), cuts=cuts, system=18).border == 16


@pytest.mark.parametrize(("count", "reused"), [(19, 0), (31, 0), (32, 16), (35, 16), (36, 20)])
def test_what_is_read_again_is_no_shorter_than_a_chunk_may_be(count: int, reused: int) -> None:
    cuts = Grained(Grain(4, 16))
    held = text_of(*range(60), cuts=cuts)
    assert cuts.reusable(held, text_of(*range(count), cuts=cuts)) == reused


@pytest.mark.parametrize("cuts", [GRAINED, Fixed()], ids=["grained", "fixed"])
def test_what_is_said_to_be_shared_is_kept_and_reused(cuts: Cuts) -> None:
    """A system message of 70 tokens and a world that ends at token 300, then what is one's own."""
    held = cuts.text(range(420), 70, (33, 300))
    wanted = cuts.text([*range(300), *range(9000, 9150)], 70, (33, 300))
    assert held.border == wanted.border == cuts.reusable(held, wanted) > 280
    assert cuts.reusable(held.first(held.border), wanted) == held.border
    assert cuts.text(range(420), 70).border < 80


@given(st.integers(1, 900), st.integers(0, 900), st.integers(0, 900), st.integers(0, 900))
def test_fixed_cuts_are_the_same_whatever_is_held(
    count: int, system: int, common: int, other_system: int
) -> None:
    cuts = Fixed()
    wanted = cuts.text(range(count), system)
    tokens = [token if token < common else -1 for token in range(700)]
    reused = cuts.reusable(cuts.text(tokens, other_system), wanted)
    cold = chunks_of(cuts, wanted)
    assert reused in cold[:-1]
    assert reused <= common
    assert chunks_of(cuts, wanted, reused) == cold[cold.index(reused) :]


# Prefixes

SYSTEM = tuple(range(8))
OTHER = tuple(range(100, 108))


def prefixes_of(slots: int, sequences: int, held: dict[int, tuple[int, ...]]) -> Prefixes:
    prefixes = Prefixes(GRAINED, slots, sequences)
    for number, tokens in held.items():
        prefixes.hold(number, text_of(*tokens))
    return prefixes


QUESTION = text_of(*SYSTEM, *range(50, 60))


def test_a_prompt_goes_where_its_beginning_is() -> None:
    assert prefixes_of(2, 4, {}).find(QUESTION, (), ()) == Place(0, 0, 0)
    held = {1: (*SYSTEM, 7)}
    assert prefixes_of(2, 4, held).find(QUESTION, (), (8,)) == Place(1, 1, 8)
    assert prefixes_of(2, 4, held).find(QUESTION, {1}, ()) == Place(0, 1, 8)


def test_a_prompt_is_copied_from_the_longest_beginning_even_of_one_that_answers() -> None:
    prefixes = prefixes_of(4, 6, {0: SYSTEM, 1: (*SYSTEM, *range(50, 55)), 5: SYSTEM})
    assert prefixes.find(QUESTION, {1}, (8,)) == Place(0, 1, 12)


def test_a_prompt_is_copied_down_where_that_keeps_the_step_narrow() -> None:
    held = {15: (*SYSTEM, 7)}
    assert prefixes_of(16, 20, held).find(QUESTION, {0}, ROWS) == Place(1, 15, 8)
    assert prefixes_of(16, 20, held).find(QUESTION, {14}, ROWS).sequence == 15


def test_of_idle_sequences_the_one_used_least_recently_is_given_up() -> None:
    prefixes = Prefixes(GRAINED, slots=3, sequences=3)
    prompts = [text_of(*range(1000 * n, 1000 * n + 12)) for n in range(5)]
    for number, prompt in enumerate(prompts[:3]):
        assert prefixes.find(prompt, (), (8,)).sequence == number
        prefixes.hold(number, prompt)
    assert prefixes.find(prompts[0], (), (8,)) == Place(0, 0, 8)
    assert prefixes.find(prompts[3], (), (8,)) == Place(1, 0, 0)


def test_prefixes_that_were_used_least_recently_give_way() -> None:
    prefixes = Prefixes(GRAINED, slots=1, sequences=3)
    system, other = text_of(*SYSTEM), text_of(*OTHER)
    assert prefixes.keeper(system) == 1
    prefixes.hold(1, system)
    assert prefixes.keeper(other) == 2
    prefixes.hold(2, other)
    assert prefixes.keeper(system) is None  # kept, and used again
    assert prefixes.keeper(text_of(5, 5, 5, 5)) == 2
    assert prefixes.find(text_of(*OTHER, *range(9)), (), ()).source == 2


def test_what_outlasts_a_step_is_not_given_up_for_its_world() -> None:
    prefixes = Prefixes(GRAINED, slots=1, sequences=3)

    def keep(beginning: tuple[int, ...], world: int) -> int | None:
        prefix = text_of(*beginning, *range(world, world + 4))
        number = prefixes.keeper(prefix, len(beginning))
        if number is not None:
            prefixes.hold(number, prefix)
        return number

    assert [keep(SYSTEM, 20), keep(OTHER, 20)] == [1, 2]
    # The next step's world takes the place of the one before, though the other is older.
    assert [keep(OTHER, 30), keep(OTHER, 40), keep(SYSTEM, 30)] == [2, 2, 1]
    assert keep((200, 201, 202, 203), 20) == 2


def test_without_spare_sequences_nothing_is_kept() -> None:
    assert Prefixes(GRAINED, slots=2, sequences=2).keeper(text_of(*SYSTEM)) is None


# Kept calibrations

FOUND = Calibration("invariant", (8, 12), (8, 9, 12), 77, Grain(8, 64))


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
        {"grain": 16},
        {"grain": {"step": 8}},
        {"grain": {"step": 0, "shortest": 64}},
        {"grain": {"step": "8", "shortest": 64}},
        {"identity": {"model": "b"}},
        {"wider": 20},
        {"wider": [12], "wider_tried": 20},
        {"wider": [24], "wider_tried": 20},
        {"wider": ["20"], "wider_tried": 20},
        {"wider_tried": None},
        {"wider": [24], "wider_tried": None},
        {"wider": [24], "wider_tried": 24, "rows": ["8"]},
    ],
)
def test_a_damaged_calibration_counts_as_none(tmp_path: Path, damage: dict[str, Any]) -> None:
    cache = CalibrationCache({"model": "a"}, tmp_path)
    cache.write(FOUND)
    data = json.loads(cache.path.read_text())
    cache.path.write_text(json.dumps(data | damage))
    assert cache.read() is None


def test_larger_steps_are_kept_as_well_and_serve_fewer_slots(tmp_path: Path) -> None:
    wider = replace(FOUND, wider=(16, 20, 28), wider_tried=28)
    cache = CalibrationCache({"model": "a"}, tmp_path)
    cache.write(wider)
    assert cache.read() == wider
    assert FOUND.rows_for(12) == (8, 12)
    assert FOUND.rows_for(13) is None  # has to be looked for
    assert wider.rows_for(12) == (8, 12)
    assert wider.rows_for(19) == (8, 12, 16, 20)
    assert wider.rows_for(22) == (8, 12, 16, 20)
    assert wider.rows_for(28) == (8, 12, 16, 20, 28)
    assert wider.rows_for(29) is None
    assert replace(FOUND, rows=(1,)).rows_for(8) == (1,)
    assert replace(FOUND, level="repeatable", rows=()).rows_for(8) == ()


@pytest.mark.parametrize("name", ["GGML_X", "OMP_THREAD_LIMIT", "CUDA_X", "HIP_X", "HSA_X"])
def test_variables_that_choose_kernels_are_a_part_of_what_a_calibration_follows_from(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = arithmetic_variables()
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HOME_OF_GGML_", "1")
    assert arithmetic_variables() == {**before, name: "1"}


def test_the_libraries_that_were_loaded_are_a_part_of_it_too(tmp_path: Path) -> None:
    """They may be elsewhere than in the package: LLAMA_CPP_LIB_PATH."""
    (tmp_path / "lib").mkdir()
    lib = SimpleNamespace(
        __file__=str(tmp_path / "__init__.py"),
        __version__="1",
        llama_print_system_info=lambda: b"AVX512 = 1",
        llama_cpp=SimpleNamespace(),
    )
    spec = NativeSpec(tmp_path / "m.gguf", 2048, 1, 0, flash_attention=False)
    (tmp_path / "lib" / "libllama.so").write_bytes(b"1")
    packaged = identity(lib, spec, "")["library"]
    assert [line.split()[0] for line in packaged] == ["libllama.so"]
    (tmp_path / "other").mkdir()
    for name in ("libllama.so.0", "libggml-cpu.so", "llama-server"):
        (tmp_path / "other" / name).write_bytes(b"22")
    lib.llama_cpp._lib = SimpleNamespace(_name=str(tmp_path / "other" / "libllama.so.0"))
    elsewhere = identity(lib, spec, "")["library"]
    assert [line.split()[0] for line in elsewhere] == ["libggml-cpu.so", "libllama.so.0"]


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
