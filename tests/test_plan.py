"""The plan against a plain list: each item once, groups together, long work first."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.plan import PREFILL_CHARS_PER_DECODE_TOKEN, Plan, cost
from scheduler.types import Message, Request, Sampling
from tests.questions import question

WINDOW = st.lists(
    st.builds(
        lambda agent, group, tokens: question(
            agent, prefix_group=group, sampling=Sampling(max_tokens=tokens)
        ),
        st.integers(0, 99),
        st.sampled_from("abc"),
        st.integers(1, 4),
    ),
    max_size=20,
    unique_by=lambda request: request.agent_id,
)


def plan_of(window: list[Request]) -> Plan[Request]:
    return Plan(window, request_of=lambda request: request)


def asked(agent: int, group: str, max_tokens: int = 10) -> Request:
    return question(agent, prefix_group=group, sampling=Sampling(max_tokens=max_tokens))


def all_of(plan: Plan[Request]) -> list[str]:
    return [plan.take(next(iter(plan.waiting))).agent_id[-1] for _ in range(len(plan))]


@given(WINDOW, WINDOW, st.data())
def test_each_item_is_taken_once(
    first: list[Request], second: list[Request], data: st.DataObject
) -> None:
    plan = plan_of(first)
    later = [replace(request, ordinal=1) for request in second]
    more_at = data.draw(st.integers(0, len(first)))
    left: list[Request] = list(first)
    while left:
        if len(first) - len(left) == more_at and later:
            plan.add(later)
            left, later = left + later, []
        assert len(plan) == len(left)
        assert plan.waiting == Counter(request.group for request in left)
        group = data.draw(st.sampled_from(sorted(plan.waiting)))
        item = plan.take(group)
        window = [r for r in left if r.group == group]
        window = [r for r in window if r.ordinal == min(one.ordinal for one in window)]
        assert item == next(r for r in window if cost(r) == max(map(cost, window)))
        left.remove(item)
    assert len(plan) == 0
    with pytest.raises(LookupError):
        plan.take("a")


@given(WINDOW, st.data())
def test_withdrawn_items_are_gone(window: list[Request], data: st.DataObject) -> None:
    plan = plan_of(window)
    gone = data.draw(st.lists(st.sampled_from(window), unique_by=id)) if window else []
    for request in gone:
        assert plan.withdraw(request)
        assert not plan.withdraw(request)
    left = {plan.take(next(iter(plan.waiting))).agent_id for _ in range(len(plan))}
    assert left == {r.agent_id for r in window} - {r.agent_id for r in gone}


@given(WINDOW)
def test_a_plan_is_a_function_of_its_window(window: list[Request]) -> None:
    assert all_of(plan_of(window)) == all_of(plan_of(list(window)))


def test_the_group_with_most_work_goes_first() -> None:
    plan = plan_of([asked(0, "a"), asked(1, "b"), asked(2, "b"), asked(3, "a", 500)])
    assert repr(plan) == "<Plan 4 in [a:2, b:2]>"
    assert all_of(plan) == ["3", "0", "1", "2"]


def test_equal_work_keeps_the_order_of_arrival() -> None:
    assert all_of(plan_of([asked(i, "ba"[i % 2]) for i in range(6)])) == list("024135")


def test_what_one_slot_answers_stands_by_its_text() -> None:
    """So that neighbours share as much of their beginnings as they can."""
    texts = {0: "You are llm_2", 1: "You are llm_10", 2: "You are llm_1", 3: "You are llm_2, rich"}
    tokens = {0: 100, 1: 150, 2: 90, 3: 400}
    window = [
        replace(asked(n, "a", tokens[n]), messages=(Message("system", "S"), Message("user", text)))
        for n, text in texts.items()
    ]
    for order in (window, window[::-1]):
        plan = Plan(order, request_of=lambda request: request, by_text=True)
        assert all_of(plan) == ["2", "1", "0", "3"]
        assert all_of(plan_of(order)) == ["3", "1", "0", "2"]


def test_what_is_planned_already_comes_before_a_later_window() -> None:
    plan = plan_of([asked(0, "a"), asked(1, "b")])
    plan.add([asked(2, "c", 500), asked(3, "a", 500)])
    assert repr(plan) == "<Plan 4 in [a:2, b:1, c:1]>"
    assert all_of(plan) == ["0", "3", "1", "2"]


def test_withdrawing_a_stranger_changes_nothing() -> None:
    plan = plan_of([asked(0, "a")])
    assert not plan.withdraw(asked(1, "b"))
    assert not plan.withdraw(asked(1, "a"))
    assert len(plan) == 1


def test_cost_counts_prompt_and_answer() -> None:
    request = asked(0, "a", 7)
    assert cost(request) == request.prompt_chars + 7 * PREFILL_CHARS_PER_DECODE_TOKEN
