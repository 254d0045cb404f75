"""Numbers as a report writes them."""

from __future__ import annotations

import pytest

from swarm_integration.report.units import NONE, duration, natural, plural, share, significant, tick

SECOND, MINUTE, HOUR = 1000.0, 60_000.0, 3_600_000.0


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, NONE),
        (0.0, "0 ms"),
        (0.42, "0.42 ms"),
        (12.34, "12.3 ms"),
        (999.4, "999 ms"),
        (999.6, "1.00 s"),
        (99_940.0, "99.9 s"),
        (99_960.0, "1 min 40 s"),
        (200 * SECOND, "3 min 20 s"),
        (HOUR - SECOND, "59 min 59 s"),
        (HOUR - 400, "1 h 00 min"),
        (2 * HOUR + 5 * MINUTE, "2 h 05 min"),
        (HOUR + 59.6 * MINUTE, "2 h 00 min"),
        (5000 * HOUR, "5,000 h 00 min"),
    ],
)
def test_a_duration_has_the_unit_that_it_is_read_in(ms: float | None, text: str) -> None:
    assert duration(ms) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234.5, "1,234"),
        (99.96, "100"),
        (99.94, "99.9"),
        (9.996, "10.0"),
        (9.99, "9.99"),
        (0.01, "0.01"),
        (0.00123, "0.0012"),
        (-12.34, "-12.3"),
        (0.0, "0"),
    ],
)
def test_three_digits_are_shown_and_all_of_the_whole_ones(value: float, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("part", "total", "text"),
    [
        (0, 0, NONE),
        (0, 7, "0.0 %"),
        (1, 10_000, "<0.1 %"),
        (1, 3, "33.3 %"),
        (9_999, 10_000, ">99.9 %"),
        (7, 7, "100.0 %"),
    ],
)
def test_a_share_hides_neither_nearly_none_nor_nearly_all(
    part: float, total: float, text: str
) -> None:
    assert share(part, total) == text


@pytest.mark.parametrize(
    ("step_ms", "labels"),
    [
        (250.0, {0: "0 ms", 250: "250 ms", SECOND: "1 s", 1250: "1.25 s"}),
        (20 * SECOND, {0: "0 s", 20 * SECOND: "20 s", MINUTE: "1:00 min", HOUR: "60:00 min"}),
        (5 * MINUTE, {0: "0 min", 5 * MINUTE: "5 min", 62.5 * MINUTE: "62.5 min"}),
        (2 * HOUR, {0: "0 h", 2 * HOUR: "2 h", 1.5 * HOUR: "1.5 h"}),
    ],
)
def test_an_axis_is_labelled_in_the_unit_of_its_ticks(
    step_ms: float, labels: dict[float, str]
) -> None:
    assert {ms: tick(ms, step_ms) for ms in labels} == labels


def test_names_are_sorted_by_the_numbers_in_them() -> None:
    names = ["llm_10", "llm_2", "7", "llm_2b", "llm", "10", "llm_²"]
    assert sorted(names, key=natural) == ["7", "10", "llm", "llm_2", "llm_2b", "llm_10", "llm_²"]


def test_one_has_no_plural_and_thousands_are_set_apart() -> None:
    assert [plural(n, "slot") for n in (0, 1, 1200)] == ["0 slots", "1 slot", "1,200 slots"]
