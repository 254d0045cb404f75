"""One self-contained HTML page: no script, no network, and a policy that forbids both."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256

from swarm_integration.report.compare import comparison_sections
from swarm_integration.report.markup import Markup, element, joined, raw
from swarm_integration.report.sections import Section, headline, sections_of
from swarm_integration.report.style import STYLE
from swarm_integration.report.summary import Summary

MOST_DETAILED = 6
"""Runs of a comparison that are also shown one by one."""


def page(summaries: Sequence[Summary], made_by: str) -> str:
    """Return the page of a run, or that of several side by side.

    Args:
        summaries: The runs.
        made_by: Which release made the page, for its foot.
    """
    if len(summaries) == 1:
        title = summaries[0].name
        head: Markup = headline(summaries[0])
        sections = list(sections_of(summaries[0]))
    else:
        title = f"{len(summaries)} runs side by side"
        head = element("p", ", ".join(summary.name for summary in summaries), class_="sub")
        sections = [*comparison_sections(summaries), *_one_by_one(summaries)]
    return _document(title, head, sections, made_by)


def _one_by_one(summaries: Sequence[Summary]) -> list[Section]:
    parts = [
        element(
            "details",
            element("summary", summary.name),
            headline(summary),
            [joined(element("h3", name), body) for _, name, body in sections_of(summary)],
        )
        for summary in summaries[:MOST_DETAILED]
    ]
    if len(summaries) > MOST_DETAILED:
        text = (
            f"The first {MOST_DETAILED} of {len(summaries)}; make a report of one for the others."
        )
        parts.insert(0, element("p", text, class_="note"))
    return [("runs", "Each run", joined(parts))]


def _document(title: str, head: Markup, sections: Sequence[Section], made_by: str) -> str:
    style = raw(STYLE)
    digest = b64encode(sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    links = [element("li", element("a", name, href=f"#{anchor}")) for anchor, name, _ in sections]
    html = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=policy),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="referrer", content="no-referrer"),
            element("title", f"{title}: inference report"),
            element("style", style),
        ),
        element(
            "body",
            element("header", element("h1", title), head),
            element("nav", element("ul", links), aria_label="Sections"),
            element(
                "main",
                [
                    element("section", element("h2", name), body, id=anchor, aria_label=name)
                    for anchor, name, body in sections
                ],
            ),
            element("footer", f"Made by {made_by}. Times are those of the run's own log."),
        ),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{html}\n"
