"""What the doctor has found: one line a check, and the command that mends it.

Plain data for people (`text`) and for programs (`as_json`). Knows the standard library alone,
so that it can speak when nothing else of this project can be imported.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "warning", "error"]

_WIDTH = 100
_INDENT = " " * 9


@dataclass(frozen=True, slots=True)
class Repair:
    """Something safe that `--fix` may do.

    Attributes:
        label: What it will do, for those who have not asked for it yet.
        act: Does it, and returns what was done; raises OSError where it can't.
    """

    label: str
    act: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        check: What was looked at.
        level: `ok`; `warning`, where something works but not as well; `error`.
        says: What was found.
        mend: What to type, empty where nothing is to be mended.
        facts: The same for programs, as plain JSON data.
        repair: What `--fix` may do about it.
    """

    check: str
    level: Level
    says: str
    mend: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    repair: Repair | None = None


Part = tuple[str, Sequence[Finding]]
"""A title and the findings under it."""


def text(parts: Sequence[Part]) -> str:
    """Return the findings as lines for a terminal, with a last line that counts them."""
    lines = []
    for title, findings in parts:
        lines += [title, *(line for one in findings for line in _lines(one)), ""]
    return "\n".join([*lines, _verdict(parts)])


def as_json(parts: Sequence[Part], fixed: Sequence[str]) -> dict[str, Any]:
    """Return the findings as JSON data.

    Args:
        parts: The findings.
        fixed: What `--fix` has done.
    """
    return {
        "ok": not is_broken(parts),
        "errors": _count(parts, "error"),
        "warnings": _count(parts, "warning"),
        "fixed": list(fixed),
        "checks": [
            {
                "part": title,
                "check": one.check,
                "level": one.level,
                "says": one.says,
                "mend": one.mend,
                "fixable": one.repair is not None,
                "facts": dict(one.facts),
            }
            for title, findings in parts
            for one in findings
        ],
    }


def is_broken(parts: Sequence[Part]) -> bool:
    """Whether there is an error among the findings."""
    return _count(parts, "error") > 0


def repairs(parts: Sequence[Part]) -> list[Repair]:
    """Return what `--fix` may do."""
    return [one.repair for _, findings in parts for one in findings if one.repair is not None]


def _lines(finding: Finding) -> list[str]:
    body = textwrap.wrap(
        f"{finding.check}: {finding.says}",
        _WIDTH - len(_INDENT),
        break_long_words=False,
        break_on_hyphens=False,
    )
    lines = [f"{finding.level:<{len(_INDENT)}}{body[0]}", *(_INDENT + line for line in body[1:])]
    if finding.mend:
        lines.append(f"{_INDENT}to mend it: {finding.mend}")
    return lines


def _count(parts: Sequence[Part], level: Level) -> int:
    return sum(one.level == level for _, findings in parts for one in findings)


def _verdict(parts: Sequence[Part]) -> str:
    errors, warnings = _count(parts, "error"), _count(parts, "warning")
    if not errors and not warnings:
        return "Nothing is wrong."
    counts = [
        f"{number} {name}{'' if number == 1 else 's'}"
        for number, name in ((errors, "error"), (warnings, "warning"))
        if number
    ]
    can = "; ".join(one.label for one in repairs(parts))
    return f"{' and '.join(counts)}." + (f" --fix would {can}." if can else "")
