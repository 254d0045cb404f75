"""SWARM's LLM agents with their model calls led through the scheduler."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from swarm.agents.llm_agent import LLMAgent

from scheduler.config import SchedulerConfig
from scheduler.errors import ServerFault, StepAborted
from scheduler.types import Request
from swarm_integration.schemas import Instructions
from tests.swarm.simulations import (
    NOOP,
    POST,
    ReplyingBackend,
    Simulated,
    awm,
    council,
    json_lines,
    llm,
    reject,
    simulate,
    write_scenario,
)

NOOP_ON_FAILURE = SchedulerConfig(on_failure="noop", retry_base_s=0.001, max_reasks=2)
REFUSAL = '{"accept": false, "reasoning": "no"}'
RANKING = "FINAL RANKING:\n1. Response A\n2. Response B\n3. Response C"


def posts(request: Request, put: int) -> str:
    return REFUSAL if request.kind == "accept" else POST


def usage(run: Simulated, agent_id: str) -> dict[str, Any]:
    stats: dict[str, Any] = run.agent(agent_id).usage_stats.to_dict()
    return stats


def audited(path: Path) -> Any:
    def prepare(orchestrator: Any) -> None:
        for agent in orchestrator.get_all_agents():
            if isinstance(agent, LLMAgent):
                agent.llm_config.prompt_audit_path = str(path)

    return prepare


@pytest.mark.parametrize("mode", ["batch", "serial"])
def test_actions_that_models_choose_take_place(mode: Any, tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [llm(2), {"type": "honest"}], steps=2)
    run = simulate(scenario, ReplyingBackend(posts), mode=mode)
    authors = [post.author_id for post in run.posts]
    assert sorted(author for author in authors if author.startswith("llm")) == [
        *["llm_1"] * 2,
        *["llm_2"] * 2,
    ]


def test_batch_asks_all_agents_of_a_step_in_one_round(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [llm(5)], steps=3)
    run = simulate(scenario, ReplyingBackend(posts))
    assert run.rounds == 3
    assert [len(completions) for _, completions in run.phases] == [5, 5, 5]


def test_serial_asks_one_after_the_other_and_each_sees_what_came_before(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [llm(3)])
    serial = ReplyingBackend(posts)
    run = simulate(scenario, serial, mode="serial")
    assert run.rounds == 3
    shown = [request.messages[1].content.count("[hello]") for request in serial.requests]
    assert shown == [0, 1, 2]
    batch = ReplyingBackend(posts)
    simulate(scenario, batch)
    assert [request.messages[1].content.count("[hello]") for request in batch.requests] == [0] * 3


def test_request_says_who_asks_when_and_with_which_parameters(tmp_path: Path) -> None:
    block: dict[str, Any] = {
        "temperature": 0.25,
        "max_tokens": 33,
        "timeout": 12.5,
        "max_retries": 5,
        "seed": 99,
        "model": "mine",
    }
    scenario = write_scenario(tmp_path / "s.yaml", [llm(**block)], epochs=2, steps=2)
    backend = ReplyingBackend(posts)
    simulate(scenario, backend)
    places = [(r.agent_id, r.epoch, r.step, r.kind, r.ordinal) for r in backend.requests]
    assert places == [
        ("llm_1", 0, 0, "act", 0),
        ("llm_1", 0, 1, "act", 0),
        ("llm_1", 1, 0, "act", 0),
        ("llm_1", 1, 1, "act", 0),
    ]
    first = backend.requests[0]
    assert (first.sampling.temperature, first.sampling.max_tokens) == (0.25, 33)
    assert (first.timeout_s, first.max_retries, first.base_seed) == (12.5, 5, 99)
    assert (first.model, first.backend) == ("mine", "default")


def test_proposals_are_decided_in_a_phase_of_their_own(tmp_path: Path) -> None:
    def reply(request: Request, put: int) -> str:
        if request.kind == "accept":
            return '{"accept": true, "reasoning": "fine"}'
        if request.agent_id != "llm_1":
            return NOOP
        params = {"counterparty_id": "llm_2", "interaction_type": "reply", "content": "deal"}
        return json.dumps({"action_type": "PROPOSE_INTERACTION", "reasoning": "", "params": params})

    run = simulate(write_scenario(tmp_path / "s.yaml", [llm(2)]), ReplyingBackend(reply))
    assert [(kind, [c.request.agent_id for c in asked]) for kind, asked in run.phases] == [
        ("act", ["llm_1", "llm_2"]),
        ("accept", ["llm_2"]),
    ]
    assert run.orchestrator._epoch_metrics[0].accepted_interactions == 1


def test_usage_statistics_count_tokens_of_every_answer(tmp_path: Path) -> None:
    def reply(request: Request, put: int) -> str:
        return "no action" if put == 0 and request.step == 0 else NOOP

    run = simulate(write_scenario(tmp_path / "s.yaml", [llm()], steps=2), ReplyingBackend(reply))
    assert usage(run, "llm_1") == {
        "total_requests": 2,
        "total_input_tokens": 300,
        "total_output_tokens": 21,
        "total_retries": 0,
        "total_failures": 0,
        "estimated_cost_usd": 0.0,
    }


def test_a_local_model_costs_nothing_whatever_it_is_called(tmp_path: Path) -> None:
    path = write_scenario(tmp_path / "s.yaml", [llm(model="claude-3-haiku-20240307")], steps=2)
    found = usage(simulate(path, ReplyingBackend(lambda *_: NOOP)), "llm_1")
    assert found["total_input_tokens"] > 0
    assert found["estimated_cost_usd"] == 0.0


def test_usage_statistics_count_retries(tmp_path: Path) -> None:
    def reply(request: Request, put: int) -> str:
        if put < 2:
            raise ServerFault("try again")
        return NOOP

    scenario = write_scenario(tmp_path / "s.yaml", [llm()])
    run = simulate(scenario, ReplyingBackend(reply), config=NOOP_ON_FAILURE)
    stats = usage(run, "llm_1")
    assert (stats["total_requests"], stats["total_retries"], stats["total_failures"]) == (1, 2, 0)


def test_cost_tracking_off_records_no_success_as_upstream(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [llm(cost_tracking=False)])
    assert usage(simulate(scenario, ReplyingBackend(posts)), "llm_1")["total_requests"] == 0
    failed = simulate(scenario, ReplyingBackend(reject), config=NOOP_ON_FAILURE)
    assert usage(failed, "llm_1")["total_failures"] == 1


def test_prompt_audit_records_question_answer_and_tokens(tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    scenario = write_scenario(tmp_path / "s.yaml", [llm()])
    backend = ReplyingBackend(posts)
    simulate(scenario, backend, prepare=audited(audit))
    [entry] = json_lines(audit)
    assert (entry["agent_id"], entry["kind"], entry["error"]) == ("llm_1", "act", None)
    assert entry["response_text"] == POST
    assert entry["tokens"] == {"input": 100, "output": 7}
    assert entry["user_prompt"] == backend.requests[0].messages[1].content


def test_failed_request_is_a_counted_noop_under_noop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audit = tmp_path / "audit.jsonl"
    scenario = write_scenario(tmp_path / "s.yaml", [llm(2)])

    def reply(request: Request, put: int) -> str:
        return reject(request, put) if request.agent_id == "llm_1" else POST

    with caplog.at_level(logging.ERROR, logger="swarm"):
        run = simulate(
            scenario, ReplyingBackend(reply), config=NOOP_ON_FAILURE, prepare=audited(audit)
        )
    authors = [post.author_id for post in run.posts]
    assert authors == ["llm_2"]
    stats = usage(run, "llm_1")
    assert (stats["total_requests"], stats["total_failures"]) == (1, 1)
    errors = [entry for entry in json_lines(audit) if entry["kind"] == "act_error"]
    assert [entry["agent_id"] for entry in errors] == ["llm_1"]
    assert "refused by the test" in errors[0]["error"]
    assert [completion.error is not None for completion in run.asked] == [True, False]
    assert "llm_1" in caplog.text


def test_failed_request_ends_the_run_under_abort(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [llm(2)], steps=3)
    backend = ReplyingBackend(reject)
    with pytest.raises(StepAborted, match="llm_1"):
        simulate(scenario, backend)
    assert {request.step for request in backend.requests} == {0}


def test_answers_that_never_hold_the_schema_become_a_noop(tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    scenario = write_scenario(tmp_path / "s.yaml", [llm()])
    wrong = '{"action_type": "DESTROY", "reasoning": "secret-answer-text"}'
    backend = ReplyingBackend(lambda request, put: wrong)
    run = simulate(scenario, backend, config=NOOP_ON_FAILURE, prepare=audited(audit))
    assert len(backend.requests) == 3
    assert len(set(backend.seeds)) == 3
    assert run.posts == []
    stats = usage(run, "llm_1")
    assert (stats["total_requests"], stats["total_failures"]) == (1, 1)
    assert (stats["total_input_tokens"], stats["total_output_tokens"]) == (300, 21)
    [entry] = json_lines(audit)
    assert entry["kind"] == "act_error"
    assert "3 answers broke the schema 'act'" in entry["error"]
    assert "secret-answer-text" not in entry["error"]


@pytest.mark.parametrize("fails", [False, True])
def test_agents_get_their_own_methods_back(fails: bool, tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [llm(), council(), awm()], awm={"enabled": True})
    found: list[Any] = []
    limits: list[float] = []

    def prepare(orchestrator: Any) -> None:
        found.extend(orchestrator.get_all_agents())

    def reply(request: Request, put: int) -> str:
        limits.append(found[1].council_config.timeout_per_member)
        return reject(request, put) if fails else NOOP

    try:
        simulate(scenario, ReplyingBackend(reply), prepare=prepare)
    except StepAborted:
        assert fails
    own, members, delegate = found[0], found[1]._member_agents.values(), found[2]._llm_delegate
    for agent in (own, *members, delegate):
        assert "_call_llm_async" not in vars(agent)
        assert "_call_llm_sync" not in vars(agent)
    assert min(limits) > 1e6
    assert found[1].council_config.timeout_per_member == 30.0


def council_reply(request: Request, put: int) -> str:
    """Members answer, then rank; the chairman, who is the first member, then sums up."""
    return RANKING if request.ordinal == 1 else POST


def test_stages_of_a_council_are_three_rounds(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [council(3), llm()])
    run = simulate(scenario, ReplyingBackend(council_reply))
    assert run.rounds == 3
    members = [f"council_1_member_m{n}" for n in range(3)]
    asked = [(c.request.agent_id, c.request.ordinal) for c in run.asked]
    assert asked[:7] == [
        *((member, 0) for member in members),
        *((member, 1) for member in members),
        (members[0], 2),
    ]
    assert asked[7:] == [("llm_1", 0)]
    authors = [post.author_id for post in run.posts]
    assert sorted(authors) == ["council_1", "llm_1"]
    stats = run.agent("council_1").get_usage_stats()
    assert (stats["total_requests"], stats["total_failures"]) == (7, 0)


def test_waiting_for_a_slot_does_not_count_against_a_councils_limit(tmp_path: Path) -> None:
    """Twelve members on one slot wait 0.12 s for the last answer; the limit is 0.05 s."""
    section = council(12, timeout_per_member=0.05, min_members_required=12)
    scenario = write_scenario(tmp_path / "s.yaml", [section])
    backend = ReplyingBackend(council_reply, slots=1, delay_s=0.01)
    run = simulate(scenario, backend, config=NOOP_ON_FAILURE)
    assert len(run.asked) == 25
    assert all(completion.error is None for completion in run.asked)
    assert [post.author_id for post in run.posts] == ["council_1"]


def test_councils_limit_is_the_deadline_of_each_attempt(tmp_path: Path) -> None:
    scenario = write_scenario(
        tmp_path / "s.yaml", [council(2, timeout_per_member=0.02, min_members_required=1)]
    )
    run = simulate(
        scenario,
        ReplyingBackend(council_reply, delay_s=5.0),
        config=SchedulerConfig(on_failure="noop", retry_base_s=0.001, retry_cap_s=0.001),
    )
    assert {completion.request.timeout_s for completion in run.asked} == {0.02}
    assert all("no answer within 0.02 s" in str(completion.error) for completion in run.asked)


def test_councils_that_share_a_configuration_get_its_limit_back(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [{**council(2), "count": 2}])
    run = simulate(scenario, ReplyingBackend(council_reply))
    first, second = run.agent("council_1"), run.agent("council_2")
    assert first.council_config is second.council_config
    assert first.council_config.timeout_per_member == 30.0
    assert len(run.asked) == 10


def test_tool_planning_agents_ask_in_the_same_round_as_the_others(tmp_path: Path) -> None:
    def reply(request: Request, put: int) -> str:
        if "llm_delegate" not in request.agent_id:
            return POST
        tool = request.messages[1].content.split("- **", 1)[1].split("**", 1)[0]
        return json.dumps({"tool_calls": [{"tool_name": tool, "arguments": {}}]})

    scenario = write_scenario(tmp_path / "s.yaml", [awm(3), llm(2)], awm={"enabled": True})
    run = simulate(scenario, ReplyingBackend(reply))
    assert run.rounds == 1
    delegates = [f"awm_agent_{n}_llm_delegate" for n in (1, 2, 3)]
    assert [c.request.agent_id for c in run.asked] == [*delegates, "llm_1", "llm_2"]
    assert all(c.request.schema is None for c in run.asked[:3])
    for number in (1, 2, 3):
        agent = run.agent(f"awm_agent_{number}")
        assert agent._llm_delegate.usage_stats.total_requests == 1
        assert agent._llm_delegate.usage_stats.total_failures == 0


def test_tool_planning_agent_falls_back_to_its_script_under_noop(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [awm(2)], awm={"enabled": True})
    run = simulate(scenario, ReplyingBackend(reject), config=NOOP_ON_FAILURE)
    assert [completion.error is not None for completion in run.asked] == [True, True]
    assert run.orchestrator._epoch_metrics


def test_aborted_run_with_tool_planning_agents_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [awm(3)], awm={"enabled": True})
    with pytest.raises(StepAborted):
        simulate(scenario, ReplyingBackend(reject))
    assert "LLM call failed" not in caplog.text


def test_self_ensemble_asks_several_times_with_different_seeds(tmp_path: Path) -> None:
    governance = {"self_ensemble_enabled": True, "self_ensemble_samples": 3}
    scenario = write_scenario(tmp_path / "s.yaml", [llm(2)], governance=governance)
    backend = ReplyingBackend(posts)
    run = simulate(scenario, backend)
    asked = [(c.request.agent_id, c.request.ordinal) for c in run.asked]
    assert asked == [(f"llm_{n}", ordinal) for n in (1, 2) for ordinal in (0, 1, 2)]
    assert len(set(backend.seeds)) == 6
    assert run.rounds == 3


@pytest.mark.parametrize("mode", ["batch", "serial"])
def test_half_a_surrogate_pair_in_what_others_said_silences_nobody(
    mode: Any, tmp_path: Path
) -> None:
    """Without schemas nothing keeps it out of the state, and so of the prompts."""
    half = POST.replace('"content": "', '"content": "\\ud83d ')
    assert half != POST
    scenario = write_scenario(tmp_path / "s.yaml", [llm(2)], steps=3)
    backend = ReplyingBackend(lambda request, put: half)
    free = Instructions(structured=False)
    run = simulate(scenario, backend, mode=mode, instructions=free)
    assert len(run.posts) == 6
    assert any("\ufffd" in one.messages[-1].content for one in backend.requests)
