"""What counts as an answer that holds its schema."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.errors import ConfigError
from scheduler.structured import MOST_KEPT, SchemaChecker, extract_json
from scheduler.types import OutputSchema
from tests.questions import SCHEMA

GOOD = {"action": "wait", "price": 3}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        f"  {json.dumps(GOOD)}\n",
        f"```json\n{json.dumps(GOOD)}\n```",
        f"```\n{json.dumps(GOOD)}```",
        f"I will wait.\n```json\n{json.dumps(GOOD)}\n``` Done.",
        f"My move is {json.dumps(GOOD)}, I think.",
        f"```python\n1 + 1\n```\nso {json.dumps(GOOD)}",
    ],
)
def test_json_is_found_in_what_models_write(text: str) -> None:
    assert extract_json(text) == GOOD
    assert SchemaChecker().violation(SCHEMA, text) == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I'd rather not.",
        '{"action": "wait", "price": 3',
        '{"action": "wait", "price": NaN}',
        '{"action": "wait", "price": -Infinity}',
        '{"action": "wait", "price": 1e999}',
        '{"price": ' + "9" * 5000 + "}",
        "[" * 100_000,
        "```json",
        "{} {}",
    ],
)
def test_what_is_not_json_is_no_answer(text: str) -> None:
    with pytest.raises(ValueError, match="holds no complete JSON value"):
        extract_json(text)
    assert SchemaChecker().violation(SCHEMA, text) == "the answer holds no complete JSON value"


@given(st.text())
def test_no_text_raises_anything_else(text: str) -> None:
    checker = SchemaChecker()
    assert checker.violation(None, text) == ""
    assert isinstance(checker.violation(SCHEMA, text), str)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        (r"hi \ud83d", False),
        (r"\uDE00\ud83d", False),
        (r"hi \ud83d\ude00", True),
        (r"\u00e9", True),
    ],
)
def test_half_a_surrogate_pair_is_no_answer(text: str, holds: bool) -> None:
    schema = OutputSchema("text", {"type": "object"})
    found = SchemaChecker().violation(schema, f'{{"content": "{text}"}}')
    assert found == ("" if holds else "the answer holds half a surrogate pair")


@pytest.mark.parametrize("filler", [" ", "`", "```", "{", "```json ", "\n"])
def test_long_nonsense_takes_no_long_time(filler: str) -> None:
    began = time.process_time()
    for start in ("", "```", "{"):
        with pytest.raises(ValueError, match="no complete"):
            extract_json(start + filler * 30_000)
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        ({"action": "dance", "price": 3}, "properties/action/enum"),
        ({"action": "wait", "price": "3"}, "properties/price/type"),
        ({"action": "wait"}, "required"),
        ({"action": "wait", "price": 3, "secret": 1}, "additionalProperties"),
        ([], "type"),
    ],
)
def test_a_violation_names_the_rule(answer: Any, rule: str) -> None:
    violation = SchemaChecker().violation(SCHEMA, json.dumps(answer))
    assert violation == f"the answer breaks the schema's rule {rule}"


def test_a_violation_holds_nothing_of_the_text() -> None:
    schema = OutputSchema("free", {"additionalProperties": {"type": "integer"}})
    text = '{"SECRET key": {"SECRET": "SECRET"}}'
    violation = SchemaChecker().violation(schema, text)
    assert violation
    assert "SECRET" not in violation


@pytest.mark.parametrize(
    "schema",
    [{"type": "nonsense"}, {"required": 3}, {"minimum": float("nan")}, {"enum": [{1, 2}]}],
)
def test_what_is_no_schema_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="output schema 'bad' is not a JSON schema: "):
        SchemaChecker().prepare(OutputSchema("bad", schema))


def test_numbers_are_read_as_they_are() -> None:
    assert extract_json("[1, 2.5, -1e3]") == [1, 2.5, -1000.0]


def test_equal_schemas_are_compiled_once() -> None:
    checker = SchemaChecker()
    first = checker.prepare(OutputSchema("a", {"type": "object"}))
    assert checker.prepare(OutputSchema("b", {"type": "object"})) is first


def naming(*names: str) -> OutputSchema:
    return OutputSchema("named", {"type": "object", "properties": {"who": {"enum": list(names)}}})


def test_schemas_that_differ_in_their_enums_check_each_its_own() -> None:
    checker = SchemaChecker()
    for name in ("a", "b"):
        assert checker.violation(naming(name), f'{{"who": "{name}"}}') == ""
        assert checker.violation(naming(name), '{"who": "c"}').endswith("properties/who/enum")


@pytest.mark.parametrize(
    "bad",
    [
        {"enum": "a"},
        {"enum": {"a": 1}},
        {"type": "nonsense", "enum": ["a"]},
        {"pattern": 1},
        {"pattern": "("},
    ],
)
def test_a_shape_that_was_proven_vouches_for_no_other(bad: dict[str, Any]) -> None:
    checker = SchemaChecker()
    for good in ({"enum": ["a"]}, {"pattern": "a"}):
        checker.prepare(OutputSchema("good", {"type": "object", "properties": {"who": good}}))
    with pytest.raises(ConfigError, match="is not a JSON schema"):
        checker.prepare(OutputSchema("bad", {"type": "object", "properties": {"who": bad}}))


def test_what_looks_like_a_pattern_in_a_value_is_none() -> None:
    value = {"pattern": "(", "enum": "a"}
    checker = SchemaChecker()
    assert checker.violation(OutputSchema("odd", {"const": value}), json.dumps(value)) == ""
    assert checker.violation(OutputSchema("odd", {"const": {}}), json.dumps(value))


def test_an_answer_is_held_to_what_is_accepted() -> None:
    sent = {"enum": ["a"]}
    lax = OutputSchema("lax", sent, {"type": "string", "pattern": "a"})
    checker = SchemaChecker()
    assert checker.violation(OutputSchema("strict", sent), '"#a"') != ""
    assert checker.violation(lax, '"#a"') == ""
    assert checker.violation(lax, '"b"') == "the answer breaks the schema's rule pattern"
    assert lax.fingerprint == OutputSchema("strict", sent).fingerprint
    with pytest.raises(ConfigError, match="is not a JSON schema"):
        checker.prepare(OutputSchema("bad", sent, {"type": "nonsense"}))


def test_thousands_of_schemas_keep_few_validators_and_one_shape() -> None:
    checker = SchemaChecker()
    for number in range(3000):
        assert checker.violation(naming(f"n{number}"), f'{{"who": "n{number}"}}') == ""
    assert len(checker._validators) == MOST_KEPT
    assert len(checker._shapes) == 1


def test_the_validators_last_used_are_kept() -> None:
    checker = SchemaChecker()
    first = checker.prepare(naming("first"))
    for number in range(MOST_KEPT - 1):
        checker.prepare(naming(f"n{number}"))
    assert checker.prepare(naming("first")) is first
    checker.prepare(naming("one more"))
    assert checker.prepare(naming("first")) is first
    assert len(checker._validators) == MOST_KEPT
