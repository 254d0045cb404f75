"""What two runs of one seed must agree on, as plain data.

SWARM draws ids with ``uuid4`` and reads the wall clock, so equal runs differ in their bytes.
Ids become numbers in the order in which they first appear: who refers to whom still counts.
What is measured in seconds becomes one constant. All else stays, floats to the last bit.
"""

import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from pydantic import BaseModel
from swarm.core.orchestrator import EpochMetrics
from swarm.models.events import Event

CLOCK_FIELDS = frozenset(
    {"avg_time_between_interactions", "interaction_burstiness", "timestamp", "velocity"}
)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ISO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?")


class _Mask:
    """Turns values into plain data; remembers which id got which number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def plain(self, value: Any) -> Any:
        if isinstance(value, Enum):
            return value.value
        if isinstance(value, float):  # repr: exact, and a NaN equals itself
            return repr(float(value))
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, datetime):
            return "<time>"
        if isinstance(value, BaseModel):
            return self._record({name: getattr(value, name) for name in type(value).model_fields})
        if is_dataclass(value) and not isinstance(value, type):
            return self._record({item.name: getattr(value, item.name) for item in fields(value)})
        if isinstance(value, Mapping):
            return self._record(value)
        if isinstance(value, AbstractSet):
            return self._unordered(value)
        if isinstance(value, Iterable):
            return [self.plain(item) for item in value]
        return value

    def _record(self, record: Mapping[Any, Any]) -> dict[str, Any]:
        return {
            str(self.plain(key)): "<time>" if key in CLOCK_FIELDS else self.plain(item)
            for key, item in record.items()
        }

    def _unordered(self, items: AbstractSet[Any]) -> list[Any]:
        # Hash order is no order: an id that only a set has shown can't be numbered by it.
        return sorted(_UUID.sub("<id>", repr(item)) for item in items)

    def _text(self, text: str) -> str:
        return _ISO_TIME.sub("<time>", _UUID.sub(self._numbered, text))

    def _numbered(self, found: re.Match[str]) -> str:
        number = self._numbers.setdefault(found.group(), len(self._numbers) + 1)
        return f"<id {number}>"


def comparable(metrics: list[EpochMetrics]) -> list[dict[str, Any]]:
    """Every field of every epoch, the reports included that ``EpochMetrics.to_dict`` cuts short."""
    mask = _Mask()
    return [mask.plain(epoch) for epoch in metrics]


def comparable_events(events: list[Event]) -> list[dict[str, Any]]:
    """Every event in the order in which it was emitted."""
    mask = _Mask()
    return [mask.plain(event) for event in events]


def comparable_memory(snapshots: Mapping[str, Any]) -> dict[str, Any]:
    """What a graph memory store remembers of each agent."""
    plain: dict[str, Any] = _Mask().plain(snapshots)
    return plain
