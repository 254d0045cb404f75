"""Statistics against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.observe import spread
from swarm_integration.report.records import Depth, End, Key, Try
from swarm_integration.report.statistics import (
    busy_shares,
    depth_steps,
    histogram_of,
    nice_width,
    phases_of,
    spread_of,
    spread_over,
    thinned,
    token_rates,
)

KEY = Key("ann", 0, 0, "act", 0)


def tried(start: float, stop: float, **fields: object) -> Try:
    usual = {"end": End.ANSWERED, **fields}
    return Try(KEY, "b", 0, 1, start, stop, start, **usual)  # type: ignore[arg-type]  # names of fields


def test_spread_of_one_to_a_hundred() -> None:
    found = spread_of(range(100, 0, -1))
    assert found is not None
    assert (found.count, found.mean, found.p50) == (100, 50.5, 50.5)
    assert (found.p95, found.p99, found.largest) == (95, 99, 100)


def test_spread_of_few_samples_takes_the_nearest_rank() -> None:
    found = spread_of([5.0, 1.0, 3.0])
    assert found is not None
    assert (found.p50, found.p95, found.p99) == (3.0, 5.0, 5.0)
    assert spread_of([]) is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_spread_agrees_with_the_runs_summary(samples: list[float]) -> None:
    found, told = spread_of(samples), spread(samples)
    assert found is not None
    assert told is not None
    assert told["median"] == round(found.p50, 3)
    assert (told["p95"], told["max"]) == (round(found.p95, 3), round(found.largest, 3))


def test_histogram_counts_in_bins_of_a_nice_width() -> None:
    found = histogram_of([0.0, 1.0, 1.9, 2.0, 9.9, 10.0], most_bins=5)
    assert found is not None
    assert (found.width, found.counts, found.beyond) == (2.0, (3, 1, 0, 0, 2), 0)


def test_histogram_leaves_a_far_outlier_out_and_counts_it() -> None:
    found = histogram_of([1.0] * 199 + [5000.0], most_bins=10)
    assert found is not None
    assert (sum(found.counts), found.beyond) == (199, 1)


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=60), st.integers(1, 40))
def test_histogram_loses_no_sample_and_keeps_its_bound(samples: list[float], most: int) -> None:
    found = histogram_of(samples, most)
    assert found is not None
    assert sum(found.counts) + found.beyond == len(samples)
    assert len(found.counts) <= most


@pytest.mark.parametrize(
    ("span", "bins", "width"), [(10, 10, 1), (11, 10, 2), (95, 10, 10), (0.3, 3, 0.1), (0, 9, 1)]
)
def test_nice_widths(span: float, bins: int, width: float) -> None:
    assert nice_width(span, bins) == pytest.approx(width)


def test_phases_end_with_the_answer_and_begin_with_the_rest() -> None:
    found = phases_of(tried(0, 100, prefill_ms=30.0, decode_ms=60.0))
    assert found == [("other", 0, 10.0), ("prefill", 10.0, 40.0), ("decode", 40.0, 100)]


def test_phases_that_claim_too_much_are_cut() -> None:
    found = phases_of(tried(10, 20, prefill_ms=500.0, decode_ms=4.0))
    assert found == [("prefill", 10.0, 16.0), ("decode", 16.0, 20)]


def test_a_try_without_an_answer_is_one_piece() -> None:
    assert phases_of(tried(0, 5, end=End.RETRIED)) == [("failed", 0, 5)]
    assert phases_of(tried(0, 5, end=End.STOPPED)) == [("other", 0, 5)]


def test_amounts_are_shared_out_by_time() -> None:
    assert spread_over([(5.0, 25.0, 40.0), (30.0, 30.0, 1.0)], 10.0, 4) == [10, 20, 10, 1]


@given(st.lists(st.tuples(st.floats(0, 90), st.floats(0, 10), st.floats(0, 100)), max_size=20))
def test_sharing_out_loses_nothing(pieces: list[tuple[float, float, float]]) -> None:
    spans = [(start, start + length, amount) for start, length, amount in pieces]
    total = sum(spread_over(spans, 7.0, 15))
    assert math.isclose(total, sum(amount for *_, amount in pieces), abs_tol=1e-6)


def test_token_rates_put_tokens_where_they_were_read_and_written() -> None:
    one = tried(
        0,
        1000,
        prefill_ms=500.0,
        decode_ms=500.0,
        prompt_tokens=60,
        cached_tokens=10,
        completion_tokens=20,
    )
    found = token_rates([one], 2000.0, bins=4)
    assert found.width_ms == 500.0
    assert found.series["prefill"] == (100.0, 0.0, 0.0, 0.0)
    assert found.series["decode"] == (0.0, 40.0, 0.0, 0.0)


def test_token_rates_without_phases_use_the_whole_try() -> None:
    one = tried(0, 1000, completion_tokens=10)
    assert token_rates([one], 1000.0, bins=2).series["decode"] == (10.0, 10.0)


def test_busy_shares_of_a_slot() -> None:
    tries = [tried(0, 10, decode_ms=10.0), tried(15, 20, end=End.FAILED)]
    shares = busy_shares(tries, 10.0, 2)
    assert shares["decode"] == [1.0, 0.0]
    assert shares["failed"] == [0.0, 0.5]


def test_depths_add_up_over_backends_and_by_backend() -> None:
    depths = [Depth(1, "a", 1), Depth(2, "b", 1), Depth(2, "a", -1), Depth(4, "b", -1)]
    assert depth_steps(depths) == [(1, 1), (2, 1), (4, 0)]
    assert depth_steps(depths, "a") == [(1, 1), (2, 0)]


def test_thinning_keeps_the_greatest_length() -> None:
    assert thinned([(0.0, 1), (4.0, 9), (4.1, 0), (8.0, 2)], 10.0, 5) == [1, 1, 9, 0, 2]
