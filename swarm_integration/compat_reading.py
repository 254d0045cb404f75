"""Which keys of a scenario upstream's loader reads, learnt by letting it read.

Its loader takes the keys that it knows and ignores all others without a word, and no
schema says which they are. So it is given mappings that write down what is asked of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from swarm_integration.compat import replaced, require_names


class ReadMapping(dict[str, Any]):
    """A mapping that remembers which keys were asked for.

    Attributes:
        asked: Each key that was asked for by name, with the default that stood beside it.
        whole: Whether somebody took all there was.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__({key: watched(value) for key, value in data.items()})
        self.asked: dict[str, Any] = {}
        self.whole = False

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value or the default, and remember the question."""
        self.asked.setdefault(key, default)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.setdefault(key, None)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.setdefault(str(key), None)
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        self.whole = True
        return super().__iter__()

    def keys(self) -> Any:
        """Return all keys, and remember that."""
        self.whole = True
        return super().keys()

    def items(self) -> Any:
        """Return all there is, and remember that."""
        self.whole = True
        return super().items()

    def values(self) -> Any:
        """Return all values, and remember that."""
        self.whole = True
        return super().values()

    def unwatched(self) -> list[tuple[str, Any]]:
        """Return all there is, without a trace."""
        return list(dict.items(self))


def watched(data: Any) -> Any:
    """Return data whose mappings remember what is read of them."""
    if isinstance(data, Mapping):
        return ReadMapping(data)
    if isinstance(data, list):
        return [watched(value) for value in data]
    return data


@contextmanager
def read_in_place_of_files(data: Any) -> Iterator[None]:
    """Let upstream's loader find `data` in every file that it reads in the block.

    Raises:
        CompatError: This SWARM reads scenarios in another way.
    """
    from swarm.scenarios import loader

    require_names(loader, ("yaml",), "swarm.scenarios.loader")
    require_names(loader.yaml, ("safe_load", "YAMLError"), "the loader's yaml")
    stand_in = SimpleNamespace(safe_load=lambda _: data, YAMLError=loader.yaml.YAMLError)
    with replaced(loader, "yaml", stand_in):
        yield
