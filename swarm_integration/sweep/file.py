"""The YAML form of a sweep: `name`, `base_scenario`, and `sweep` with its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from scheduler.config import Section, validate
from scheduler.errors import ConfigError
from scheduler.yaml_text import load_yaml
from swarm_integration.sweep.design import SweepParameter, parse_seeds


class ParameterSection(Section):
    """One entry of `sweep.parameters`."""

    name: str = Field(description="Where the parameter stands in the scenario.")
    values: list[Any] = Field(description="The values that it takes.")


class SweepSection(Section):
    """What varies."""

    parameters: list[ParameterSection] = Field(
        default_factory=list, description="Every combination of their values is run."
    )
    replications: Annotated[int, Field(ge=1, strict=True)] = Field(
        1, description="Runs for each combination."
    )
    seeds: Any = Field("auto", description="auto, a list, or ranges such as 42-57.")


class SweepFile(Section):
    """A sweep's file."""

    name: str = Field("", description="Names the results.")
    description: str = Field("", description="For people.")
    base_scenario: str = Field(description="The scenario, from where this file lies.")
    sweep: SweepSection = SweepSection()


def read_yaml(path: Path) -> dict[str, Any]:
    """Return what a YAML file says.

    Raises:
        ConfigError: It can't be read, or is no mapping.
    """
    try:
        data = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} can't be read: {exc}") from exc
    except yaml.YAMLError as exc:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(exc).split())}") from exc
    if not isinstance(data, dict):
        raise ConfigError(f"{path} is neither a scenario nor a sweep: it holds no keys")
    return data


def is_sweep(data: Mapping[str, Any]) -> bool:
    """Whether a file describes a sweep and not a scenario."""
    return "base_scenario" in data or "sweep" in data


def read_sweep(path: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a sweep's file says, as arguments of `SweepConfig`.

    Raises:
        ConfigError: A key is unknown or a value is not allowed.
    """
    said = validate(SweepFile, data, source=str(path))
    seeds = said.sweep.seeds
    if isinstance(seeds, str) and seeds != "auto":
        seeds = list(parse_seeds(seeds))
    elif not isinstance(seeds, str | list):
        raise ConfigError(f"{path}: sweep.seeds must be auto, a list or 42-57, got {seeds!r}")
    base = Path(said.base_scenario)
    return {
        "base_scenario": base if base.is_absolute() else path.parent / base,
        "parameters": tuple(SweepParameter(p.name, tuple(p.values)) for p in said.sweep.parameters),
        "replications": said.sweep.replications,
        "seeds": seeds,
        "name": said.name or path.stem,
    }
