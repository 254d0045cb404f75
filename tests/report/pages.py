"""Pages taken apart: whether tags nest, which elements and attributes there are."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "br", "col"}


class Page(HTMLParser):
    """Parses a page; fails on a tag that is closed out of turn.

    Attributes:
        elements: Every (name, attributes) in order.
        text: All text outside of style.
    """

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.text += data + " "

    def names(self) -> set[str]:
        return {name for name, _ in self.elements}

    def headings(self) -> list[str]:
        return [name for name, _ in self.elements if name in {"h1", "h2", "h3"}]
