"""A JSON schema as a GBNF grammar, the form in which llama.cpp takes one in process.

llama-cpp-python's own converter lets raw control characters into strings, breaks on quotes in
a `const` and nests a bounded string as deep as it is long. This one writes what llama-server's
would for the keywords that it knows; a schema with others is left to the library's. Bounds on
numbers are not in the grammar: the answer is checked against the schema afterwards anyway.
Grammar: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

_MOST_REPETITIONS = 1999
"""llama.cpp refuses a grammar that repeats a rule 2,000 times or more."""

_KNOWN = {
    "type", "const", "enum", "anyOf", "oneOf", "properties", "required", "additionalProperties",
    "items", "minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "title", "description", "default", "examples",
    "$schema", "$comment",
}  # fmt: skip
_SHARED_RULES = {
    "space": '" "?',
    "char": r'[^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt/] | "u" code)',
    # No halves of surrogate pairs, of which a length could cut one off; what they stand for can
    # be written as it is.
    "code": "[0-9a-cA-CeEfF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2}",
    "integral": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "integer": "integral",
    "number": 'integral ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "string": r'"\"" char* "\""',
    "object": '"{" space (member ("," space member)*)? "}"',
    "member": 'string ":" space value space',
    "array": '"[" space (value space ("," space value space)*)? "]"',
}


class UnknownKeywordError(ValueError):
    """The schema uses a keyword that this converter does not know."""


def grammar_of(schema: Schema) -> str:
    """Return the grammar of `schema`; its root rule is `root`.

    Properties keep the schema's order, required ones first.

    Raises:
        UnknownKeywordError: It uses a keyword that is not known here.
    """
    writer = _Writer()
    root = writer.rule(schema)
    rules = {"root": root, **writer.rules, **_SHARED_RULES}
    return "\n".join(f"{name} ::= {rule}" for name, rule in rules.items())


class _Writer:
    """Collects the rules of one grammar."""

    def __init__(self) -> None:
        self.rules: dict[str, str] = {}

    def rule(self, schema: Schema) -> str:
        """Return what follows `::=` for `schema`."""
        if unknown := sorted(set(schema) - _KNOWN):
            raise UnknownKeywordError(f"unknown keyword {unknown[0]!r}")
        if "const" in schema:
            return _literal(schema["const"])
        if "enum" in schema:
            return " | ".join(_literal(value) for value in schema["enum"])
        choices = schema.get("anyOf", schema.get("oneOf"))
        if choices is not None:
            return self._choice(schema, choices)
        kind = schema.get("type")
        if isinstance(kind, list):
            return " | ".join(self._named({**schema, "type": each}) for each in kind)
        return self._typed(schema, kind)

    def _choice(self, schema: Schema, choices: Sequence[Schema]) -> str:
        if {"properties", "required", "items"} & set(schema):
            raise UnknownKeywordError("a choice beside properties or items")
        return " | ".join(self._named(choice) for choice in choices)

    def _typed(self, schema: Schema, kind: object) -> str:
        writers: dict[object, Callable[[Schema], str]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
        }
        if kind in writers:
            return writers[kind](schema)
        if kind in ("integer", "number", "boolean", "null"):
            return str(kind)
        if kind is None and not set(schema) & {"properties", "items", "minLength", "maxLength"}:
            return "value"
        raise UnknownKeywordError(f"type {kind!r}")

    def _named(self, schema: Schema) -> str:
        rule = self.rule(schema)
        if rule in _SHARED_RULES:
            return rule
        name = f"r{len(self.rules)}"
        self.rules[name] = rule
        return name

    def _string(self, schema: Schema) -> str:
        shortest, longest = schema.get("minLength", 0), schema.get("maxLength")
        if not shortest and longest is None:
            return "string"
        return rf'"\"" char{_repeat(shortest, longest)} "\""'

    def _array(self, schema: Schema) -> str:
        if "items" not in schema:
            raise UnknownKeywordError("an array without items")
        item = self._named(schema["items"])
        fewest, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return '"[" space "]"'
        more = _repeat(max(0, fewest - 1), None if most is None else most - 1)
        items = f'{item} space ("," space {item} space){more}'
        return f'"[" space {items if fewest else f"({items})?"} "]"'

    def _object(self, schema: Schema) -> str:
        properties: Schema = schema.get("properties", {})
        extra = schema.get("additionalProperties", not properties)
        if not properties and extra is True:
            return "object"
        if extra is not False and "additionalProperties" in schema:
            raise UnknownKeywordError("additionalProperties beside properties")
        wanted = set(schema.get("required", ()))
        if wanted - set(properties):
            raise UnknownKeywordError("a required property without a schema")
        pairs = {name: self._pair(name, of) for name, of in properties.items()}
        required = [pair for name, pair in pairs.items() if name in wanted]
        optional = [pair for name, pair in pairs.items() if name not in wanted]
        inner = ' "," space '.join(required)
        if optional:
            rest = self._some_of(optional)
            inner = f'{inner} ("," space {rest})?' if required else f"({rest})?"
        return f'"{{" space {inner} "}}"'

    def _pair(self, name: str, schema: Schema) -> str:
        return f'{_literal(name)} space ":" space {self._named(schema)} space'

    def _some_of(self, pairs: Sequence[str]) -> str:
        """Return a rule for one or more of `pairs`, in their order."""
        following = ""
        alternatives = []
        for pair in reversed(pairs):
            alternatives.append(f"{pair}{following}")
            name = f"r{len(self.rules)}"
            self.rules[name] = f'("," space {pair})?{following}'
            following = f" {name}"
        return f"({' | '.join(reversed(alternatives))})"


def _repeat(fewest: int, most: int | None) -> str:
    # What is too long to count is left to the check of the finished answer.
    if most is not None and most <= _MOST_REPETITIONS:
        return f"{{{fewest},{most}}}"
    return f"{{{min(fewest, _MOST_REPETITIONS)},}}"


def _literal(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
