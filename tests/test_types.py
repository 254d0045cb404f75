"""Requests refuse what can't be asked, and say what they are."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from scheduler.errors import ConfigError, RequestFailed
from scheduler.types import (
    Answer,
    Completion,
    FinishReason,
    Message,
    Outcome,
    OutputSchema,
    Request,
    Sampling,
)
from tests.questions import SCHEMA, question


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": ()}, "'agent-000' has no messages"),
        ({"timeout_s": 0}, "timeout_s of 'agent-000' must be above 0: 0"),
        ({"timeout_s": -1.0}, "above 0: -1.0"),
        ({"timeout_s": float("nan")}, "above 0: nan"),
        ({"max_retries": -1}, "max_retries of 'agent-000' must be 0 or more"),
    ],
)
def test_impossible_requests_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(question(), **fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": 0}, "max_tokens must be 1 or more, got 0"),
        ({"temperature": -0.1}, "temperature must be 0 or more, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be 0 or more, got nan"),
        ({"temperature": float("inf")}, "temperature must be 0 or more, got inf"),
    ],
)
def test_impossible_sampling_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Sampling(**fields)


def test_a_message_that_is_not_text_is_refused_before_it_does_harm() -> None:
    with pytest.raises(ConfigError, match=r"a user message holds half a surrogate pair.* 2"):
        Message("user", "ab\ud800")


def test_a_label_names_agent_kind_and_place() -> None:
    assert question("ann", epoch=1, step=2).label == "ann act (epoch 1, step 2)"
    assert question("ann", ordinal=3).label == "ann act #3 (epoch 0, step 0)"


def test_the_system_message_and_the_backend_decide_the_group() -> None:
    assert question(1).group == question(2).group
    assert question(1, system="other").group != question(1).group
    assert question(1, backend="other").group != question(1).group
    assert question(1, prefix_group="mine").group == "mine"
    lone = Request("a", (Message("user", "x"),))
    assert lone.group == replace(lone, messages=(Message("user", "y"),)).group


def test_the_prompt_hash_vector() -> None:
    assert (
        question().prompt_sha256
        == "52314c0181441e8a4b5f38002cf6fe2c85758b030643ad3a3f693ead94789f7b"
    )
    assert (
        question(schema=SCHEMA).prompt_sha256
        == "23e6307b82a12fe0a46dcdbd54b1a97f26c568add8bf3cb9a4d986aff426e9fe"
    )


def test_the_prompt_hash_covers_messages_sampling_and_schema_alone() -> None:
    same = replace(question(), base_seed=3, timeout_s=1.0, step=4, kind="k", backend="b")
    assert same.prompt_sha256 == question().prompt_sha256
    for change in (
        {"messages": (Message("user", "x"),)},
        {"sampling": Sampling(top_k=1)},
        {"schema": SCHEMA},
    ):
        assert replace(question(), **change).prompt_sha256 != question().prompt_sha256


def test_equal_schemas_have_equal_fingerprints() -> None:
    first = OutputSchema("a", {"type": "object", "required": []})
    second = OutputSchema("b", {"required": [], "type": "object"})
    assert first.fingerprint == second.fingerprint


def test_records_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        question().step = 3  # type: ignore[misc] # what the test is about


def test_prompt_chars_counts_all_messages() -> None:
    request = Request("a", (Message("system", "abc"), Message("user", "de")))
    assert request.prompt_chars == 5


def test_a_completion_is_ok_when_its_last_answer_is() -> None:
    bad = Answer("x", Outcome.INVALID, FinishReason.STOP, seed=1)
    good = replace(bad, text="y", outcome=Outcome.OK)
    assert Completion(question(), (bad, good)).ok
    assert Completion(question(), (bad, good)).text == "y"
    assert not Completion(question(), (good, bad)).ok
    failed = Completion(question(), (good,), RequestFailed("gone", 1))
    assert not failed.ok
    with pytest.raises(RequestFailed, match="gone"):
        _ = failed.text
