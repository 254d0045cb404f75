"""What LLM agents choose takes place in SWARM, and is counted for what it was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scheduler.config import SchedulerConfig
from scheduler.types import Request
from swarm_integration.actions import render
from swarm_integration.schemas import Instructions, act_schema
from tests.swarm.simulations import (
    NOOP,
    POST,
    ReplyingBackend,
    Simulated,
    council,
    json_lines,
    llm,
    manifest,
    reject,
    simulate,
    swarm,
    write_config,
    write_scenario,
)

both_modes = pytest.mark.parametrize("mode", ["batch", "serial"])
ACCEPT = '{"accept": true, "reasoning": "yes"}'
OFF = Instructions(full_ids=False)
FREE = Instructions(structured=False)


def answer(action: str, **params: Any) -> str:
    return json.dumps({"action_type": action, "reasoning": "r", "params": params})


def listed(request: Request, action: str, name: str) -> list[str]:
    """What the request's schema lists for a parameter; nothing without such a branch."""
    assert request.schema is not None
    for branch in request.schema.schema["anyOf"]:
        if branch["properties"]["action_type"]["const"] == action:
            found: list[str] = branch["properties"]["params"]["properties"][name]["enum"]
            return found
    return []


def in_prompt(request: Request, heading: str) -> list[str]:
    """The ids in brackets of one section of the prompt."""
    section = request.messages[-1].content.partition(f"## {heading}")[2].partition("\n## ")[0]
    return re.findall(r"^- \[([^\]]+)\]", section, re.MULTILINE)


def first_post(request: Request) -> str:
    return in_prompt(request, "Visible Posts")[0]


def tasks(count: int) -> Callable[[Any], None]:
    def prepare(orchestrator: Any) -> None:
        for number in range(count):
            orchestrator.task_pool.create_task(f"Summarise paper {number}.", bounty=10.0 - number)

    return prepare


def run(tmp_path: Path, reply: Any, agents: Any = None, **settings: Any) -> Simulated:
    sections = settings.pop("sections", {})
    scenario = write_scenario(tmp_path / "s.yaml", agents or [llm(3)], **sections)
    return simulate(scenario, ReplyingBackend(reply), **settings)


def count(found: Simulated, action: str) -> dict[str, Any]:
    return dict(found.actions["by_action"][action])


def all_executed(number: int) -> dict[str, Any]:
    return {"chosen": number, "valid": number, "executed": number, "lost": {}, "refused": {}}


# --- posts


def talk(request: Request, put: int) -> str:
    """Everyone posts, then the first votes, the second replies, the third votes down."""
    if request.kind == "accept":
        return ACCEPT
    if request.step == 0:
        return answer("POST", content=f"hello from {request.agent_id}")
    [post, *_] = listed(request, "VOTE", "post_id")
    assert post == first_post(request)
    if request.agent_id == "llm_2":
        return answer("REPLY", post_id=post, content="indeed")
    return answer("VOTE", post_id=post, direction=1 if request.agent_id == "llm_1" else -1)


@both_modes
def test_votes_and_replies_of_llm_agents_take_place(mode: Any, tmp_path: Path) -> None:
    found = run(tmp_path, talk, mode=mode, sections={"steps": 2})
    posts = found.posts
    assert sum(post.upvotes for post in posts) == 1
    assert sum(post.downvotes for post in posts) == 1
    assert sum(post.reply_count for post in posts) == 1
    assert count(found, "VOTE") == all_executed(2)
    assert count(found, "REPLY") == all_executed(1)
    assert found.actions["executed_share"] == 1.0
    assert found.actions["ids"] == {"whole": 0, "mapped": 3, "ambiguous": 0, "unknown": 0}


def test_switched_off_upstreams_defect_shows_in_the_counts(tmp_path: Path) -> None:
    def reply(request: Request, put: int) -> str:
        if request.step == 0:
            return POST
        return answer("VOTE", post_id=first_post(request), direction=1)

    found = run(tmp_path, reply, instructions=OFF, sections={"steps": 2})
    assert {c.request.schema for c in found.asked if c.request.schema != act_schema()} == set()
    assert [post.upvotes for post in found.posts] == [0, 0, 0]
    expected = {"chosen": 3, "valid": 0, "executed": 0, "lost": {}}
    assert count(found, "VOTE") == {**expected, "refused": {"no such post": 3}}
    assert found.actions["executed_share"] == 0.5
    assert found.actions["full_ids"] is False
    assert sum(found.actions["ids"].values()) == 0


def test_the_switch_changes_neither_seeds_nor_prompts_of_the_first_step(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [llm(3)])
    backends = [ReplyingBackend(lambda r, p: NOOP) for _ in range(2)]
    for backend, instructions in zip(backends, (Instructions(), OFF), strict=True):
        simulate(scenario, backend, instructions=instructions)
    on, off = backends
    assert on.seeds == off.seeds
    assert [r.messages[0] for r in on.requests] == [r.messages[0] for r in off.requests]
    assert [r.schema for r in on.requests] != [r.schema for r in off.requests]


@pytest.mark.parametrize("form", ["{}", "#{}", "'{}'", "post {}", "{}..."])
def test_without_a_schema_what_the_model_wrote_is_understood(form: str, tmp_path: Path) -> None:
    def reply(request: Request, put: int) -> str:
        if request.step == 0:
            return POST
        return f"I vote! {answer('VOTE', post_id=form.format(first_post(request)), direction=1)}"

    found = run(tmp_path, reply, instructions=FREE, sections={"steps": 2})
    assert sum(post.upvotes for post in found.posts) == 3
    assert count(found, "VOTE") == all_executed(3)
    assert found.actions["ids"]["mapped"] == 3


def test_an_answer_that_came_unconstrained_may_dress_an_id_but_not_invent_one(
    tmp_path: Path,
) -> None:
    def reply(request: Request, put: int) -> str:
        if request.step == 0:
            return POST
        invented = request.agent_id == "llm_2" and put == 0
        post_id = "deadbeef" if invented else f"Post #{first_post(request)}"
        return answer("VOTE", post_id=post_id, direction=1)

    scenario = write_scenario(tmp_path / "s.yaml", [llm(2)], steps=2)
    backend = ReplyingBackend(reply)
    found = simulate(scenario, backend)
    assert count(found, "VOTE") == all_executed(2)
    votes = [request.agent_id for request in backend.requests if request.step == 1]
    assert sorted(votes) == ["llm_1", "llm_2", "llm_2"]


def test_what_is_ambiguous_or_unknown_stays_as_it_was_and_is_counted(tmp_path: Path) -> None:
    tried: list[str] = []

    def reply(request: Request, put: int) -> str:
        if request.step == 0:
            return POST
        both = " and ".join(in_prompt(request, "Visible Posts")[:2])
        post_id = both if request.agent_id == "llm_1" else "deadbeef"
        tried.append(post_id)
        return answer("VOTE", post_id=post_id, direction=1)

    seen: list[str] = []

    def prepare(orchestrator: Any) -> None:
        execute = orchestrator._execute_action

        def note(action: Any) -> Any:
            seen.append(action.target_id)
            return execute(action)

        orchestrator._execute_action = note

    found = run(tmp_path, reply, instructions=FREE, prepare=prepare, sections={"steps": 2})
    assert sorted(seen[3:]) == sorted(tried)
    assert found.actions["ids"] == {"whole": 0, "mapped": 0, "ambiguous": 1, "unknown": 2}
    assert count(found, "VOTE")["refused"] == {"no such post": 3}


def test_a_whole_id_needs_no_mapping(tmp_path: Path) -> None:
    feed: list[Any] = []

    def reply(request: Request, put: int) -> str:
        if request.step == 0:
            return POST
        whole = feed[0].get_ranked_posts()[0].post_id
        return answer("VOTE", post_id=whole, direction=-1)

    def prepare(orchestrator: Any) -> None:
        feed.append(orchestrator.feed)

    found = run(tmp_path, reply, instructions=FREE, prepare=prepare, sections={"steps": 2})
    assert count(found, "VOTE") == all_executed(3)
    assert found.actions["ids"]["whole"] == 3


@both_modes
def test_a_used_up_limit_takes_the_branch_away(mode: Any, tmp_path: Path) -> None:
    offered: dict[int, set[str]] = {}

    def reply(request: Request, put: int) -> str:
        assert request.schema is not None
        names = {
            branch["properties"]["action_type"]["const"]
            for branch in request.schema.schema["anyOf"]
        }
        offered.setdefault(request.step, names)
        return POST if "POST" in names else NOOP

    limits = {"posts_per_epoch": 1}
    found = run(tmp_path, reply, mode=mode, sections={"steps": 2, "rate_limits": limits})
    assert offered[0] >= {"NOOP", "POST", "PROPOSE_INTERACTION"}
    assert offered[1] & {"POST", "REPLY"} == set()
    assert "VOTE" in offered[1]
    assert len(found.posts) == 3
    assert found.actions["executed_share"] == 1.0


def test_a_post_against_the_limit_is_refused_for_it(tmp_path: Path) -> None:
    limits = {"posts_per_epoch": 1}
    found = run(
        tmp_path,
        lambda r, p: POST,
        instructions=FREE,
        sections={"steps": 2, "rate_limits": limits},
    )
    assert count(found, "POST")["executed"] == 3
    assert count(found, "POST")["valid"] == 3
    assert count(found, "POST")["refused"] == {"rate limit": 3}


# --- tasks


def work(request: Request, put: int) -> str:
    """Everyone claims the first task that is shown; who has one hands it in."""
    if mine := listed(request, "SUBMIT_OUTPUT", "task_id"):
        assert mine == in_prompt(request, "Your Active Tasks")
        return answer("SUBMIT_OUTPUT", task_id=mine[0], content="done")
    if open_tasks := listed(request, "CLAIM_TASK", "task_id"):
        assert open_tasks == in_prompt(request, "Available Tasks")
        return answer("CLAIM_TASK", task_id=open_tasks[0])
    return NOOP


def test_a_task_claimed_by_two_goes_to_the_first_and_is_lost_to_the_other(tmp_path: Path) -> None:
    found = run(tmp_path, work, prepare=tasks(1), sections={"steps": 2})
    [task] = found.orchestrator.task_pool._tasks.values()
    assert [output.content for output in task.outputs] == ["done"]
    assert task.status.value == "submitted"
    lost = {"the task is not open": 2}
    expected = {"chosen": 3, "valid": 3, "executed": 1, "lost": lost, "refused": {}}
    assert count(found, "CLAIM_TASK") == expected
    assert count(found, "SUBMIT_OUTPUT") == all_executed(1)
    assert found.actions["executed_share"] == 1.0


def test_one_after_the_other_nobody_claims_what_is_taken(tmp_path: Path) -> None:
    found = run(tmp_path, work, mode="serial", prepare=tasks(2), sections={"steps": 2})
    pool = found.orchestrator.task_pool._tasks.values()
    assert [task.status.value for task in pool] == ["submitted", "submitted"]
    assert count(found, "CLAIM_TASK") == all_executed(2)
    assert count(found, "SUBMIT_OUTPUT") == all_executed(2)


def test_switched_off_no_task_is_ever_claimed(tmp_path: Path) -> None:
    def reply(request: Request, put: int) -> str:
        return answer("CLAIM_TASK", task_id=in_prompt(request, "Available Tasks")[0])

    found = run(tmp_path, reply, prepare=tasks(1), instructions=OFF)
    assert count(found, "CLAIM_TASK")["refused"] == {"no such task": 3}
    assert found.actions["executed_share"] == 0.0


def test_a_task_of_another_is_refused_and_not_lost(tmp_path: Path) -> None:
    seen: list[str] = []

    def reply(request: Request, put: int) -> str:
        if request.step == 0 and request.agent_id == "llm_1":
            seen.extend(in_prompt(request, "Available Tasks"))
            return answer("CLAIM_TASK", task_id=seen[0])
        if request.step == 0 or request.agent_id == "llm_1":
            return NOOP
        whole = next(task for task in pools[0]._tasks if task.startswith(seen[0]))
        return answer("SUBMIT_OUTPUT", task_id=whole, content="mine")

    pools: list[Any] = []

    def prepare(orchestrator: Any) -> None:
        tasks(1)(orchestrator)
        pools.append(orchestrator.task_pool)

    found = run(
        tmp_path, reply, [llm(2)], instructions=FREE, prepare=prepare, sections={"steps": 2}
    )
    assert count(found, "CLAIM_TASK") == all_executed(1)
    refused = {"the task is not the agent's": 1}
    expected = {"chosen": 1, "valid": 0, "executed": 0, "lost": {}, "refused": refused}
    assert count(found, "SUBMIT_OUTPUT") == expected


# --- proposals


def propose(counterparty: str) -> Any:
    def reply(request: Request, put: int) -> str:
        if request.kind == "accept":
            return ACCEPT
        return answer(
            "PROPOSE_INTERACTION",
            counterparty_id=counterparty,
            interaction_type="collaboration",
            content="deal",
        )

    return reply


def test_proposals_name_agents_that_are_shown_and_are_decided(tmp_path: Path) -> None:
    def reply(request: Request, put: int) -> str:
        if request.kind == "accept":
            return ACCEPT
        names = listed(request, "PROPOSE_INTERACTION", "counterparty_id")
        assert request.agent_id not in names
        return str(propose(names[-1])(request, put))

    found = run(tmp_path, reply)
    [epoch] = found.orchestrator._epoch_metrics
    assert epoch.accepted_interactions == 3
    assert count(found, "PROPOSE_INTERACTION") == all_executed(3)
    assert found.actions["decisions"] == {"accepted": 3, "rejected": 0, "unanswered": 0}


def test_a_proposal_to_nobody_is_refused_though_upstream_takes_it(tmp_path: Path) -> None:
    found = run(tmp_path, propose("nobody"), instructions=OFF)
    assert len(found.orchestrator.state.pending_proposals) == 3
    counted = count(found, "PROPOSE_INTERACTION")
    assert counted["executed"] == 0
    assert counted["refused"] == {"no such agent": 3}


def test_a_councils_decision_is_mapped_and_counted(tmp_path: Path) -> None:
    agents = [council(3), {"type": "honest"}]
    found = run(tmp_path, propose("@HONEST_1"), agents)
    assert count(found, "PROPOSE_INTERACTION") == all_executed(1)
    assert found.actions["ids"]["mapped"] == 1


def test_a_council_that_votes_is_told_apart_from_one_that_waits(tmp_path: Path) -> None:
    vote = answer("VOTE", post_id="x", direction=1)
    found = run(tmp_path, lambda r, p: vote, [council(3)])
    assert count(found, "VOTE")["refused"] == {"not an action of LLM agents": 1}


# --- what is no action


def test_what_has_no_answer_is_no_choice(tmp_path: Path) -> None:
    config = SchedulerConfig(on_failure="noop")
    found = run(tmp_path, reject, config=config)
    assert found.actions["by_action"] == {}
    assert found.actions["unanswered"] == 3
    assert found.actions["executed_share"] is None
    assert "3 unanswered" in render(found.actions)


def test_free_text_that_names_no_action_is_counted_apart(tmp_path: Path) -> None:
    odd = {"llm_1": "no idea", "llm_2": '{"action_type": 7}', "llm_3": '{"action_type": "DANCE"}'}
    found = run(tmp_path, lambda r, p: odd[r.agent_id], instructions=FREE)
    assert found.actions["unanswered"] == 1
    assert found.actions["unreadable"] == 1
    refused = {"not an action of LLM agents": 1}
    expected = {"chosen": 1, "valid": 0, "executed": 0, "lost": {}, "refused": refused}
    assert found.actions["by_action"] == {"(unknown)": expected}


def test_an_id_of_the_wrong_type_hurts_nobody(tmp_path: Path) -> None:
    def reply(request: Request, put: int) -> str:
        return answer("VOTE", post_id=["a"], direction=1)

    found = run(tmp_path, reply, instructions=FREE)
    assert count(found, "VOTE")["refused"] == {"no such post": 3}


def test_scripted_agents_are_not_counted(tmp_path: Path) -> None:
    found = run(tmp_path, lambda r, p: NOOP, [llm(), {"type": "honest", "count": 3}])
    assert found.actions["by_action"] == {"NOOP": all_executed(1)}


def test_without_models_there_is_nothing_to_say(tmp_path: Path) -> None:
    found = run(tmp_path, lambda r, p: NOOP, [{"type": "honest", "count": 2}])
    assert render(found.actions) == ""


# --- the command


def fake_run(run_dir: Path, *more: object, full_ids: bool = True) -> int:
    config = write_config(
        Path("config.yaml"), backend={"kind": "fake"}, actions={"full_ids": full_ids}
    )
    mode = ("--inference-scheduler", "batch", "--run-dir", run_dir, "--inference-config", config)
    return swarm("run", "s.yaml", *mode, *more)


@pytest.mark.parametrize("full_ids", [True, False])
def test_summary_and_manifest_say_what_became_of_the_actions(
    full_ids: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenario(tmp_path / "s.yaml", [llm(6)], epochs=2, steps=4)
    assert fake_run(Path("a"), full_ids=full_ids) == 0
    printed = capsys.readouterr().out
    said = manifest(Path("a"))
    assert said["configuration"]["actions"] == {"full_ids": full_ids}
    assert said["identity"]["full_ids"] is full_ids
    counts = said["actions"]
    assert counts["full_ids"] is full_ids
    assert render(counts) in printed
    acts = [line for line in json_lines(Path("a/transcript.jsonl")) if line["kind"] == "act"]
    assert sum(one["chosen"] for one in counts["by_action"].values()) == len(acts) == 48
    for one in counts["by_action"].values():
        gone = sum(one["lost"].values()) + sum(one["refused"].values())
        assert one["chosen"] == one["executed"] + gone
    votes = counts["by_action"]["VOTE"]
    assert votes["chosen"] > 0
    assert votes["executed"] == (votes["chosen"] if full_ids else 0)
    assert (counts["executed_share"] == 1.0) is full_ids


def test_a_run_cannot_go_on_with_the_switch_turned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scenario(tmp_path / "s.yaml", [llm(2)])
    assert fake_run(Path("a")) == 0
    assert fake_run(Path("a"), "--resume", full_ids=False) == 2
    assert "full_ids was True, is False" in capsys.readouterr().err


@both_modes
def test_two_runs_of_one_seed_send_the_same_schemas(mode: str, tmp_path: Path) -> None:
    write_scenario(tmp_path / "s.yaml", [llm(4), {"type": "honest", "count": 2}], steps=4)
    config = write_config(Path("config.yaml"), backend={"kind": "fake"})
    for name in ("a", "b"):
        arguments = ["--inference-scheduler", mode, "--inference-config", config, "-q"]
        assert swarm("run", "s.yaml", *arguments, "--run-dir", name) == 0
    assert manifest(Path("a"))["trace_hash"] == manifest(Path("b"))["trace_hash"]
    assert manifest(Path("a"))["actions"] == manifest(Path("b"))["actions"]


# --- other callers


def test_kernels_are_submitted_and_verified(tmp_path: Path) -> None:
    def reply(request: Request, put: int) -> str:
        if submissions := listed(request, "VERIFY_KERNEL", "submission_id"):
            return answer("VERIFY_KERNEL", submission_id=submissions[0])
        challenge = listed(request, "SUBMIT_KERNEL", "challenge_id")[-1]
        return answer("SUBMIT_KERNEL", challenge_id=challenge, cuda_code="__global__ void f() {}")

    sections = {"steps": 2, "kernel_oracle": {"enabled": True, "seed": 1}}
    found = run(tmp_path, reply, [llm(2)], sections=sections)
    assert count(found, "SUBMIT_KERNEL") == all_executed(2)
    assert count(found, "VERIFY_KERNEL") == all_executed(2)
    assert found.actions["ids"]["unknown"] == 0


def test_an_ensemble_is_one_action(tmp_path: Path) -> None:
    governance = {"self_ensemble_enabled": True, "self_ensemble_samples": 3}
    found = run(tmp_path, lambda r, p: POST, [llm()], sections={"governance": governance})
    assert len(found.asked) == 3
    assert found.actions["by_action"] == {"POST": all_executed(1)}
