"""`prompt_layout: shared_first`: what every agent's prompt of a step holds comes first.

Upstream begins a user prompt with the agent's own state, so two agents' prompts part after some
fifty characters and nothing that follows can be reused, though most of it is the same. Here the
sections of the world move to the front, in upstream's order and wording, and the closing
instruction stays last. It knows no wording itself: that is `compat_layout.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

_BETWEEN_SECTIONS = re.compile(r"\n\n(?=## )")
_GAP = "\n\n"


@dataclass(frozen=True, slots=True)
class Wording:
    """The headings of a user prompt, as whole lines.

    Attributes:
        order: Those that may come before the last one, in upstream's order.
        closing: One of them heads the last section.
        opening: Heads the agent's own state, always the first section.
        own_id: How the first line of that begins which differs between agents.
        world: Those that tell every agent the same.
        limits: What the agent may still do in this epoch.
        agents: The list of the other agents.
        ecosystem: The figures of the whole.
    """

    order: Sequence[str]
    closing: Sequence[str]
    opening: str
    own_id: str
    world: Collection[str]
    limits: str
    agents: str
    ecosystem: str


@dataclass(frozen=True, slots=True)
class Scene:
    """What the simulation's state says that one agent's prompt can't tell.

    Attributes:
        equal_limits: Whether all agents with a model may do the same now.
        ecosystem: The section of the figures, as everyone sees it who sees them as they are.
        others: The list of the other agents, as this agent sees it who sees them all.
        everyone: The list that takes its place: the same for every agent.
        beyond: What `others` has and `everyone` has not, under the same heading; or nothing.
    """

    equal_limits: bool = False
    ecosystem: str | None = None
    others: str | None = None
    everyone: str = ""
    beyond: str = ""


@dataclass(slots=True)
class _Sorted:
    """Sections on their way to their places, each part in upstream's order."""

    shared: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)


def split(user_prompt: str, wording: Wording) -> list[str] | None:
    """Return the sections of a user prompt, or None where they are not upstream's as known."""
    sections = _BETWEEN_SECTIONS.split(user_prompt)
    *headings, last = map(heading_of, sections)
    # In this order and each once: a model's own words may look like a heading.
    known = [heading for heading in wording.order if heading in headings]
    if headings != known or headings[:1] != [wording.opening] or last not in wording.closing:
        return None
    return sections


def heading_of(section: str) -> str:
    """Return the first line of a section."""
    return section.partition("\n")[0]


def shared_first(user_prompt: str, wording: Wording, scene: Scene) -> tuple[str, int] | None:
    """Return a user prompt with what is shared in front, and how long that is.

    Args:
        user_prompt: Upstream's.
        wording: Upstream's headings.
        scene: What the state says.

    Returns:
        The prompt and the number of its leading characters that are the same for every agent;
        None where the prompt is not one of the known kinds, or nothing in it is shared.
    """
    sections = split(user_prompt, wording)
    if sections is None:
        return None
    opening, *between, closing = sections
    found = _Sorted(own=[opening])
    for section in between:
        _place(section, found, wording, scene)
    if not found.shared:
        return None
    shared = _GAP.join(found.shared) + _GAP
    # The epoch and the step stand before the first line that is the agent's own.
    common = opening.find(f"\n{wording.own_id}") + 1
    text = shared + _GAP.join([*found.own, closing])
    return text, len(shared) + (common + len(wording.own_id) if common else 0)


def _place(section: str, found: _Sorted, wording: Wording, scene: Scene) -> None:
    heading = heading_of(section)
    if heading == wording.agents and section == scene.others:
        found.shared.append(scene.everyone)
        found.own += [scene.beyond] if scene.beyond else []
        return
    is_shared = (
        heading in wording.world
        or (heading == wording.limits and scene.equal_limits)
        or (heading == wording.ecosystem and scene.ecosystem in (None, section))
    )
    (found.shared if is_shared else found.own).append(section)
