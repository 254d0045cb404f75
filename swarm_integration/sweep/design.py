"""What a sweep runs: every combination of its parameters' values, with every seed.

Pure. `SweepConfig` and `SweepParameter` are named as in upstream's `swarm.analysis.sweep`
and its guide to parameter sweeps; nothing of that module is used.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

from scheduler.backends.chat_answer import encodable
from scheduler.canonical import canonical_json
from scheduler.errors import ConfigError
from swarm_integration.config import InferenceConfig
from swarm_integration.driver import Mode

FIRST_SEED = 42
"""Where `auto` seeds begin when the scenario names none, as upstream's `seed_base`."""

_LONGEST_NAME = 100
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_MOST_SEEDS = 100_000


@dataclass(frozen=True, slots=True)
class SweepParameter:
    """A parameter and the values that it takes.

    Attributes:
        name: Where it stands in the scenario: `governance.transaction_tax`,
            `agents.0.count`, `agents[0].llm.temperature`, `agents.llm.llm.temperature`.
        values: At least one, each only once.
    """

    name: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if not self.values:
            raise ConfigError(f"parameter {self.name} has no values. Give it one or more")
        for value in self.values:
            _check_plain(self.name, value)
        keys = [_key(value) for value in self.values]
        twice = next(
            (v for v, key in zip(self.values, keys, strict=True) if keys.count(key) > 1), 0
        )
        if len(set(keys)) < len(keys):
            raise ConfigError(
                f"parameter {self.name} has the value {twice!r} twice, which would run the same "
                "points again. Give each value once; for more runs a point raise --replications"
            )


@dataclass(frozen=True)
class SweepConfig:
    """What is to be run.

    Attributes:
        base_scenario: The scenario's file, of which each point is a variant.
        parameters: What varies; a mapping of names to values does too.
        replications: Runs for each point, with the seeds that `auto` gives.
        seeds: `auto`, or the seeds of each point's runs. `auto` is the scenario's seed
            (42 where it has none) and the numbers after it; all points have the same.
        name: Names the results; the scenario's file by default.
        epochs: In place of the scenario's `n_epochs`, unless None.
        steps: In place of the scenario's `steps_per_epoch`, unless None.
        mode: `serial`, upstream's order of moves, or `batch`.
        inference: The configuration of backends and scheduler.
    """

    base_scenario: Path
    parameters: Sequence[SweepParameter] | Mapping[str, Sequence[Any]] = ()
    replications: int = 1
    seeds: Literal["auto"] | Sequence[int] = "auto"
    name: str = ""
    epochs: int | None = None
    steps: int | None = None
    mode: Mode = "serial"
    inference: InferenceConfig = field(default_factory=InferenceConfig)

    def __post_init__(self) -> None:
        base, given = Path(self.base_scenario), self.parameters
        if isinstance(given, Mapping):
            given = [SweepParameter(name, _listed(name, one)) for name, one in given.items()]
        seeds = self.seeds if self.seeds == "auto" else _listed("seeds", self.seeds)
        for name, value in (
            ("base_scenario", base),
            ("parameters", tuple(given)),
            ("seeds", seeds),
        ):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "name", self.name or base.stem)
        self._check()

    def _check(self) -> None:
        names = [parameter.name for parameter in self.varied]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"parameter {twice} is given twice. Give all its values at once")
        modes = get_args(Mode)
        if self.mode not in modes:
            raise ConfigError(f"mode must be {' or '.join(modes)}, got {self.mode!r}")
        counts = {"replications": self.replications, "epochs": self.epochs, "steps": self.steps}
        for key, count in counts.items():
            if count is None and key != "replications":
                continue
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ConfigError(f"{key} must be a whole number, 1 or more, got {count!r}")
        if self.seeds != "auto":
            _check_seeds(self.seeds)
            if self.replications not in (1, len(self.seeds)):
                raise ConfigError(
                    f"{self.replications} replications and {len(self.seeds)} seeds do not fit "
                    "together. Give one of the two"
                )

    @property
    def varied(self) -> tuple[SweepParameter, ...]:
        """The parameters."""
        return tuple(self.parameters)  # type: ignore[arg-type]  # made so in __post_init__

    def seeds_from(self, scenario_seed: int | None) -> tuple[int, ...]:
        """Return the seeds of each point's runs.

        Args:
            scenario_seed: What the scenario names.
        """
        if self.seeds != "auto":
            return tuple(self.seeds)
        first = FIRST_SEED if scenario_seed is None else scenario_seed
        return tuple(range(first, first + self.replications))


@dataclass(frozen=True)
class Point:
    """One combination of values.

    Attributes:
        name: Of its runs' directories, without the seed.
        values: By parameter, in the order of the sweep.
    """

    name: str
    values: Mapping[str, Any]

    def __str__(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.values.items()) or "the scenario"


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        point: Its values.
        index: Which replication of the point it is, from 0.
        seed: Its seed.
    """

    point: Point
    index: int
    seed: int

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.point.name}-seed{self.seed}"


def points_of(parameters: Sequence[SweepParameter]) -> list[Point]:
    """Return every combination, the last parameter varying fastest; one without parameters."""
    names = [parameter.name for parameter in parameters]
    combinations = itertools.product(*(parameter.values for parameter in parameters))
    values = [dict(zip(names, one, strict=True)) for one in combinations]
    labels = [_label(one) for one in values]
    return [
        Point(label if labels.count(label) == 1 else f"{label}-{_digest(one)}", one)
        for label, one in zip(labels, values, strict=True)
    ]


def runs_of(points: Sequence[Point], seeds: Sequence[int]) -> list[PlannedRun]:
    """Return the runs in the order in which they start: point after point."""
    return [PlannedRun(point, n, seed) for point in points for n, seed in enumerate(seeds)]


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of a list such as `42-57` or `1,2,10-12`.

    Raises:
        ConfigError: It is no such list, is empty, or names a seed twice.
    """
    found: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ConfigError(
                f"seeds must be whole numbers and ranges, 0 or more, such as 42-57 or 1,2,10-12; "
                f"got {part.strip()!r} in {text!r}"
            )
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first:
            raise ConfigError(f"seeds: the range {part.strip()} ends before it begins")
        if last - first >= _MOST_SEEDS:
            raise ConfigError(
                f"seeds: the range {part.strip()} has more than {_MOST_SEEDS:,} seeds"
            )
        found += range(first, last + 1)
    _check_seeds(found)
    return tuple(found)


def _check_seeds(seeds: Sequence[Any]) -> None:
    if not seeds:
        raise ConfigError("seeds: there is none. Give one or more, such as 42-57")
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ConfigError(f"seeds must be whole numbers, 0 or more, got {seed!r}")
    twice = next((seed for seed in dict.fromkeys(seeds) if list(seeds).count(seed) > 1), None)
    if twice is not None:
        raise ConfigError(f"seed {twice} is given twice. Give each seed once")


def _listed(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigError(f"{name}: give a list of values, got {values!r}")
    return tuple(values)


def _check_plain(name: str, value: Any) -> None:
    """Check that a value can stand in tables and files."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"parameter {name} has the key {key!r}. Put it into quotes")
            _check_plain(name, key)
            _check_plain(name, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_plain(name, inner)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"parameter {name} has the value {value!r}. Give a finite number")
    elif isinstance(value, str) and encodable(value) != value:
        raise ConfigError(f"parameter {name}: {value!r} holds half a surrogate pair. Remove it")
    elif not isinstance(value, str | int | float | None):
        raise ConfigError(
            f"parameter {name} has the value {value!r}, which is no number, text, list or "
            "mapping. Put a date into quotes"
        )


def _key(value: Any) -> str:
    """Return what two equal values have in common: 0 and 0.0 are, 1 and true are not."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return repr(float(value)) if number else canonical_json(value)


def _label(values: Mapping[str, Any]) -> str:
    parts = [
        f"{_plain(name)}={_plain_value(value)}"
        for name, value in zip(short_names(values), values.values(), strict=True)
    ]
    label = "_".join(parts) or "base"
    if len(label) > _LONGEST_NAME:
        label = f"{label[: _LONGEST_NAME - 11]}-{_digest(values)}"
    return label


def short_names(names: Collection[str]) -> list[str]:
    """Return the last part of each parameter's name, the whole name where that is not enough."""
    ends = [name.rpartition(".")[2] for name in names]
    return [end if ends.count(end) == 1 else name for end, name in zip(ends, names, strict=True)]


def _plain_value(value: Any) -> str:
    """Return a value as a part of a file's name, the same whatever the other values are."""
    text = value if isinstance(value, str) else canonical_json(value)
    plain = _plain(text)
    return plain if plain == text else f"{plain}-{sha256(text.encode()).hexdigest()[:6]}"


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("_.") or "_"


def _digest(values: Mapping[str, Any]) -> str:
    return sha256(canonical_json(dict(values)).encode()).hexdigest()[:10]


def twice_named(runs: Sequence[PlannedRun]) -> Iterator[str]:
    """Yield names of directories that two runs would share, where letters' case is ignored."""
    seen: set[str] = set()
    for run in runs:
        if run.name.casefold() in seen:
            yield run.name
        seen.add(run.name.casefold())
