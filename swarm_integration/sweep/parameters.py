"""Where a parameter stands in a scenario, and a scenario with other values there.

A path goes through the scenario's YAML: keys, and places in lists as `.0` or `[0]`.
`agents.TYPE` stands for all entries of that type, as in upstream's own sweeps, and
`n_epochs` and `steps_per_epoch` may be written alone. Pure; whether upstream reads what
is there, `schema.py` finds out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from scheduler.errors import ConfigError
from scheduler.yaml_text import load_yaml

Key = str | int
_PART = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
_SHORT = {"n_epochs": "simulation.n_epochs", "steps_per_epoch": "simulation.steps_per_epoch"}
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


def path_of(name: str) -> tuple[Key, ...]:
    """Return the keys of a path.

    Raises:
        ConfigError: It is none.
    """
    text, place, keys = _SHORT.get(name, name), 0, list[Key]()
    while match := _PART.match(text, place):
        word, index = match.groups()
        keys.append(int(index) if word is None else int(word) if word.isdecimal() else word)
        place = match.end()
    if place < len(text) or not keys or text.startswith("."):
        raise ConfigError(
            f"parameter {name!r} is no path. Write it as governance.transaction_tax or "
            "agents[0].llm.temperature"
        )
    if keys == ["simulation", "seed"]:
        raise ConfigError("parameter simulation.seed: the seeds are given with --seeds 42-57")
    return tuple(keys)


def paths_in(scenario: Mapping[str, Any], name: str) -> list[tuple[Key, ...]]:
    """Return the places that `name` stands for in a scenario: one, or one for each agent entry.

    Raises:
        ConfigError: The scenario has no such entry.
    """
    keys = path_of(name)
    agents = scenario.get("agents")
    if keys[0] != "agents" or not isinstance(agents, list) or len(keys) < 2:
        return [keys]
    second = keys[1]
    if isinstance(second, int):
        return [keys]
    entries = [
        place
        for place, entry in enumerate(agents)
        if isinstance(entry, dict) and entry.get("type", "honest") == second
    ]
    if not entries:
        types = dict.fromkeys(str(entry.get("type", "honest")) for entry in agents)
        raise ConfigError(
            f"parameter {name}: the scenario has no agents of type {second!r}; it has: "
            f"{', '.join(types)}. Name a type, or a place: agents.0 to agents.{len(agents) - 1}"
        )
    return [("agents", place, *keys[2:]) for place in entries]


def with_values(scenario: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a scenario with other values; the one given stays as it was.

    Args:
        scenario: What a scenario's YAML says.
        values: By path.

    Raises:
        ConfigError: A path leads through something that is no mapping and no list.
    """
    changed: dict[str, Any] = own_copy(scenario)
    for name, value in values.items():
        for path in paths_in(changed, name):
            _put(changed, path, own_copy(value), name)
    return changed


def own_copy(data: Any) -> Any:
    """Return data in which no two places are the same object, as YAML's aliases would be."""
    if isinstance(data, Mapping):
        return {key: own_copy(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [own_copy(value) for value in data]
    return data


def _put(data: Any, path: tuple[Key, ...], value: Any, name: str) -> None:
    for place, key in enumerate(path[:-1]):
        inside = _step(data, key, name)
        if inside is None and isinstance(data, dict):
            if isinstance(path[place + 1], int):
                raise ConfigError(f"parameter {name}: the scenario has no list at {key!r}")
            inside = data[key] = {}
        data = inside
    _step(data, path[-1], name)
    data[path[-1]] = value


def _step(data: Any, key: Key, name: str) -> Any:
    if isinstance(data, dict):
        return data.get(key)
    if isinstance(data, list) and isinstance(key, int):
        if key < len(data):
            return data[key]
        raise ConfigError(
            f"parameter {name}: the scenario has no entry {key} there, but {len(data)}, "
            "which count from 0"
        )
    raise ConfigError(f"parameter {name}: there is nothing at {key!r} that could hold a value")


def parse_value(text: str) -> Any:
    """Return a value as the scenario's YAML would read it, and `1e-3` as a number."""
    plain = text.strip()
    if not plain:
        raise ConfigError("a value is empty. Write '' for an empty text, or null")
    if _NUMBER.fullmatch(plain):
        return int(plain) if plain.lstrip("+-").isdecimal() else float(plain)
    try:
        return load_yaml(plain)
    except yaml.YAMLError as exc:
        raise ConfigError(f"the value {plain!r} is not YAML. Put it into quotes") from exc
