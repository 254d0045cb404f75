"""The seed formula is a promise: its vectors are written out here."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.seeds import derive_seed, request_seed
from scheduler.types import Message, Request, Sampling
from tests.questions import SCHEMA, question

PLAIN = Request("agent-1", (Message("user", "x"),))
FULL = Request(
    "Zoë", (Message("user", "x"),), epoch=2, step=7, kind="accept", ordinal=1, base_seed=42
)


@pytest.mark.parametrize(
    ("request_", "reask", "seed"),
    [(PLAIN, 0, 944754996), (PLAIN, 1, 1162196910), (PLAIN, 2, 1083997584), (FULL, 0, 1091866954)],
)
def test_request_seed_vectors(request_: Request, reask: int, seed: int) -> None:
    assert request_seed(request_, reask) == seed


def test_the_formula_as_documented() -> None:
    text = '["request-seed/1",42,"Zoë",2,7,"accept",1,0]'
    assert request_seed(FULL) == int(sha256(text.encode()).hexdigest()[:8], 16) & 0x7FFFFFFF


@pytest.mark.parametrize(
    "change",
    [
        {"agent_id": "agent-2"},
        {"epoch": 1},
        {"step": 1},
        {"kind": "accept"},
        {"ordinal": 1},
        {"base_seed": 1},
    ],
)
def test_what_a_request_is_changes_its_seed(change: dict[str, Any]) -> None:
    assert request_seed(replace(PLAIN, **change)) != request_seed(PLAIN)


@pytest.mark.parametrize(
    "change",
    [
        {"messages": (Message("user", "y"),)},
        {"sampling": Sampling(temperature=0)},
        {"schema": SCHEMA},
        {"backend": "other"},
        {"timeout_s": 1.0},
        {"max_retries": 9},
        {"prefix_group": "g"},
    ],
)
def test_how_a_request_is_asked_does_not(change: dict[str, Any]) -> None:
    assert request_seed(replace(PLAIN, **change)) == request_seed(PLAIN)


@given(st.lists(st.one_of(st.integers(), st.text(st.characters(codec="utf-8")))))
def test_a_seed_is_never_llama_servers_word_for_random(parts: list[str | int]) -> None:
    assert 0 <= derive_seed(*parts) < 2**31
    assert derive_seed(*parts) == derive_seed(*parts)


def test_ten_thousand_requests_have_nearly_as_many_seeds() -> None:
    seeds = {request_seed(question(i, step=s)) for i in range(100) for s in range(100)}
    assert len(seeds) > 9_990
