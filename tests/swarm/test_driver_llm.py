"""The two modes with LLM agents among scripted ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from swarm.models.events import EventType

from scheduler.backends.fake import FakeBackend
from scheduler.config import SchedulerConfig
from scheduler.errors import StepAborted
from scheduler.types import Request
from swarm_integration.rundir import transcript_lines
from tests.swarm.simulations import (
    NOOP,
    POST,
    ReplyingBackend,
    council,
    llm,
    reject,
    simulate,
    write_scenario,
)

both_modes = pytest.mark.parametrize("mode", ["batch", "serial"])
ACCEPT = '{"accept": true, "reasoning": "yes"}'


def offers(request: Request, put: int) -> str:
    """Everyone proposes to the next; everyone accepts."""
    if request.kind == "accept":
        return ACCEPT
    following = int(request.agent_id.rsplit("_", 1)[1]) % 3 + 1
    params = {
        "counterparty_id": f"llm_{following}",
        "interaction_type": "collaboration",
        "content": "deal",
    }
    answer = {"action_type": "PROPOSE_INTERACTION", "reasoning": "r", "params": params}
    return json.dumps(answer)


@both_modes
def test_proposals_of_llm_agents_are_accepted_and_paid(mode: Any, tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [llm(3)], epochs=2, steps=2)
    run = simulate(scenario, ReplyingBackend(offers), mode=mode)
    metrics = run.orchestrator._epoch_metrics
    assert [epoch.accepted_interactions for epoch in metrics] == [6, 6]


def test_accepts_of_a_step_are_one_round(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [llm(3)])
    run = simulate(scenario, ReplyingBackend(offers))
    assert run.rounds == 2
    assert [(kind, len(asked)) for kind, asked in run.phases] == [("act", 3), ("accept", 3)]


def test_agent_with_several_proposals_has_an_ordinal_for_each(tmp_path: Path) -> None:
    def all_to_the_first(request: Request, put: int) -> str:
        return offers(request, put).replace("llm_2", "llm_1").replace("llm_3", "llm_1")

    scenario = write_scenario(tmp_path / "s.yaml", [llm(3)])
    backend = ReplyingBackend(all_to_the_first)
    run = simulate(scenario, backend)
    accepts = [c.request for kind, asked in run.phases if kind == "accept" for c in asked]
    assert {request.agent_id for request in accepts} == {"llm_1"}
    assert [request.ordinal for request in accepts] == list(range(len(accepts)))
    assert len(accepts) >= 2
    assert len(set(backend.seeds)) == len(backend.seeds)


def test_scripted_and_llm_agents_act_in_eligible_order(tmp_path: Path) -> None:
    scenario = write_scenario(
        tmp_path / "s.yaml", [llm(), {"type": "honest"}, llm(), {"type": "opportunistic"}], steps=4
    )
    acted: list[str] = []

    def prepare(orchestrator: Any) -> None:
        execute = orchestrator._execute_action

        def note(action: Any) -> Any:
            acted.append(action.agent_id)
            return execute(action)

        orchestrator._execute_action = note

    simulate(
        scenario,
        ReplyingBackend(lambda r, _: ACCEPT if r.kind == "accept" else NOOP),
        prepare=prepare,
    )
    assert len(acted) == 16
    steps = [acted[start : start + 4] for start in range(0, 16, 4)]
    assert [sorted(step) for step in steps] == [
        ["honest_1", "llm_1", "llm_2", "opportunistic_1"]
    ] * 4


def run_text(scenario: Path, **settings: Any) -> list[str]:
    """What the run's agents were told and asked, without SWARM's random ids."""
    delays = settings.pop("delays", 0)
    backend = FakeBackend(
        16, delay=lambda request, _: (hash((request.agent_id, delays)) % 5) / 1000
    )
    run = simulate(scenario, backend, config=SchedulerConfig(**settings))
    names = ("agent_id", "kind", "ordinal", "epoch", "step", "seed", "reask")
    lines = [line for c in run.asked for line in transcript_lines(c)]
    return [str([line[name] for name in names]) for line in lines if line["step"] == 0]


def test_order_and_seeds_do_not_depend_on_slots_batches_or_speed(tmp_path: Path) -> None:
    """The first acts only: later prompts hold ids that SWARM draws at random."""
    scenario = write_scenario(tmp_path / "s.yaml", [llm(6), council(3)])
    expected = [line for line in run_text(scenario) if "accept" not in line]
    for number, (slots, max_batch) in enumerate([(1, 1), (4, 16), (16, 1), (16, 16)]):
        found = run_text(scenario, slots=slots, max_batch=max_batch, delays=number)
        assert [line for line in found if "accept" not in line] == expected


@both_modes
def test_aborted_run_emits_no_end_and_saves_no_memory(mode: Any, tmp_path: Path) -> None:
    memory = tmp_path / "memory.json"
    scenario = write_scenario(
        tmp_path / "s.yaml", [llm(2)], outputs={"graph_memory_path": str(memory)}
    )
    events: list[Any] = []

    def prepare(orchestrator: Any) -> None:
        orchestrator.subscribe_events(events.append)

    with pytest.raises(StepAborted):
        simulate(scenario, ReplyingBackend(reject), mode=mode, prepare=prepare)
    kinds = [event.event_type for event in events]
    assert EventType.SIMULATION_STARTED in kinds
    assert EventType.SIMULATION_ENDED not in kinds
    assert not memory.exists()


def test_agent_that_raises_ends_the_run_instead_of_being_dropped(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [llm(2), {"type": "honest"}])

    def prepare(orchestrator: Any) -> None:
        def broken(observation: Any) -> Any:
            raise ZeroDivisionError("broken agent")

        orchestrator.get_all_agents()[2].act = broken

    with pytest.raises(ZeroDivisionError, match="broken agent"):
        simulate(scenario, ReplyingBackend(lambda r, _: POST), prepare=prepare)


@both_modes
def test_agents_remember_their_reasons_as_upstream(mode: Any, tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [llm()], steps=2)
    run = simulate(scenario, ReplyingBackend(lambda r, _: POST), mode=mode)
    reasons = [item["reasoning"] for item in run.agent("llm_1").get_memory(limit=10)]
    assert reasons == ["speak", "speak"]
