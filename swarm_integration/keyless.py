"""A scenario's text without the API keys and logins that it may hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from scheduler.yaml_text import load_yaml

_KEY_ENTRY = re.compile(r"""(\b(?:llm_)?api_key["']?\s*:\s*)("[^"\n]*"|'[^'\n]*'|[^\s,}#]+)""")
_KEY_NAMES = frozenset({"api_key", "llm_api_key"})
_LOGIN = re.compile(r"://[^/@\s\"']+@")


def without_secrets(scenario: str) -> str:
    """Return a scenario's text without API keys and without logins in addresses.

    A key that YAML spreads over lines can't be cut out of the text; the scenario is
    then written anew from what it says.
    """
    text = _LOGIN.sub("://", _KEY_ENTRY.sub(r"\g<1>null", scenario))
    data = load_yaml(scenario)
    try:
        left = list(_keys_of(load_yaml(text)))
    except yaml.YAMLError:
        left = ["cut in the middle"]
    if left or any(key in text for key in _keys_of(data)):
        text = _LOGIN.sub("://", yaml.safe_dump(_without_keys(data), sort_keys=False))
    return text


def _keys_of(data: Any) -> Iterator[str]:
    if isinstance(data, dict):
        for name, value in data.items():
            if name in _KEY_NAMES and value:
                yield str(value)
            else:
                yield from _keys_of(value)
    elif isinstance(data, list):
        for value in data:
            yield from _keys_of(value)


def _without_keys(data: Any) -> Any:
    if isinstance(data, dict):
        kept = {name: value for name, value in data.items() if name not in _KEY_NAMES}
        return {name: _without_keys(value) for name, value in kept.items()}
    if isinstance(data, list):
        return [_without_keys(value) for value in data]
    return data
