"""How SWARM's modules get the stand-ins, and get their own names back.

Its ids, times and random numbers come from module names (`uuid`, `datetime`),
from defaults captured in dataclasses and pydantic models, and from imports inside
functions. All three are found by looking, since there are some 150 places; the few
on which a run's prompts hang are looked for by name, so that a SWARM which makes
its ids in another way is noticed and not silently left alone.
"""

from __future__ import annotations

import builtins
import dataclasses
import dis
import importlib
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FunctionType, ModuleType
from typing import Any

from pydantic import BaseModel

from swarm_integration.compat import swarm_version
from swarm_integration.errors import CompatError
from swarm_integration.orders import SortedSet, at_one_instant, of_sorted_agents, sorted_inside
from swarm_integration.sources import active_sources
from swarm_integration.stand_ins import StandInSet, stand_in_for

_PACKAGES = (
    "agents",
    "boundaries",
    "contracts",
    "core",
    "council",
    "env",
    "forecaster",
    "governance",
    "knowledge",
    "logging",
    "metrics",
    "models",
    "scenarios",
    "skills",
)
_EXPECTED_NAMES = (
    ("swarm.agents.base", "uuid"),
    ("swarm.core.kernel_handler", "uuid"),
    ("swarm.core.orchestrator", "random"),
    ("swarm.core.perturbation", "random"),
    ("swarm.council.ranking", "random"),
    ("swarm.env.feed", "datetime"),
    ("swarm.env.feed", "uuid"),
    ("swarm.env.state", "uuid"),
    ("swarm.env.tasks", "uuid"),
    ("swarm.models.events", "uuid"),
    ("swarm.models.interaction", "uuid"),
)
_EXPECTED_DEFAULTS = (
    ("swarm.env.feed", "Post", "created_at"),
    ("swarm.models.events", "Event", "timestamp"),
    ("swarm.models.interaction", "SoftInteraction", "timestamp"),
)
_WRAPPED: dict[tuple[str, str], tuple[Callable[..., Any], tuple[str, ...]]] = {
    ("swarm.env.feed", "Feed"): (at_one_instant, ("get_ranked_posts", "get_thread")),
    ("swarm.governance.identity_lever", "SybilDetectionLever"): (
        sorted_inside,
        ("_detect_clusters",),
    ),
    ("swarm.metrics.collusion", "CollusionDetector"): (of_sorted_agents, ("analyze",)),
    ("swarm.metrics.security", "SecurityAnalyzer"): (of_sorted_agents, ("analyze",)),
}

Undo = Callable[[], None]


class SwarmModules:
    """SWARM's modules of this process, with the stand-ins while at least one run is active."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = 0
        self._repaired: set[str] = set()
        self._undo: list[Undo] = []

    @contextmanager
    def repaired(self) -> Iterator[None]:
        """Keep the stand-ins in SWARM's modules for the time of the block.

        Raises:
            CompatError: This SWARM makes its ids or times in a way that is not known.
        """
        with self._lock:
            self._runs += 1
            try:
                self._import_all()
                self._repair()
                _check()
            except BaseException:
                self._leave()
                raise
        try:
            yield
        finally:
            with self._lock:
                self._leave()

    def refresh(self) -> None:
        """Repair what has been imported since a run began."""
        with self._lock:
            if self._runs:
                self._repair()

    def _leave(self) -> None:
        self._runs -= 1
        if self._runs:
            return
        while self._undo:
            self._undo.pop()()
        self._repaired.clear()

    def _import_all(self) -> None:
        """Import what a run may import later, so that it is repaired before it is used."""
        for name in _PACKAGES:
            package = importlib.import_module(f"swarm.{name}")
            for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
                try:
                    importlib.import_module(module.name)
                except ImportError:
                    continue  # it needs a package that is not installed: no run can use it

    def _repair(self) -> None:
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == "swarm" and name not in self._repaired:
                self._repaired.add(name)
                self._repair_module(module)

    def _repair_module(self, module: ModuleType) -> None:
        own = list(vars(module).items())
        for name, value in own:
            stand_in = stand_in_for(value)
            if stand_in is None and type(value) is set:
                stand_in = SortedSet(value)
            if stand_in is not None:
                self._set(module, name, stand_in)
        if "set" not in vars(module):
            self._set(module, "set", StandInSet)
        for name, value in own:
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if isinstance(value, FunctionType):
                self._repair_imports(module, name, value)
            elif isinstance(value, type):
                self._repair_class(value)

    def _repair_class(self, owner: type) -> None:
        for name, value in list(vars(owner).items()):
            if isinstance(value, FunctionType):
                self._repair_imports(owner, name, value)
        defaults = _captured_defaults(owner)
        if defaults:
            self._set(owner, "__init__", _filling_in(owner.__init__, defaults))  # type: ignore[misc]  # of this very class
        wrap, names = _WRAPPED.get((owner.__module__, owner.__name__), (None, ()))
        for name in names:
            if wrap is not None and name in vars(owner):
                self._set(owner, name, wrap(vars(owner)[name]))

    def _repair_imports(self, owner: Any, name: str, function: FunctionType) -> None:
        if any(
            instruction.opname == "IMPORT_NAME"
            and stand_in_for(sys.modules.get(instruction.argval))
            for instruction in _imports(function)
        ):
            self._set(owner, name, _with_own_imports(function))

    def _set(self, owner: Any, name: str, value: Any) -> None:
        had, before = name in vars(owner), vars(owner).get(name)

        def undo() -> None:
            if had:
                setattr(owner, name, before)
            else:
                delattr(owner, name)

        setattr(owner, name, value)
        self._undo.append(undo)


def _check() -> None:
    missing = [
        f"{module}.{name}"
        for module, name in _EXPECTED_NAMES
        if name not in vars(sys.modules.get(module, builtins))
    ]
    for module, owner, field in _EXPECTED_DEFAULTS:
        model = getattr(sys.modules.get(module), owner, None)
        if model is None or field not in _captured_defaults(model):
            missing.append(f"{module}.{owner}.{field}")
    for (module, owner), (_, names) in _WRAPPED.items():
        model = getattr(sys.modules.get(module), owner, None)
        missing += [f"{module}.{owner}.{name}" for name in names if not hasattr(model, name)]
    if missing:
        raise CompatError(
            f"swarm-safety {swarm_version()} has no {', '.join(missing)}, from which its ids, "
            "times and orders come in the release that this was written against. Install that "
            "one (python -m pip install swarm-safety==1.9.0), or run without reproducible "
            "simulations (determinism: {repair_simulation: false})"
        )


def _captured_defaults(owner: type) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Return the fields whose default calls a real source: position and stand-in."""
    if issubclass(owner, BaseModel):
        factories: dict[str, Any] = {
            name: field.default_factory for name, field in owner.model_fields.items()
        }
        positions = dict.fromkeys(factories, sys.maxsize)
    elif "__dataclass_fields__" in vars(owner) and dataclasses.is_dataclass(owner):
        fields = [field for field in dataclasses.fields(owner) if field.init]
        factories = {field.name: field.default_factory for field in fields}
        positions = {field.name: place for place, field in enumerate(fields)}
    else:
        return {}
    stand_ins = {name: stand_in_for(factory) for name, factory in factories.items()}
    return {
        name: (positions[name], stand_in)
        for name, stand_in in stand_ins.items()
        if stand_in is not None
    }


def _filling_in(
    init: Callable[..., None], defaults: dict[str, tuple[int, Callable[[], Any]]]
) -> Callable[..., None]:
    """Wrap an `__init__` so that in a run the fields left out come from the stand-ins."""

    @wraps(init)
    def filled_in(self: Any, *args: Any, **kwargs: Any) -> None:
        if active_sources.get() is not None:
            for name, (position, make) in defaults.items():
                if position >= len(args) and name not in kwargs:
                    kwargs[name] = make()
        init(self, *args, **kwargs)

    return filled_in


def _imports(function: FunctionType) -> Iterator[dis.Instruction]:
    code = function.__code__
    if {"datetime", "random", "time", "uuid"} & {*code.co_names}:
        yield from dis.get_instructions(code)


def _with_own_imports(function: FunctionType) -> FunctionType:
    """Return a copy of a function whose `import random` and the like bring the stand-ins."""

    def import_(name: str, *args: Any, **kwargs: Any) -> Any:
        module = builtins.__import__(name, *args, **kwargs)
        return stand_in_for(module) or module

    scope = {**function.__globals__, "__builtins__": {**vars(builtins), "__import__": import_}}
    copy = FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    vars(copy).update(vars(function))
    copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
    copy.__doc__ = function.__doc__
    return copy
