"""Checks that a sweep's parameters exist, take such values, and change something.

Upstream ignores a key that it does not know, so a misspelt parameter would give a study
in which nothing varies. All is checked before anything starts.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scheduler.errors import ConfigError
from swarm_integration.compat_reading import ReadMapping, read_in_place_of_files, watched
from swarm_integration.errors import ScenarioError
from swarm_integration.scenario import load_scenario, rehearse
from swarm_integration.sweep.design import Point, SweepParameter
from swarm_integration.sweep.parameters import Key, parse_value, paths_in, with_values
from swarm_integration.unread import OPEN

_MOST_NAMED = 8
_LONGEST_QUOTE = 60


def check_parameters(
    base: Path, scenario: Mapping[str, Any], parameters: Sequence[SweepParameter]
) -> None:
    """Check each parameter by itself.

    Args:
        base: The scenario's file.
        scenario: What it says.
        parameters: What is to vary.

    Raises:
        ConfigError: One is unknown, gets a value of another kind, or changes nothing.
    """
    _check_apart(scenario, parameters)
    for parameter in parameters:
        changed = with_values(scenario, {parameter.name: parameter.values[0]})
        said = watched(changed)
        problem: ScenarioError | None = None
        try:
            with read_in_place_of_files(said):
                rehearse(base, {})
        except ScenarioError as exc:
            problem = exc
        for path in paths_in(scenario, parameter.name):
            _check_known(said, path, parameter, _value_at(scenario, path))
        if problem is not None:
            raise ConfigError(f"{_value_named(parameter, parameter.values[0])}: {problem}")
        _check_effect(base, scenario, parameter)


def _check_apart(scenario: Mapping[str, Any], parameters: Sequence[SweepParameter]) -> None:
    """Check that no parameter stands where another one does, or within it."""
    places = [(one.name, path) for one in parameters for path in paths_in(scenario, one.name)]
    for (name, path), (other, longer) in itertools.permutations(places, 2):
        if name != other and longer[: len(path)] == path:
            raise ConfigError(
                f"parameters {name} and {other} stand for the same place of the scenario, so one "
                "would undo the other. Give only one of them"
            )


def check_points(base: Path, scenario: Mapping[str, Any], points: Sequence[Point]) -> None:
    """Check that no two points are the same simulation: all are given by parameters alone.

    Args:
        base: The scenario's file.
        scenario: What it says.
        points: All combinations of values.

    Raises:
        ConfigError: SWARM makes the same of two points, or refuses one.
    """
    seen: dict[str, Point] = {}
    for point in points:
        other = seen.setdefault(_loaded(base, scenario, point.values, str(point)), point)
        if other is not point:
            raise ConfigError(
                f"the points {other} and {point} are the same simulation: SWARM makes the same of "
                "both, perhaps since one parameter stands above another. Give only one of them"
            )


def _loaded(base: Path, scenario: Mapping[str, Any], values: Mapping[str, Any], what: str) -> str:
    """Return all that upstream makes of a scenario with other values."""
    try:
        with read_in_place_of_files(with_values(scenario, values)):
            loaded = load_scenario(base)
    except ScenarioError as exc:
        raise ConfigError(f"{what}: {exc}") from exc
    return repr((loaded.orchestrator_config, loaded.rate_limits, loaded.agent_specs))


def _check_known(said: Any, path: tuple[Key, ...], parameter: SweepParameter, before: Any) -> None:
    """Check that upstream asked for every key of a path."""
    data = said
    for place, key in enumerate(path):
        if isinstance(data, ReadMapping) and isinstance(key, str):
            if not data.whole and data.asked and key not in data.asked:
                raise _unknown(parameter.name, path[:place], key, data)
            if path[0] == "agents" and place == 2 and key in OPEN:
                return
            default = data.asked.get(key)
            data = dict.get(data, key)
            if place == len(path) - 1:
                _check_kind(parameter, default if before is None else before)
        elif isinstance(data, list) and isinstance(key, int):
            data = data[key]


def _unknown(name: str, above: tuple[Key, ...], key: str, data: ReadMapping) -> ConfigError:
    known = sorted(data.asked)
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    start = "".join(f"{part}." for part in above)
    if near:
        advice = f"Write {' or '.join(f'{start}{one}' for one in near)}"
    else:
        more = ", ..." if len(known) > _MOST_NAMED else ""
        advice = f"Use one of: {', '.join(known[:_MOST_NAMED])}{more}"
    return ConfigError(f"parameter {name}: SWARM knows no {start}{key}. {advice}")


def _kind(value: Any) -> str | None:
    """Return what a value is, None for one that may stand for anything."""
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case dict():
            return "a mapping"
    return None


def _check_kind(parameter: SweepParameter, usual: Any) -> None:
    expected = _kind(usual)
    for value in parameter.values:
        if expected is not None and _kind(value) not in (None, expected):
            hint = ". Write 1.0e-3, since YAML takes 1e-3 for a text" if _is_power(value) else ""
            raise ConfigError(
                f"parameter {parameter.name} must be {expected}, as {_brief(usual)} is; got "
                f"{_brief(value)}{hint}"
            )


def _is_power(value: Any) -> bool:
    """Whether a text is a number that YAML does not take for one."""
    return isinstance(value, str) and "e" in value and isinstance(parse_value(value), float)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}..."


def _check_effect(base: Path, scenario: Mapping[str, Any], parameter: SweepParameter) -> None:
    """Check that upstream makes something else of each scenario, unless there is only one."""
    seen = {
        _loaded(base, scenario, {parameter.name: value}, _value_named(parameter, value))
        for value in parameter.values
    }
    if len(seen) == 1 < len(parameter.values):
        raise ConfigError(
            f"parameter {parameter.name} changes nothing: SWARM makes the same of all its values. "
            "Perhaps another key of the scenario stands above it, such as its longer name"
        )


def _value_named(parameter: SweepParameter, value: Any) -> str:
    return f"parameter {parameter.name}, value {value!r}"


def _value_at(data: Any, path: tuple[Key, ...]) -> Any:
    for key in path:
        if isinstance(data, Mapping):
            data = data.get(key)
        elif isinstance(data, list) and isinstance(key, int) and key < len(data):
            data = data[key]
        else:
            return None
    return data
