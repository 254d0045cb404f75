"""Grammars from schemas, judged by the texts that they let through."""

from __future__ import annotations

import json
import re
from itertools import combinations, permutations
from typing import Any

import pytest

from scheduler.backends.gbnf import UnknownKeywordError, grammar_of

_TOKEN = re.compile(
    r'(?P<literal>"(?:\\.|[^"\\])*")|(?P<chars>\[(?:\\.|[^\]\\])*\])|(?P<repeat>\{\d+,?\d*\})'
    r"|(?P<name>[a-z]\w*)|(?P<sign>[()|?*+])|(?P<space>\s+)"
)
_ESCAPED = re.compile(r"\\(.)")
_DEPTH = 3
"""How deep values may lie in each other here; deeper ones are not let through."""


def pattern_of(grammar: str) -> re.Pattern[str]:
    """The grammar as a regular expression."""
    rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines())

    def expand(name: str, within: tuple[str, ...]) -> str:
        if within.count(name) == _DEPTH:
            return "(?!)"
        parts, at, rule = [], 0, rules[name]
        while at < len(rule):
            token = _TOKEN.match(rule, at)
            assert token is not None, rule[at:]
            text, at = token.group(), token.end()
            if token.lastgroup == "literal":
                text = f"(?:{re.escape(_ESCAPED.sub(lambda found: found[1], text[1:-1]))})"
            elif token.lastgroup == "name":
                text = f"(?:{expand(text, (*within, name))})"
            elif token.lastgroup == "space":
                text = ""
            parts.append("(?:" if text == "(" else text)
        return "".join(parts)

    return re.compile(expand("root", ()))


def lets_through(schema: dict[str, Any], text: str) -> bool:
    return pattern_of(grammar_of(schema)).fullmatch(text) is not None


def answer(*names: str) -> str:
    return json.dumps(dict.fromkeys(names, 7))


@pytest.mark.parametrize("required", [(), ("b",), ("c", "a"), ("a", "b", "c")])
def test_optional_properties_may_each_be_left_out_and_required_ones_may_not(
    required: tuple[str, ...],
) -> None:
    names = ("a", "b", "c")
    properties = {name: {"type": "integer"} for name in names}
    schema = {"type": "object", "properties": properties, "required": list(required)}
    pattern = pattern_of(grammar_of(schema))
    # Required ones come first; both keep the schema's order.
    order = [name for name in names if name in required]
    order += [name for name in names if name not in required]
    allowed = {
        answer(*chosen)
        for count in range(4)
        for chosen in combinations(order, count)
        if set(required) <= set(chosen)
    }
    for count in range(4):
        for chosen in permutations(names, count):
            text = answer(*chosen)
            assert bool(pattern.fullmatch(text)) == (text in allowed), text
    assert not pattern.fullmatch('{"a": 7, "b": 7, "c": 7, "d": 7}')


def test_an_object_without_properties_may_hold_anything_unless_that_is_forbidden() -> None:
    anything = '{"x": [1, {"y": null}]}'
    assert lets_through({"type": "object"}, anything)
    assert lets_through({"type": "object", "additionalProperties": True}, anything)
    closed = {"type": "object", "additionalProperties": False}
    assert lets_through(closed, "{}")
    assert not lets_through(closed, anything)


@pytest.mark.parametrize(
    ("bounds", "lengths"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"minItems": 1}, {1, 2, 3, 4}),
        ({"minItems": 3}, {3, 4}),
        ({"maxItems": 0}, {0}),
        ({"maxItems": 1}, {0, 1}),
        ({"minItems": 2, "maxItems": 3}, {2, 3}),
    ],
)
def test_an_array_has_as_many_items_as_its_bounds_say(
    bounds: dict[str, int], lengths: set[int]
) -> None:
    schema = {"type": "array", "items": {"enum": ["x", "y"]}, **bounds}
    pattern = pattern_of(grammar_of(schema))
    found = {n for n in range(5) if pattern.fullmatch(json.dumps(["x", "y", "x", "y"][:n]))}
    assert found == lengths
    assert not pattern.fullmatch('["z"]')


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf"])
def test_a_choice_lets_each_alternative_through_and_no_other(keyword: str) -> None:
    schema = {keyword: [{"type": "null"}, {"const": {"a": 'say "hi"'}}, {"type": "boolean"}]}
    for text in ("null", "true", "false", r'{"a": "say \"hi\""}'):
        assert lets_through(schema, text)
    for text in ("nul", "1", '{"a": "say hi"}', "nulltrue"):
        assert not lets_through(schema, text)


def test_several_types_are_a_choice_that_keeps_the_bounds() -> None:
    schema = {"type": ["string", "null"], "minLength": 2, "maxLength": 3}
    assert [lets_through(schema, text) for text in ("null", '"ab"', '"abc"')] == [True] * 3
    assert [lets_through(schema, text) for text in ('"a"', '"abcd"', "1")] == [False] * 3


def test_a_string_without_bounds_may_be_long_and_holds_no_raw_control_character() -> None:
    schema = {"type": "string"}
    for text in ('""', json.dumps("x" * 3000), r'"\n \u0007"', '"ä"'):
        assert lets_through(schema, text)
    for text in ('"a\nb"', '"\x7f"', '"a', "a"):
        assert not lets_through(schema, text)


def test_without_a_type_any_value_does() -> None:
    schema = {"description": "whatever you like"}
    for text in ("{}", '[1, "a", {"b": true}]', '"a"', "-1.5e+3", "null", r'"\u00e4"'):
        assert lets_through(schema, text)
    for text in ("", "nil", "[1,]", "01", '"a\nb"', r'"\x"'):
        assert not lets_through(schema, text)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"anyOf": [{"type": "null"}], "required": ["a"]}, "a choice beside"),
        ({"type": "array"}, "an array without items"),
        (
            {"type": "object", "properties": {"a": {}}, "additionalProperties": {}},
            "additionalProperties beside properties",
        ),
        ({"type": "object", "properties": {"a": {}}, "required": ["b"]}, "without a schema"),
        ({"type": "date"}, "type 'date'"),
        ({"minLength": 3}, "type None"),
        ({"properties": {"a": {"pattern": "x"}}, "type": "object"}, "unknown keyword 'pattern'"),
    ],
)
def test_what_could_be_meant_otherwise_is_left_to_the_library(
    schema: dict[str, Any], says: str
) -> None:
    with pytest.raises(UnknownKeywordError, match=says):
        grammar_of(schema)


@pytest.mark.parametrize(
    ("escape", "allowed"),
    [
        *((each, True) for each in ("0041", "cafe", "D7ff", "E000", "ffff")),
        *((each, False) for each in ("d800", "DBFF", "dc00", "dfff")),
    ],
)
def test_halves_of_surrogate_pairs_are_not_written(escape: str, allowed: bool) -> None:
    assert lets_through({"type": "string"}, rf'"\u{escape}"') is allowed
