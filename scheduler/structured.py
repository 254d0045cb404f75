"""Output schemas: the local check of what came back.

A server may claim to have held the schema and not have done so, so every answer
is checked here. The schema is sent beside the prompt and never written into it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from scheduler.errors import ConfigError
from scheduler.types import OutputSchema

_FENCED = re.compile(r"```(?:json)?(.*?)```", re.DOTALL)


class SchemaChecker:
    """Checks answers; compiled validators are kept by the schema's fingerprint."""

    def __init__(self) -> None:
        self._validators: dict[str, Draft202012Validator] = {}

    def prepare(self, schema: OutputSchema) -> Draft202012Validator:
        """Compile `schema`, once.

        Raises:
            ConfigError: It is not a JSON schema.
        """
        try:
            known = self._validators.get(schema.fingerprint)
            if known is not None:
                return known
            Draft202012Validator.check_schema(schema.schema)
        except (SchemaError, TypeError, ValueError) as exc:
            reason = exc.message if isinstance(exc, SchemaError) else exc
            raise ConfigError(
                f"output schema {schema.name!r} is not a JSON schema: {reason}"
            ) from exc
        validator = Draft202012Validator(schema.schema)
        self._validators[schema.fingerprint] = validator
        return validator

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
            return ""
        rule = "/".join(str(part) for part in error.absolute_schema_path)
        return f"the answer breaks the schema's rule {rule}"


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
