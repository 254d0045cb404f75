"""Writes docs/configuration.md from the configuration models.

python scripts/configuration_doc.py          # writes the file
python scripts/configuration_doc.py --check  # exit code 1 when it is out of date
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from swarm_integration.config import InferenceConfig

TARGET = Path(__file__).parent.parent / "docs" / "configuration.md"

HEAD = """\
# Configuration

Made by `python scripts/configuration_doc.py` from the configuration models.

A YAML file is given with `swarm run ... --inference-config FILE`. The command line
(`--slots`, `--max-batch`) beats the file, the file beats the defaults. Unknown keys,
a key given twice, wrong types and impossible combinations are errors that name the key, the
value and what is allowed; nothing is started then. Examples are in `configs/`.
"""


def render() -> str:
    """Return the whole document."""
    return "\n".join([HEAD, *_section(InferenceConfig, "")]).rstrip() + "\n"


def _section(model: type[BaseModel], prefix: str) -> Iterator[str]:
    plain = {name: one for name, one in model.model_fields.items() if not _is_section(one)}
    if plain:
        yield f"## {prefix.rstrip('.') or 'At the top'}\n"
        yield "| key | allowed | default | what it does |"
        yield "|---|---|---|---|"
        for name, one in plain.items():
            default = _default(one.default)
            allowed = _allowed(one.annotation, one.metadata)
            yield f"| `{prefix}{name}` | {allowed} | `{default}` | {one.description} |"
        yield ""
    for name, one in model.model_fields.items():
        if _is_section(one) and isinstance(one.annotation, type):
            yield from _section(one.annotation, f"{prefix}{name}.")


def _is_section(one: FieldInfo) -> bool:
    return isinstance(one.annotation, type) and issubclass(one.annotation, BaseModel)


def _default(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _allowed(annotation: Any, metadata: list[Any]) -> str:
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_allowed(part, metadata) for part in get_args(annotation))
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if hasattr(annotation, "__metadata__"):
        parts = [*annotation.__metadata__]
        limits = [limit for part in parts for limit in getattr(part, "metadata", [part])]
        return _allowed(annotation.__origin__, limits)
    if get_origin(annotation) is tuple:
        return f"a list of {_allowed(get_args(annotation)[0], [])}"
    names = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text"}
    names |= {Path: "path", type(None): "`null`"}
    return names.get(annotation, str(annotation)) + _limits(annotation, metadata)


def _limits(annotation: Any, metadata: list[Any]) -> str:
    if annotation not in (int, float):
        return ""
    words = []
    for limit in metadata:
        if isinstance(limit, Ge):
            words.append(f"{limit.ge} or more")
        elif isinstance(limit, Gt):
            words.append(f"above {limit.gt}")
        elif isinstance(limit, Le):
            words.append(f"{limit.le} or less")
    return ", " + ", ".join(words) if words else ""


def main() -> int:
    """Write or check the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    text = render()
    if parser.parse_args().check:
        return 0 if TARGET.read_text(encoding="utf-8") == text else 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
