"""The counts of actions in a manifest: chosen, valid, executed, refused, lost.

Read by what the entries look like, so that a release that counts more, or names the
section otherwise inside, is still shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from swarm_integration.report.facts import flat
from swarm_integration.report.plain import TEXT_CHARS, count, mapping, number, text

_KNOWN = ("chosen", "valid", "executed", "refused", "lost")
_MOST_ACTIONS = 60
_MOST_REASONS = 100


@dataclass(frozen=True, slots=True)
class Actions:
    """What became of the agents' actions.

    Attributes:
        columns: The names of the counts.
        rows: By action, one count a column.
        reasons: (action, column, reason, count), where a count is told by reasons.
        facts: What else the section says.
    """

    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, int]]
    reasons: tuple[tuple[str, str, str, int], ...]
    facts: tuple[tuple[str, str], ...]

    def total(self, column: str) -> int:
        """The sum of a column."""
        return sum(row.get(column, 0) for row in self.rows.values())


def actions_of(manifest: Mapping[str, Any]) -> Actions | None:
    """Return the counts, or None when the manifest has none."""
    section = mapping(manifest.get("actions"))
    table = _table(section)
    if table is None:
        return None
    rows: dict[str, dict[str, int]] = {}
    reasons: list[tuple[str, str, str, int]] = []
    counted = [(name, entry) for name, entry in table.items() if _is_row(entry)]
    for name, entry in counted[:_MOST_ACTIONS]:
        action = text(name)
        rows[action] = {text(column): _sum(value) for column, value in entry.items()}
        reasons.extend(_reasons(action, entry))
    names = dict.fromkeys(column for row in rows.values() for column in row)
    columns = [column for column in _KNOWN if column in names]
    columns += [column for column in names if column not in _KNOWN]
    beside = {name: value for name, value in section.items() if value is not table}
    facts = tuple(list(flat({} if table is section else beside))[:_MOST_REASONS])
    reasons.sort(key=lambda one: -one[3])
    return Actions(tuple(columns[:12]), rows, tuple(reasons[:_MOST_REASONS]), facts)


def _table(section: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the part of the section that has an object of counts for each action."""
    candidates = [section, *(value for value in section.values() if isinstance(value, dict))]
    for candidate in candidates:
        if any(_is_row(value) for value in candidate.values()):
            return candidate
    return None


def _is_row(value: object) -> bool:
    return isinstance(value, dict) and any(known in value for known in _KNOWN)


def _sum(value: object) -> int:
    if isinstance(value, dict):
        return sum(count(inner) for inner in value.values())
    return count(value)


def _reasons(action: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, str, str, int]]:
    for column, value in entry.items():
        for reason, found in mapping(value).items():
            if number(found):
                yield action, text(column), text(reason, limit=TEXT_CHARS), count(found)
