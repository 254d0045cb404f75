from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

from swarm_integration.bench.oracle import Oracle
from swarm_integration.bench.results import Case, Ratio, ratios, rows
from swarm_integration.bench.tables import markdown, rates_table, ratio_table, show, speed_table
from swarm_integration.bench.turns import Measured, Served

SERVER, LIBRARY = ("server 1", ("AVX2",)), ("library 1", ("AVX512",))


def served(seconds: float, build: tuple[str, tuple[str, ...]] = SERVER, **other: Any) -> Served:
    plain = Served(seconds, 10, 1000, 900, 200, 4, 12.0, 2**20, *build)
    return replace(plain, **other)


def measured(way: str, seconds: float, computed: int) -> Measured:
    oracle = Oracle(seconds / 2, seconds / 2, 1000, computed + 50, computed, 4)
    return Measured(((100, 1.0), (200, 3.0)), {1: 0.01, 4: 0.02}, {way: oracle}, *SERVER)


def case(layout: str = "upstream") -> Case:
    return Case(12, 2, layout, "f" * 64, (("act", 8), ("accept", 2)), 200, 2816)


def test_medians_are_of_the_rounds() -> None:
    one = case()
    one.served["a"] = [served(10), served(60), served(20)]
    (row,) = rows(one)
    assert row.requests_min == 30
    assert row.tokens_s == 10
    assert row.cpu_s == 12
    assert (row.oracle_share, row.fewest_tokens, row.reuse) == (None, None, None)


def test_a_share_of_the_oracle_is_that_of_each_round() -> None:
    one = case()
    # Everything was slow in the second round, the oracle's own rates too.
    one.served["e"] = [served(10), served(40), served(10)]
    one.measured["rates-server"] = [
        measured("e", 8, 600), measured("e", 32, 600), measured("e", 9, 600),
    ]  # fmt: skip
    (row,) = rows(one)
    assert row.oracle_share == 0.8
    assert row.fewest_tokens == 600
    assert row.reuse == 0.25  # 100 tokens of the 400 that could have been


def test_the_python_part_is_what_the_library_does_not_take() -> None:
    one = case()
    one.served["g"] = [served(10, LIBRARY, native_s=9.5)]
    assert abs((rows(one)[0].python_share or 0) - 0.05) < 1e-9


def test_numbers_that_a_system_does_not_tell_are_left_out() -> None:
    one = case()
    one.served["e"] = [served(10, cpu_s=None, peak_bytes=None)]
    row = rows(one)[0]
    assert (row.cpu_s, row.peak_bytes, row.python_share) == (None, None, None)


def test_ratios_are_medians_of_the_ratios_of_each_round() -> None:
    one = case()
    one.served["a"] = [served(20), served(80), served(30)]
    one.served["e"] = [served(10), served(20), served(20)]
    found = ratios([one])
    assert found == [Ratio("e", "upstream", "a", "upstream", 2.0, 1.5, 4.0, same_build=True)]


def test_layouts_are_compared_with_each_other_and_with_upstreams_ways() -> None:
    one, other = case(), case("shared_first")
    one.served["a"] = [served(40)]
    one.served["g"] = [served(20, LIBRARY)]
    other.served["g"] = [served(10, LIBRARY)]
    found = {(r.layout, r.other, r.other_layout): r for r in ratios([one, other])}
    assert found["shared_first", "a", "upstream"].times == 4
    assert found["shared_first", "g", "upstream"].times == 2
    assert found["shared_first", "g", "upstream"].same_build
    assert not found["upstream", "a", "upstream"].same_build
    assert ("upstream", "g", "shared_first") not in found  # the same pair the other way round


def test_ours_are_compared_with_those_before_them() -> None:
    one = case()
    for way in "aefg":
        one.served[way] = [served(10)]
    assert [(ratio.way, ratio.other) for ratio in ratios([one])] == [
        ("e", "a"), ("f", "a"), ("f", "e"), ("g", "a"), ("g", "e"), ("g", "f"),
    ]  # fmt: skip


def test_a_table_says_which_builds_were_compared() -> None:
    one = case()
    one.served["a"], one.served["g"] = [served(40)], [served(20, LIBRARY, native_s=19.0)]
    text = markdown([speed_table(one, rows(one)), ratio_table(12, ratios([one]))])
    assert "server 1: AVX2 (a)" in text
    assert "library 1: AVX512 (g)" in text
    assert "| (g) | (a) | 2.00 | 2.00 | 2.00 | DIFFERENT |" in text
    assert "two builds of llama.cpp" in text


def test_a_share_that_can_not_be_is_remarked_on() -> None:
    for seconds, remarked in ((7, False), (5, True)):
        one = case()
        one.served["e"] = [served(seconds)]
        one.measured["rates-server"] = [measured("e", 8, 600)]
        assert ("the machine was busy" in markdown([speed_table(one, rows(one))])) == remarked


def test_markdown_has_the_cells_of_the_terminal() -> None:
    one = case()
    one.served["e"] = [served(10)]
    one.measured["rates-server"] = [measured("e", 8, 600)]
    tables = [speed_table(one, rows(one)), rates_table(one)]
    text, drawn = markdown(tables), io.StringIO()
    show(tables, drawn)
    assert (
        "| (e) this project, managed server | 4 | 60.0 | 20.0 | 80 % | 900 of 1,000 | 600 |" in text
    )
    for words in ("60.0", "80 %", "900 of 1,000", "1: 10.0, 4: 20.0"):
        assert words in text
        assert words in drawn.getvalue()
    assert all(
        line.count("|") == text.splitlines()[2].count("|") for line in text.splitlines()[2:5]
    )
