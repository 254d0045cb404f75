"""YAML from a file as plain data, and an error instead of a bomb or of a value that is lost.

A few lines of YAML can stand for billions of values, by aliases of aliases, or for a value
that holds itself; whoever walks through or prints such data never comes back. Of a key that
stands twice in one mapping, YAML loaders keep the last value and say nothing.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import yaml

MOST_VALUES = 1_000_000
"""Most values of a file once all aliases are written out."""


_MERGE = "tag:yaml.org,2002:merge"


def load_yaml(text: str) -> Any:
    """Return what `text` says, as plain data.

    Raises:
        yaml.YAMLError: It is no YAML, or names Python objects, holds itself, is nested too deep,
            stands for more than `MOST_VALUES` values, or has a key twice in one mapping.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {MOST_VALUES:,} values")
        return loader.construct_document(node)
    except RecursionError as exc:
        raise yaml.YAMLError("it is nested too deep") from exc
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node is with all aliases written out."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.YAMLError("an alias in it holds itself")
        return known[id(node)]
    known[id(node)] = 0
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
    parts = list(chain(*node.value)) if isinstance(node, yaml.MappingNode) else node.value
    known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]


def _check_keys(mapping: yaml.MappingNode) -> None:
    """Raise `yaml.YAMLError` where a key stands twice."""
    first: dict[tuple[str, str], int] = {}
    for key, _ in mapping.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
            continue
        line = key.start_mark.line + 1
        if (key.tag, key.value) in first:
            raise yaml.YAMLError(
                f"the key {key.value!r} in line {line} was given in line "
                f"{first[key.tag, key.value]} before; remove one of them"
            )
        first[key.tag, key.value] = line
