"""What a server refuses of a request, and the same request without that.

OpenAI's protocol has dialects: one server takes no `seed`, one no JSON schema, one wants
`max_completion_tokens` for `max_tokens`. Which dialect it is shows only in its refusals.
Pure: `next_change` reads a refusal, `changed` applies what has been learnt. What the
prompt says and how likely tokens are drawn (`temperature`) never changes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

JsonObject = Mapping[str, Any]

RENAMED = "max_tokens"
_NEW_NAME = "max_completion_tokens"

CHANGEABLE = (
    RENAMED,
    "response_format",
    "seed",
    "chat_template_kwargs",
    "logprobs",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
)
"""What may be left out, or said in another way, when a server refuses it."""


def changed(body: JsonObject, changes: Iterable[str]) -> dict[str, Any]:
    """Return `body` with each of `changes` applied, in their order.

    A refused schema first becomes `json_object`, if only objects hold it, and is then
    left out; `max_tokens` gets its newer name; everything else is left out.
    """
    result = dict(body)
    for name in changes:
        value = result.pop(name, None)
        if name == RENAMED and value is not None:
            result[_NEW_NAME] = value
        elif name == "response_format" and _allows_objects_only(value):
            result[name] = {"type": "json_object"}
    return result


def next_change(body: JsonObject, refusal: bytes, *, keep: Collection[str] = ()) -> str | None:
    """Return what of `body` to change after a refusal; None if it names nothing of it.

    Args:
        body: The request that was refused.
        refusal: The body of the answer, with status 400 or 422.
        keep: What must not change.
    """
    answer = _object(_loads(refusal))
    error = answer.get("error")
    details = error if isinstance(error, dict) else answer
    says = _text(error) or _text(details.get("message"))
    param = re.split(r"[.\[]", _text(details.get("param")))[0]
    named = {param} if param in body else {*_words(says), *_locations(details.get("detail"))}
    for name in CHANGEABLE:
        if name not in named or name not in body or name in keep:
            continue
        # A server names max_tokens as well when it is only too large.
        if name != RENAMED or _NEW_NAME in says or details.get("code") == "unsupported_parameter":
            return name
    return None


def refused_generation(refusal: bytes) -> bool:
    """Whether it is no refusal at all: the model's own JSON did not hold (Groq)."""
    error = _object(_object(_loads(refusal)).get("error"))
    return error.get("code") == "json_validate_failed"


def _allows_objects_only(response_format: Any) -> bool:
    wanted = _object(_object(response_format).get("json_schema"))
    return _is_of_objects(_object(wanted.get("schema")))


def _is_of_objects(schema: JsonObject) -> bool:
    branches = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(branches, list):
        return all(_is_of_objects(_object(branch)) for branch in branches)
    return schema.get("type") == "object"


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z_]+", text))


def _locations(detail: Any) -> set[str]:
    """Return the places that FastAPI's list of errors names."""
    errors = detail if isinstance(detail, list) else []
    places = [_object(error).get("loc") for error in errors]
    parts = [part for place in places if isinstance(place, list) for part in place[:2]]
    return {part for part in parts if isinstance(part, str)}


def _loads(content: bytes) -> Any:
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError):
        return None


def _object(value: Any) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
