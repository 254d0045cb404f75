"""HTML and SVG elements whose texts are escaped unless they are markup already.

What comes out of a run directory is a plain `str` everywhere, so none of it can become
an element, an attribute or a script.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


class Markup(str):
    """Text that is markup; only this module's functions make it."""

    __slots__ = ()


_VOID = frozenset({"meta", "br", "col"})

Child = str | Iterable[str]


def element(name: str, /, *children: Child, **attributes: str | float | None) -> Markup:
    """Return an element; `None` leaves an attribute out.

    Args:
        name: The element's name.
        *children: Texts, which are escaped, markup, or iterables of these.
        **attributes: Their values are escaped; a trailing underscore is dropped and
            others become hyphens (`class_`, `aria_label`).
    """
    opening = name + "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{opening}>")
    return Markup(f"<{opening}>{joined(*children)}</{name}>")


def joined(*children: Child) -> Markup:
    """Return texts and markup one behind the other."""
    parts = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(Markup(escape(child)))
        else:
            parts.extend(joined(inner) for inner in child)
    return Markup("".join(parts))


def raw(text: str) -> Markup:
    """Return a constant of this package, such as its style sheet, as markup."""
    return Markup(text)


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return escape(value)
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
