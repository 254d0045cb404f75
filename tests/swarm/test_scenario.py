"""Reading scenarios, and a rehearsal that leaves no trace."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler.seeds import request_seed
from swarm_integration.errors import ScenarioError
from swarm_integration.scenario import load_scenario, rehearse
from swarm_integration.unread import note_of, unread_keys
from tests.swarm.simulations import (
    NOOP,
    ReplyingBackend,
    awm,
    council,
    llm,
    manifest,
    simulate,
    swarm,
    write_config,
    write_scenario,
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1,", "not YAML"),
        ("\x00", "not YAML"),
        ("- honest\n- llm\n", "not a scenario"),
        ("just text", "not a scenario"),
        ("", "not a scenario"),
        ("scenario_id: x\n", "has no agents"),
        ("agents: []\n", "has no agents"),
        ("agents: {type: honest}\n", "has no agents"),
        ("agents: 3\n", "has no agents"),
        ("agents: [{type: honest}]\ngovernance: {tax_rate_wrong: 1}\nrate_limits: 7\n", "scenario"),
    ],
)
def test_file_that_is_no_scenario_is_refused_by_name(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError, match=says) as caught:
        load_scenario(path)
    assert "bad.yaml" in str(caught.value)


def test_binary_file_is_not_yaml(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ScenarioError, match="not YAML"):
        load_scenario(path)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_path_that_is_no_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="is not a file"):
        load_scenario(tmp_path / name)


@pytest.mark.parametrize(
    "agents",
    [
        [{"type": "no_such_agent"}],
        [llm(provider="nobody")],
        [llm(base_url="ftp://host/v1")],
        [llm(temperature=3.0)],
        [{"type": "llm", "llm": ["a", "list"]}],
        ["honest"],
    ],
)
def test_scenario_that_cannot_be_built_is_refused(agents: Any, tmp_path: Path) -> None:
    path = write_scenario(tmp_path / "bad.yaml", agents)
    with pytest.raises(ScenarioError, match=r"bad\.yaml can't be built"):
        rehearse(path, {})


def test_overrides_beat_the_file_and_none_leaves_it(tmp_path: Path) -> None:
    path = write_scenario(tmp_path / "s.yaml", [llm()], epochs=3, steps=4)
    config = load_scenario(path, {"seed": 0, "n_epochs": 1, "steps_per_epoch": None})
    orchestrator = config.orchestrator_config
    assert (orchestrator.seed, orchestrator.n_epochs, orchestrator.steps_per_epoch) == (0, 1, 4)
    assert rehearse(path, {"seed": 0}).seed == 0


def test_rehearsal_finds_the_llm_agents_in_order_with_their_first_prompts(tmp_path: Path) -> None:
    agents = [{"type": "honest"}, llm(2), council(2), awm()]
    rehearsal = rehearse(write_scenario(tmp_path / "s.yaml", agents, awm={"enabled": True}), {})
    assert list(rehearsal.blocks) == [
        "llm_1",
        "llm_2",
        "council_1_member_m0",
        "council_1_member_m1",
        "awm_agent_1_llm_delegate",
    ]
    assert {prompt.agent_id for prompt in rehearsal.prompts} == set(rehearsal.blocks)


def test_rehearsed_prompts_are_those_of_the_run(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [llm(2), {"type": "honest", "count": 2}])
    rehearsed = rehearse(scenario, {}).prompts[::2]
    backend = ReplyingBackend(lambda request, put: NOOP)
    simulate(scenario, backend)
    acts = [request.messages for request in backend.requests if request.kind == "act"]
    sent = [(system.content, masked(user.content)) for system, user in acts]
    assert sent == [(prompt.system, masked(prompt.user)) for prompt in rehearsed]


def masked(prompt: str) -> str:
    """The prompt without the simulation's and tasks' ids, which SWARM draws at random."""
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", prompt)


def test_rehearsed_council_asks_what_it_asks_in_the_run_less_the_quoted_answers(
    tmp_path: Path,
) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [council(3)])
    backend = ReplyingBackend(lambda request, put: f"<{request.agent_id}>")
    simulate(scenario, backend)
    sent = [(one.agent_id, one.messages[0].content, one.messages[1].content) for one in
            backend.requests]  # fmt: skip
    rehearsed = rehearse(scenario, {}).prompts[: len(sent)]
    answer = re.compile(r"<(council_1_member_m\d)>")
    assert len(sent) == 2 * 3 + 1
    assert sorted((agent_id, system, answer.sub("", user)) for agent_id, system, user in sent) == (
        sorted((one.agent_id, one.system, one.user) for one in rehearsed)
    )
    assert sorted(len(set(answer.findall(user))) for _, _, user in sent) == [0, 0, 0, 3, 3, 3, 3]
    assert sorted(len(set(one.quotes)) for one in rehearsed) == [0, 0, 0, 3, 3, 3, 3]


def test_rehearsed_planner_asks_what_it_asks_in_the_run(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [awm()], awm={"enabled": True})
    backend = ReplyingBackend(lambda request, put: '{"tool_calls": []}')
    simulate(scenario, backend)
    sent = [(system.content, masked(user.content)) for system, user in
            (request.messages for request in backend.requests)]  # fmt: skip
    rehearsed = [(one.system, masked(one.user)) for one in rehearse(scenario, {}).prompts]
    assert sent
    assert sent == rehearsed


def test_planner_without_tasks_asks_nothing(tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [awm()])
    assert rehearse(scenario, {}).prompts == ()


def seeds(scenario: Path) -> dict[str, int | None]:
    return {name: block.seed for name, block in rehearse(scenario, {}).blocks.items()}


def test_seeds_of_llm_blocks_are_honoured_wherever_they_stand(tmp_path: Path) -> None:
    agents = [
        llm(2, seed=11),
        llm(),
        llm(seed=0),
        council(2, seed=12),
        council(1, min_members_required=1),
        awm(2, llm_seed=13),
    ]
    scenario = write_scenario(tmp_path / "s.yaml", agents, awm={"enabled": True})
    assert seeds(scenario) == {
        "llm_1": 11,
        "llm_2": 11,
        "llm_3": None,
        "llm_4": 0,
        "council_1_member_m0": 12,
        "council_1_member_m1": 12,
        "council_2_member_m0": None,
        "awm_agent_1_llm_delegate": 13,
        "awm_agent_2_llm_delegate": 13,
    }


@pytest.mark.parametrize("seed", [-1, 1.5, "7", True, [1]])
def test_bad_seed_is_refused_with_agent_and_value(seed: Any, tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [llm(), llm(seed=seed)])
    with pytest.raises(ScenarioError, match="seed of llm_2 must be a whole number") as caught:
        rehearse(scenario, {})
    assert repr(seed) in str(caught.value)


def sent_seeds(scenario: Path) -> list[int]:
    backend = ReplyingBackend(lambda request, put: NOOP)
    run = simulate(scenario, backend)
    assert backend.seeds == [request_seed(completion.request) for completion in run.asked]
    return backend.seeds


def test_agents_with_one_seed_are_sampled_with_different_ones(tmp_path: Path) -> None:
    first = sent_seeds(write_scenario(tmp_path / "a.yaml", [llm(3, seed=5)], steps=2))
    assert len(set(first)) == 6
    assert first == sent_seeds(write_scenario(tmp_path / "b.yaml", [llm(3, seed=5)], steps=2))
    other = sent_seeds(write_scenario(tmp_path / "c.yaml", [llm(3, seed=6)], steps=2))
    assert not set(first) & set(other)


def test_without_a_seed_of_its_own_an_agent_takes_the_runs(tmp_path: Path) -> None:
    without = sent_seeds(write_scenario(tmp_path / "a.yaml", [llm()]))
    assert without == sent_seeds(write_scenario(tmp_path / "b.yaml", [llm(seed=7)]))


def test_rehearsal_writes_no_files(tmp_path: Path) -> None:
    outputs = {
        "event_log": str(tmp_path / "events.jsonl"),
        "graph_memory_path": str(tmp_path / "g"),
    }
    block = llm(prompt_audit_path=str(tmp_path / "audit.jsonl"))
    scenario = write_scenario(tmp_path / "s.yaml", [block, {"type": "honest"}], outputs=outputs)
    rehearse(scenario, {})
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


def test_rehearsal_leaves_existing_logs_and_memories_alone(tmp_path: Path) -> None:
    log, memory = tmp_path / "events.jsonl", tmp_path / "memory.json"
    log.write_text("kept\n", encoding="utf-8")
    memory.write_text("{}", encoding="utf-8")
    outputs = {"event_log": str(log), "graph_memory_path": str(memory)}
    rehearse(write_scenario(tmp_path / "s.yaml", [llm()], outputs=outputs), {})
    assert (log.read_text(encoding="utf-8"), memory.read_text(encoding="utf-8")) == ("kept\n", "{}")


def test_rehearsal_leaves_the_module_level_random_state_alone(tmp_path: Path) -> None:
    agents = [llm(2), {"type": "honest", "count": 2}]
    scenario = write_scenario(
        tmp_path / "s.yaml",
        agents,
        network={"topology": "random_erdos_renyi", "edge_probability": 0.5},
    )
    random.seed(3)
    before = random.getstate()
    rehearse(scenario, {})
    assert random.getstate() == before


def test_run_after_a_rehearsal_draws_the_same_numbers_as_without(tmp_path: Path) -> None:
    """Noise and network come from the orchestrator's own random numbers."""
    scenario = write_scenario(
        tmp_path / "s.yaml",
        [llm(2), {"type": "opportunistic", "count": 3}],
        steps=3,
        network={"topology": "random_erdos_renyi", "edge_probability": 0.5},
    )

    def welfare() -> list[float]:
        run = simulate(scenario, ReplyingBackend(lambda request, put: NOOP))
        return [epoch.total_welfare for epoch in run.orchestrator._epoch_metrics]

    first = welfare()
    for _ in range(3):
        rehearse(scenario, {})
    assert welfare() == first


def test_keys_that_swarm_does_not_read_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_scenario(tmp_path / "s.yaml", [llm(1)])
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert unread_keys(path) == []
    data["agents"][0]["llm"]["temprature"] = 0.1
    data["agents"][0]["config"] = {"anything": 1}
    data["success_criteria"] = {"min_epochs": 1}
    data["notes"] = "of mine"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    found = unread_keys(path)
    assert set(found) == {"notes", "agents.0.llm.temprature (temperature?)"}
    config = write_config(tmp_path / "c.yaml", backend={"kind": "fake"})
    words = ("run", path, "--inference-scheduler", "batch", "--inference-config", config)
    run = tmp_path / "run"
    assert swarm(*words, "--run-dir", run) == 0
    err = capsys.readouterr().err
    assert f"note: SWARM does not read these keys of {path}: {', '.join(found)}\n" in err
    assert manifest(run)["unread_keys"] == found
    assert swarm(*words, "--run-dir", tmp_path / "quiet", "--quiet") == 0
    assert "note:" not in capsys.readouterr().err


def test_many_keys_are_named_in_part() -> None:
    [note] = note_of(Path("s.yaml"), [str(n) for n in range(10)])
    assert note.endswith("6, 7 and 2 more")
    assert list(note_of(Path("s.yaml"), [])) == []
