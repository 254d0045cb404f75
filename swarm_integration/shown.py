"""What an observation lets its agent do, and whom and what it can name.

Upstream's prompts show the first few posts, tasks and agents and cut the ids of
posts, tasks and kernel submissions to eight characters. A model can only write
what it was shown, so the lists here follow the prompt (`agents/llm_prompts.py`),
and each entry knows the whole id behind it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ID_CHARS_SHOWN = 8
POSTS_SHOWN = 5
TASKS_SHOWN = 5
AGENTS_SHOWN = 10

_EDGES = " \t\r\n'\"`\u2018\u2019\u201c\u201d#@*.,:;\u2026-()[]{}<>"
_BETWEEN = re.compile(r"[\s:=,;/()\[\]{}<>\"'`#]+")


@dataclass(frozen=True, slots=True)
class Names:
    """The ids of one kind that an observation holds.

    Attributes:
        offered: For each id that the prompt shows, in its order: how a schema lists
            it, and the whole id.
        others: Whole ids that the observation holds and the prompt does not show.
        cut: Whether the prompt cuts ids of this kind.
    """

    offered: tuple[tuple[str, str], ...] = ()
    others: tuple[str, ...] = ()
    cut: bool = True

    @property
    def listed(self) -> list[str]:
        """What a schema lists, in the prompt's order."""
        return [listed for listed, _ in self.offered]

    def __contains__(self, whole: object) -> bool:
        return whole in self._all()

    def __bool__(self) -> bool:
        return bool(self.offered)

    def candidates(self, written: str) -> tuple[str, ...]:
        """Return the whole ids that `written` may stand for, most likely one or none.

        The id as it is comes first, then what the prompt shows for it, then the
        beginning of one, each without regard to case and to marks around it. Of a
        text of several words, each word counts.
        """
        found = self._exactly(written) or self._meant(written.strip(_EDGES))
        if found:
            return found
        words = (word.strip(_EDGES) for word in _BETWEEN.split(written))
        return tuple(dict.fromkeys(id_ for word in words if word for id_ in self._meant(word)))

    def _all(self) -> tuple[str, ...]:
        return (*(whole for _, whole in self.offered), *self.others)

    def _exactly(self, written: str) -> tuple[str, ...]:
        return tuple(whole for whole in self._all() if whole == written)

    def _meant(self, word: str) -> tuple[str, ...]:
        plain = word.casefold()
        found = tuple(whole for whole in self._all() if whole.casefold() == plain)
        if found or not self.cut or len(plain) < ID_CHARS_SHOWN:
            return found
        # What the prompt shows goes before what it does not.
        shown = tuple(w for _, w in self.offered if w.casefold().startswith(plain))
        return shown or tuple(w for w in self.others if w.casefold().startswith(plain))


@dataclass(frozen=True, slots=True)
class Shown:
    """What one observation allows.

    Attributes:
        actions: The names of the actions that take place if no other move comes
            between, in the order of upstream's instructions; NOOP is always there.
        posts: Posts to reply to and vote on.
        open_tasks: Tasks that can be claimed.
        own_tasks: Tasks of the agent's own whose output can be submitted.
        agents: Other agents that can be proposed to.
        challenges: GPU challenges, which are shown whole.
        submissions: Kernels of others, to verify and audit.
    """

    actions: tuple[str, ...]
    posts: Names
    open_tasks: Names
    own_tasks: Names
    agents: Names
    challenges: Names
    submissions: Names

    def named_by(self, action: str) -> Names | None:
        """Return the ids of which `action` names one, or None if it names none."""
        kinds: Mapping[str, Names] = {
            "REPLY": self.posts,
            "VOTE": self.posts,
            "PROPOSE_INTERACTION": self.agents,
            "CLAIM_TASK": self.open_tasks,
            "SUBMIT_OUTPUT": self.own_tasks,
            "SUBMIT_KERNEL": self.challenges,
            "VERIFY_KERNEL": self.submissions,
            "AUDIT_KERNEL": self.submissions,
        }
        return kinds.get(action)

    @property
    def tasks(self) -> Names:
        """All tasks of the observation, for reading what a model wrote."""
        offered = dict.fromkeys((*self.open_tasks.offered, *self.own_tasks.offered))
        return Names(tuple(offered), (*self.open_tasks.others, *self.own_tasks.others))


def shown_by(observation: Any, permitted: Callable[[str], bool] | None = None) -> Shown:
    """Return what upstream's `Observation` allows.

    Args:
        observation: The agent's observation.
        permitted: Whether governance lets the agent do the action of that name; None when
            it lets everything.
    """
    posts = _cut(_ids(observation.visible_posts, "post_id"), POSTS_SHOWN)
    open_tasks = _cut(_ids(observation.available_tasks, "task_id"), TASKS_SHOWN)
    own_tasks = _cut(_ids(observation.active_tasks, "task_id"))
    agents = _agents(observation)
    challenges = _whole(_ids(observation.kernel_available_challenges, "challenge_id"))
    submissions = _cut(_ids(observation.kernel_submissions_to_verify, "submission_id"))
    possible = {
        "NOOP": True,
        "POST": observation.can_post,
        "REPLY": observation.can_post and posts,
        "VOTE": observation.can_vote and posts,
        "PROPOSE_INTERACTION": observation.can_interact and agents,
        "CLAIM_TASK": observation.can_claim_task and open_tasks,
        "SUBMIT_OUTPUT": own_tasks,
        "SUBMIT_KERNEL": challenges,
        "VERIFY_KERNEL": submissions,
        "AUDIT_KERNEL": submissions,
    }
    actions = tuple(
        name
        for name, can in possible.items()
        if can and (permitted is None or name == "NOOP" or permitted(name))
    )
    return Shown(actions, posts, open_tasks, own_tasks, agents, challenges, submissions)


def _agents(observation: Any) -> Names:
    """The agents that the prompt shows, as such or as an author or a proposer.

    Only those of the observation's list can be proposed to: a network leaves out
    who is not a neighbour.
    """
    reachable = _ids(observation.visible_agents, "agent_id")
    known = set(reachable)
    authors = _ids(observation.visible_posts[:POSTS_SHOWN], "author_id")
    proposers = _ids(observation.pending_proposals, "initiator_id")
    shown = dict.fromkeys(
        (
            *reachable[:AGENTS_SHOWN],
            *(author for author in authors if author in known),
            *(proposer for proposer in proposers if proposer in known),
        )
    )
    others = tuple(agent_id for agent_id in reachable if agent_id not in shown)
    return Names(tuple((agent_id, agent_id) for agent_id in shown), others, cut=False)


def _ids(records: Iterable[Mapping[str, Any]], key: str) -> list[str]:
    found = (record.get(key) for record in records)
    return list(dict.fromkeys(each for each in found if isinstance(each, str) and each))


def _whole(ids: list[str]) -> Names:
    return Names(tuple((each, each) for each in ids), cut=False)


def _cut(ids: list[str], most: int | None = None) -> Names:
    """List ids as the prompt cuts them; whole where two of them look the same."""
    shown = ids[:most]
    alike = Counter(each[:ID_CHARS_SHOWN] for each in shown)
    offered = (
        (each[:ID_CHARS_SHOWN] if alike[each[:ID_CHARS_SHOWN]] == 1 else each, each)
        for each in shown
    )
    return Names(tuple(offered), tuple(ids[len(shown) :]))
