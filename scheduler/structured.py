"""Output schemas: the local check of what came back.

A server may claim to have held the schema and not have done so, so every answer
is checked here. The schema is sent beside the prompt and never written into it.
Schemas may come by the thousand, one for each prompt, so few are kept, and those that
differ only in their enums' values and patterns are proven to be schemas once.
"""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from scheduler.canonical import canonical_json
from scheduler.errors import ConfigError
from scheduler.types import OutputSchema

T = TypeVar("T")
_ANY_VALUE = frozenset({"const", "default", "examples"})
"""Keywords whose value is not a schema."""

_FENCED = re.compile(r"```(?:json)?(.*?)```", re.DOTALL)


MOST_KEPT = 256
"""How many validators are kept, and how many shapes of schemas."""


class SchemaChecker:
    """Checks answers.

    Kept are the validators last used, by the schema's fingerprint, and the shapes last
    seen: of a schema without its enums' values and patterns. The proof takes longest.
    """

    def __init__(self) -> None:
        self._validators: OrderedDict[str, Draft202012Validator] = OrderedDict()
        self._shapes: OrderedDict[str, None] = OrderedDict()

    def prepare(self, schema: OutputSchema) -> Draft202012Validator:
        """Compile `schema`, once.

        Raises:
            ConfigError: It is not a JSON schema.
        """
        try:
            key = schema.checked_fingerprint
            if key in self._validators:
                self._validators.move_to_end(key)
                return self._validators[key]
            self._prove(schema.schema)
            self._prove(schema.checked)
        except (SchemaError, TypeError, ValueError, re.error) as exc:
            reason = exc.message if isinstance(exc, SchemaError) else exc
            raise ConfigError(
                f"output schema {schema.name!r} is not a JSON schema: {reason}"
            ) from exc
        validator = Draft202012Validator(schema.checked)
        _keep(self._validators, key, validator)
        return validator

    def _prove(self, schema: Mapping[str, Any]) -> None:
        """Check that `schema` is a JSON schema, unless one of its shape was one.

        Raises:
            SchemaError: It is not.
        """
        shape = canonical_json(_shape(schema))
        if shape in self._shapes:
            self._shapes.move_to_end(shape)
            return
        Draft202012Validator.check_schema(schema)
        _keep(self._shapes, shape, None)

    def violation(self, schema: OutputSchema | None, text: str) -> str:
        """Return what `schema` objects to in `text`, or an empty string.

        The reason names the rule that is broken by its path in the schema. Nothing
        of the text is in it, not even a key, because it goes into logs.
        """
        if schema is None:
            return ""
        try:
            value = extract_json(text)
        except ValueError as exc:
            return str(exc)
        error = next(iter(self.prepare(schema).iter_errors(value)), None)
        if error is None:
            return "" if _is_encodable(text, value) else "the answer holds half a surrogate pair"
        rule = "/".join(str(part) for part in error.absolute_schema_path)
        return f"the answer breaks the schema's rule {rule}"


def _is_encodable(text: str, value: Any) -> bool:
    """Whether UTF-8 can hold what `text` stands for; an escape may be half a surrogate pair."""
    if "\\u" not in text:
        return True
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _shape(schema: Any) -> Any:
    """Return `schema` without its enums' values and its patterns.

    Raises:
        re.error: A pattern is none.
    """
    if isinstance(schema, Mapping):
        return {key: _shape_of(key, value) for key, value in schema.items()}
    return [_shape(each) for each in schema] if isinstance(schema, list) else schema


def _shape_of(key: str, value: Any) -> Any:
    if key in _ANY_VALUE:
        return value
    if key == "enum" and isinstance(value, list):
        return []
    if key == "pattern" and isinstance(value, str):
        re.compile(value)
        return ""
    return _shape(value)


def _keep(kept: OrderedDict[str, T], key: str, value: T) -> None:
    kept[key] = value
    if len(kept) > MOST_KEPT:
        kept.popitem(last=False)


def extract_json(text: str) -> Any:
    """Return the JSON value in `text`: all of it, a fenced block, or `{` to `}`.

    Numbers that are not finite (NaN, Infinity, 1e999) are not JSON here.

    Raises:
        ValueError: There is none.
    """
    for candidate in _candidates(text):
        try:
            return json.loads(candidate, parse_float=_finite, parse_constant=_finite)
        except (ValueError, RecursionError):
            continue
    raise ValueError("the answer holds no complete JSON value")


def _candidates(text: str) -> Iterator[str]:
    yield text
    if fenced := _FENCED.search(text):
        yield fenced.group(1)
    if "{" in text:
        yield text[text.index("{") : text.rfind("}") + 1]


def _finite(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise ValueError(f"{literal} is not a finite number")
    return value
