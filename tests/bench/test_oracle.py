"""The oracles are schedules: their seconds and tokens are reckoned here by hand."""

from __future__ import annotations

import random

import pytest

from swarm_integration.bench.chained_oracle import chained_oracle
from swarm_integration.bench.oracle import Ask, Rates, batched_oracle

# A token costs 1 s to read; a step costs 10 s and 1 s more for each row.
RATES = Rates(((10, 10.0), (100, 100.0)), {1: 11.0, 2: 12.0, 4: 14.0, 8: 18.0})


def ask(text: str, output: int = 1) -> Ask:
    return Ask(tuple(map(ord, text)), output)


def test_batched_reads_each_token_of_the_prefix_tree_once() -> None:
    steps = [[ask("shared-a"), ask("shared-b")], [ask("shared-a-more"), ask("other")]]
    oracle = batched_oracle(steps, 4, RATES)
    assert oracle.prompt_tokens == 8 + 8 + 13 + 5
    assert oracle.computed_tokens == 8 + 1 + 5 + 5
    assert oracle.prefill_s == oracle.computed_tokens


def test_batched_reads_at_least_the_last_token_of_a_prompt_that_was_there() -> None:
    assert batched_oracle([[ask("same")], [ask("same")]], 1, RATES).computed_tokens == 4 + 1
    assert batched_oracle([[ask("same")], [ask("sa")]], 1, RATES).computed_tokens == 4 + 1
    assert batched_oracle([[ask("same"), ask("sa")]], 1, RATES).computed_tokens == 4


def test_the_first_token_of_an_answer_needs_no_step() -> None:
    assert batched_oracle([[ask("a", 1)]], 4, RATES).decode_s == 0
    assert batched_oracle([[ask("a", 3)]], 4, RATES).decode_s == 2 * 11


def test_answers_of_a_step_share_its_rows() -> None:
    # Two rows for 4 steps, then one row for 2 more.
    steps = [[ask("a", 5), ask("b", 7)]]
    assert batched_oracle(steps, 2, RATES).decode_s == 4 * 12 + 2 * 11


def test_a_free_slot_takes_the_next_answer_and_the_longest_goes_first() -> None:
    steps = [[ask("a", 3), ask("b", 3), ask("c", 5)]]
    # The long one fills one slot for 4 steps, the short ones the other, one after the other.
    assert batched_oracle(steps, 2, RATES).decode_s == 4 * 12


def test_a_step_waits_for_the_one_before() -> None:
    together = batched_oracle([[ask("a", 3), ask("b", 3)]], 2, RATES)
    apart = batched_oracle([[ask("a", 3)], [ask("b", 3)]], 2, RATES)
    assert together.decode_s == 2 * 12
    assert apart.decode_s == 2 * 11 + 2 * 11


def test_fewer_slots_are_used_where_wide_steps_do_not_pay() -> None:
    rates = Rates(((10, 10.0),), {1: 1.0, 2: 10.0})
    oracle = batched_oracle([[ask("a", 3), ask("b", 3)]], 2, rates)
    assert (oracle.slots, oracle.decode_s) == (1, 4.0)


def test_chained_slots_share_nothing() -> None:
    steps = [[ask("shared-a"), ask("shared-b")]]
    wide = Rates(((10, 10.0),), {1: 1000.0, 2: 1000.0})
    one = chained_oracle(steps, 1, RATES)
    assert one.computed_tokens == 8 + 1
    assert chained_oracle(steps, 2, RATES) == one  # a second slot would read the prefix again
    long = [[ask("shared-a", 9), ask("shared-b", 9)]]
    oracle = chained_oracle(long, 2, wide)
    assert (oracle.computed_tokens, oracle.decode_s) == (8 + 8, 8 * 1000)
    assert oracle.fewest_tokens == 8 + 1  # with one slot, which takes longer


def test_a_chain_goes_on_with_what_its_slot_holds() -> None:
    # The slot ends with one of the two; the next step begins with its kin.
    steps = [[ask("aaa1"), ask("bbb1")], [ask("aaa2"), ask("bbb2")]]
    assert chained_oracle(steps, 1, RATES).computed_tokens == 4 + 4 + 1 + 4
    # With a slot for each family nothing of it is read twice.
    assert chained_oracle(steps, 2, RATES).computed_tokens == 4 + 4 + 1 + 1


def test_a_prompt_that_a_slot_holds_as_a_whole_costs_its_last_token() -> None:
    assert chained_oracle([[ask("same")], [ask("same")]], 1, RATES).computed_tokens == 4 + 1
    steps = [[ask("same")], [ask("sam"), ask("same"), ask("same-more")]]
    assert chained_oracle(steps, 1, RATES).computed_tokens == 4 + 1 + 1 + 5


def test_a_new_family_takes_a_slot_that_is_free_before_it_drives_out_another() -> None:
    family, other = "x" * 200, "x" + "y" * 200
    steps = [[ask(family + "1")], [ask(other + "1")], [ask(family + "2"), ask(other + "2")]]
    # Their one token in common is not worth the loss of the others.
    assert chained_oracle(steps, 2, RATES).computed_tokens == 201 + 202 + 1 + 1


def test_positions_have_their_own_price() -> None:
    rates = Rates(((10, 10.0), (20, 40.0)), {1: 1.0})
    assert rates.read_s(0, 10) == 10
    assert rates.read_s(10, 20) == 30
    assert rates.read_s(5, 15) == 5 + 15
    assert rates.read_s(20, 30) == 30  # beyond what was measured it goes on as before


def test_rows_between_those_measured_are_interpolated_and_never_dearer_than_padding() -> None:
    assert RATES.decode_s(3) == 13.0
    assert Rates(((1, 1.0),), {1: 9.0, 2: 8.0, 4: 5.0}).decode_s(1) == 5.0
    with pytest.raises(ValueError, match="9 rows were not measured"):
        RATES.decode_s(9)


def test_no_schedule_beats_the_prefix_tree_or_the_widest_steps() -> None:
    draw = random.Random(7)
    for _ in range(40):
        steps = [
            [
                ask(
                    "".join(draw.choice("ab") for _ in range(draw.randint(1, 9))),
                    draw.randint(1, 9),
                )
                for _ in range(draw.randint(1, 7))
            ]
            for _ in range(3)
        ]
        slots = draw.randint(1, 8)
        tree, chains = batched_oracle(steps, slots, RATES), chained_oracle(steps, slots, RATES)
        prompts = {one.tokens for step in steps for one in step}
        nodes = {tokens[:end] for tokens in prompts for end in range(1, len(tokens) + 1)}
        assert len(nodes) <= tree.computed_tokens <= tree.prompt_tokens
        assert tree.computed_tokens <= chains.fewest_tokens <= chains.computed_tokens
        assert chains.computed_tokens <= chains.prompt_tokens
        written = [one.output - 1 for step in steps for one in step]
        assert tree.decode_s >= sum(written) * RATES.decode_s(8) / 8
        longest = sum(max(one.output - 1 for one in step) for step in steps)
        assert tree.decode_s >= longest * RATES.decode_s(1)


def test_an_empty_step_costs_nothing() -> None:
    assert batched_oracle([[], [ask("a", 2)]], 2, RATES) == batched_oracle(
        [[ask("a", 2)]], 2, RATES
    )
    assert chained_oracle([[]], 2, RATES).seconds == 0
