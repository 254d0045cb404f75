"""What an observation lets an agent name is what upstream's prompt shows it."""

from __future__ import annotations

from typing import Any

import pytest
from swarm.agents.base import Observation
from swarm.agents.llm_config import PersonaType
from swarm.agents.llm_prompts import build_kernel_action_prompt, format_observation
from swarm.models.agent import AgentState

from swarm_integration.schemas import act_schema, kernel_schema
from swarm_integration.shown import Names, shown_by

WHOLE = "3f2a9c14-7b1e-4d57-9c3e-000000000001"
OTHER = "b71e0d22-0c4f-4f0a-8a51-000000000002"


def ids(kind: str, count: int) -> list[str]:
    return [f"{number:04x}{kind:0>4}-1111-4111-8111-{number:012x}" for number in range(count)]


def observation(**fields: Any) -> Observation:
    defaults: dict[str, Any] = {
        "agent_state": AgentState(agent_id="me"),
        "visible_posts": [
            {"post_id": post_id, "author_id": f"author_{n}", "content": "text"}
            for n, post_id in enumerate(ids("aa", 8))
        ],
        "available_tasks": [
            {"task_id": task_id, "prompt": "work", "reward": 1.0} for task_id in ids("bb", 8)
        ],
        "active_tasks": [{"task_id": task_id, "prompt": "mine"} for task_id in ids("cc", 7)],
        "visible_agents": [
            {"agent_id": f"llm_{n}", "reputation": 0.1, "resources": 1.0} for n in range(1, 13)
        ],
    }
    return Observation(**{**defaults, **fields})


def lists(**fields: Any) -> dict[tuple[str, str], list[str]]:
    """The lists of an observation's schema, by action and parameter."""
    schema = act_schema(shown_by(observation(**fields)))
    return {
        (branch["properties"]["action_type"]["const"], name): values["enum"]
        for branch in schema.schema["anyOf"]
        for name, values in branch["properties"].get("params", {}).get("properties", {}).items()
        if name.endswith("_id")
    }


def actions(**fields: Any) -> list[str]:
    branches = act_schema(shown_by(observation(**fields))).schema["anyOf"]
    return [branch["properties"]["action_type"]["const"] for branch in branches]


# --- lists


def test_listed_is_what_the_prompt_shows_and_nothing_else() -> None:
    prompt = format_observation(observation())
    found = lists()
    for listed in found.values():
        assert listed
        for name in listed:
            assert f"[{name}]" in prompt or f"- {name}:" in prompt
    assert found["VOTE", "post_id"] == [post_id[:8] for post_id in ids("aa", 5)]
    assert found["CLAIM_TASK", "task_id"] == [task_id[:8] for task_id in ids("bb", 5)]
    assert found["SUBMIT_OUTPUT", "task_id"] == [task_id[:8] for task_id in ids("cc", 7)]
    shown = found["PROPOSE_INTERACTION", "counterparty_id"]
    assert shown == [f"llm_{n}" for n in range(1, 11)]
    assert "llm_11:" not in prompt
    assert ids("aa", 6)[5][:8] not in prompt
    assert ids("bb", 6)[5][:8] not in prompt


def test_each_action_has_lists_of_its_own_kind() -> None:
    found = lists()
    assert found["REPLY", "post_id"] == found["VOTE", "post_id"]
    kinds = [
        set(found[key])
        for key in [
            ("VOTE", "post_id"),
            ("CLAIM_TASK", "task_id"),
            ("SUBMIT_OUTPUT", "task_id"),
            ("PROPOSE_INTERACTION", "counterparty_id"),
        ]
    ]
    assert sum(len(kind) for kind in kinds) == len(set().union(*kinds))


def test_author_or_proposer_who_is_shown_can_be_proposed_to_if_reachable() -> None:
    posts = [{"post_id": WHOLE, "author_id": author} for author in ("llm_12", "stranger", "me")]
    proposals = [{"proposal_id": "p", "initiator_id": "llm_11", "content": ""}]
    found = lists(visible_posts=posts, pending_proposals=proposals)
    named = found["PROPOSE_INTERACTION", "counterparty_id"]
    assert named == [*(f"llm_{n}" for n in range(1, 11)), "llm_12", "llm_11"]


def test_hundreds_of_posts_and_agents_stay_a_short_list() -> None:
    many = observation(
        visible_posts=[{"post_id": post_id, "author_id": "llm_1"} for post_id in ids("aa", 500)],
        visible_agents=[{"agent_id": f"llm_{n}"} for n in range(500)],
    )
    shown = shown_by(many)
    assert len(shown.posts.listed) == 5
    assert len(shown.agents.listed) == 10
    assert ids("aa", 500)[499] in shown.posts


def test_ids_that_look_alike_are_listed_whole() -> None:
    twins = [f"{WHOLE[:8]}{end}" for end in ("-a", "-b")]
    posts = [{"post_id": post_id, "author_id": "x"} for post_id in (*twins, OTHER)]
    assert lists(visible_posts=posts)["VOTE", "post_id"] == [*twins, OTHER[:8]]


def test_equal_observations_give_equal_schemas() -> None:
    one, two = (act_schema(shown_by(observation())) for _ in range(2))
    assert one.schema == two.schema
    assert one.fingerprint == two.fingerprint
    assert str(one.schema) == str(two.schema)


# --- actions

ALL = ["NOOP", "POST", "REPLY", "VOTE", "PROPOSE_INTERACTION", "CLAIM_TASK", "SUBMIT_OUTPUT"]


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({}, set()),
        ({"can_post": False}, {"POST", "REPLY"}),
        ({"can_vote": False}, {"VOTE"}),
        ({"can_interact": False}, {"PROPOSE_INTERACTION"}),
        ({"can_claim_task": False}, {"CLAIM_TASK"}),
        ({"visible_posts": []}, {"REPLY", "VOTE"}),
        ({"available_tasks": []}, {"CLAIM_TASK"}),
        ({"active_tasks": []}, {"SUBMIT_OUTPUT"}),
        ({"visible_agents": []}, {"PROPOSE_INTERACTION"}),
    ],
)
def test_only_what_limits_and_state_allow_has_a_branch(
    fields: dict[str, Any], missing: set[str]
) -> None:
    assert actions(**fields) == [name for name in ALL if name not in missing]


def test_noop_is_always_there() -> None:
    nothing: dict[str, Any] = {
        name: [] for name in ("visible_posts", "available_tasks", "active_tasks", "visible_agents")
    }
    assert actions(**nothing, can_post=False) == ["NOOP"]


def test_governance_takes_branches_away_but_never_noop() -> None:
    shown = shown_by(observation(), lambda action: action == "VOTE")
    assert shown.actions == ("NOOP", "VOTE")


# --- kernels


def kernels(**fields: Any) -> Observation:
    challenges = [{"challenge_id": name} for name in ("1_vector_add", "4_reduction")]
    return observation(kernel_available_challenges=[*challenges, challenges[0]], **fields)


def test_kernel_lists_follow_the_kernel_prompt() -> None:
    submissions = [{"submission_id": each, "author_id": "x"} for each in (WHOLE, OTHER)]
    seen = kernels(kernel_submissions_to_verify=submissions)
    _, prompt = build_kernel_action_prompt(PersonaType.OPEN, seen)
    branches = {
        branch["properties"]["action_type"]["const"]: branch
        for branch in kernel_schema(shown_by(seen)).schema["anyOf"]
    }
    assert list(branches) == ["SUBMIT_KERNEL", "VERIFY_KERNEL", "AUDIT_KERNEL", "NOOP"]
    params = {
        name: branch["properties"].get("params", {}).get("properties", {})
        for name, branch in branches.items()
    }
    assert params["SUBMIT_KERNEL"]["challenge_id"]["enum"] == ["1_vector_add", "4_reduction"]
    for name in ("VERIFY_KERNEL", "AUDIT_KERNEL"):
        listed = params[name]["submission_id"]["enum"]
        assert listed == [WHOLE[:8], OTHER[:8]]
        assert all(f"[{each}]" in prompt for each in listed)


def test_without_submissions_there_is_nothing_to_verify() -> None:
    branches = kernel_schema(shown_by(kernels())).schema["anyOf"]
    names = [branch["properties"]["action_type"]["const"] for branch in branches]
    assert names == ["SUBMIT_KERNEL", "NOOP"]


# --- reading what a model wrote

POSTS = Names(((WHOLE[:8], WHOLE), (OTHER[:8], OTHER)), ("cafe0123-unseen",))
AGENTS = Names((("llm_1", "llm_1"), ("llm_10", "llm_10")), ("llm_11",), cut=False)


@pytest.mark.parametrize(
    "written",
    [
        WHOLE,
        WHOLE[:8],
        WHOLE.upper(),
        f"#{WHOLE[:8]}",
        f"[{WHOLE[:8]}]",
        f'"{WHOLE[:8]}"',
        f"`{WHOLE[:8]}`.",
        f"\u201c{WHOLE[:8]}\u201d",
        f"{WHOLE[:8]}...",
        f"{WHOLE[:8]}\u2026",
        WHOLE[:13],
        f"post {WHOLE[:8]}",
        f"post_id: {WHOLE[:8]}",
        f"[{WHOLE[:8]}] by {OTHER[:4]}",
        f" {WHOLE[:8]}\n",
    ],
)
def test_unambiguous_ids_are_found_behind_their_marks(written: str) -> None:
    assert POSTS.candidates(written) == (WHOLE,)


@pytest.mark.parametrize("written", ["", "#", "post", WHOLE[:7], "deadbeef", f"x{WHOLE[:8]}"])
def test_what_stands_for_nothing_is_found_nowhere(written: str) -> None:
    assert POSTS.candidates(written) == ()


def test_two_ids_in_one_text_are_ambiguous() -> None:
    assert POSTS.candidates(f"{WHOLE[:8]} or {OTHER[:8]}") == (WHOLE, OTHER)


def test_what_the_prompt_shows_goes_before_what_it_does_not() -> None:
    hidden = f"{WHOLE[:8]}-hidden"
    names = Names(((WHOLE[:8], WHOLE),), (hidden,))
    assert names.candidates(WHOLE[:8]) == (WHOLE,)
    assert names.candidates(hidden) == (hidden,)
    assert POSTS.candidates("cafe0123") == ("cafe0123-unseen",)


@pytest.mark.parametrize(
    ("written", "found"),
    [("@LLM_1", ("llm_1",)), ("llm_1", ("llm_1",)), ("agent llm_10", ("llm_10",)), ("llm", ())],
)
def test_agents_are_named_whole(written: str, found: tuple[str, ...]) -> None:
    assert AGENTS.candidates(written) == found


def test_the_beginning_of_an_agents_name_is_not_its_name() -> None:
    names = Names((("honest_10", "honest_10"),), cut=False)
    assert names.candidates("honest_1") == ()
