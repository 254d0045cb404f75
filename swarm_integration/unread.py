"""Keys of a scenario that SWARM does not read, such as misspelt ones.

Upstream ignores them without a word, and the study is another one than its author thinks. They
are no error: upstream's command runs such a file, and some people keep notes in it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scheduler.yaml_text import load_yaml
from swarm_integration.compat_reading import ReadMapping, read_in_place_of_files, watched
from swarm_integration.scenario import rehearse

OPEN = frozenset({"config", "params", "strategy"})
"""Keys of an agent whose contents its class reads when it likes, perhaps in the middle of a run."""

_READ_AT_THE_END = "success_criteria"
_MOST_NAMED = 8


def unread_keys(path: Path) -> list[str]:
    """Return the keys that nobody asked for while the scenario was loaded and built.

    Args:
        path: A scenario that can be built.

    Returns:
        Each with its place, such as `agents.0.llm.temprature`, and what it may be meant for.
    """
    said = watched(load_yaml(path.read_text(encoding="utf-8")))
    with read_in_place_of_files(said):
        rehearse(path, {})
    return list(_unread(said, ()))


def note_of(path: Path, keys: list[str]) -> Iterator[str]:
    """Yield what a person is told of these keys; nothing where there are none."""
    if not keys:
        return
    more = f" and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
    yield f"note: SWARM does not read these keys of {path}: {', '.join(keys[:_MOST_NAMED])}{more}"


def _unread(data: Any, above: tuple[str | int, ...]) -> Iterator[str]:
    if isinstance(data, list):
        for number, value in enumerate(data):
            yield from _unread(value, (*above, number))
    if not isinstance(data, ReadMapping):
        return
    for key, value in data.unwatched():
        here = (*above, key)
        if not data.whole and key not in data.asked:
            near = difflib.get_close_matches(str(key), sorted(map(str, data.asked)), n=1)
            meant = f" ({near[0]}?)" if near and near[0] not in dict(data.unwatched()) else ""
            yield ".".join(map(str, here)) + meant
        elif here != (_READ_AT_THE_END,) and not _is_open(here):
            yield from _unread(value, here)


def _is_open(place: tuple[str | int, ...]) -> bool:
    return len(place) == 3 and place[0] == "agents" and place[2] in OPEN
