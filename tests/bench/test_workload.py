from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("swarm")

from swarm_integration.bench.workload import (
    MAX_TOKENS,
    PERSONAS,
    Workload,
    load_workload,
    place_of,
    record,
    scenario_of,
)

ELSEWHERE = """
import sys
from pathlib import Path
from swarm_integration.bench.workload import record
print(record(5, 2, "upstream", Path(sys.argv[1])).sha256)
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return record(5, 2, "upstream", tmp_path_factory.mktemp("recorded"))


def test_the_same_options_record_the_same_workload_in_any_process(
    recorded: Workload, tmp_path: Path
) -> None:
    assert record(5, 2, "upstream", tmp_path).sha256 == recorded.sha256
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    words = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == recorded.sha256


def test_a_workload_survives_its_file(recorded: Workload, tmp_path: Path) -> None:
    recorded.save(tmp_path / "workload.json")
    again = load_workload(tmp_path / "workload.json")
    assert again == recorded
    assert again.sha256 == recorded.sha256


def test_rounds_alternate_acts_of_all_agents_and_accepts(recorded: Workload) -> None:
    kinds = [Counter(question.kind for question in one) for one in recorded.rounds]
    assert kinds[0] == {"act": 5}
    assert {kind for one in kinds for kind in one} == {"act", "accept"}
    assert all(len(one) == 1 for one in kinds)


def test_more_agents_than_upstream_lets_act_all_act(tmp_path: Path) -> None:
    workload = record(25, 1, "upstream", tmp_path)
    assert len(workload.rounds[0]) == 25


def test_answers_have_lengths_of_their_own_within_the_limit(recorded: Workload) -> None:
    lengths = [question.output_tokens for question in recorded.questions]
    assert len(set(lengths)) > 3
    assert min(lengths) > 10
    assert max(lengths) <= MAX_TOKENS


def test_layouts_differ_in_prompts_alone(recorded: Workload, tmp_path: Path) -> None:
    other = record(5, 2, "shared_first", tmp_path)
    assert other.sha256 != recorded.sha256
    shape = [[(q.agent_id, q.kind, q.output_tokens) for q in one] for one in recorded.rounds]
    assert [[(q.agent_id, q.kind, q.output_tokens) for q in one] for one in other.rounds] == shape


def test_a_part_keeps_the_rounds_that_it_reaches(recorded: Workload) -> None:
    part = recorded.first(6)
    assert [len(one) for one in part.rounds][:2] == [5, 1]
    assert part.questions == recorded.questions[:6]
    assert recorded.first(10**6) == recorded


def test_lengths_can_be_fixed(recorded: Workload) -> None:
    fixed = recorded.with_output_tokens(7)
    assert {question.output_tokens for question in fixed.questions} == {7}
    assert fixed.sha256 != recorded.sha256


@pytest.mark.parametrize("agents", [1, 3, 12, 48])
def test_a_scenario_has_all_its_agents(agents: int) -> None:
    counts = {
        spec["name"]: spec["count"]
        for spec in scenario_of(agents, 1)["agents"]
        if spec["type"] == "llm"
    }
    assert sum(counts.values()) == agents
    assert len(counts) == min(agents, len(PERSONAS))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_request_carries_the_question_and_no_schema(recorded: Workload) -> None:
    question = recorded.questions[0]
    request = question.request(backend="default", model="bench", timeout_s=9.0)
    assert request.schema is None
    assert request.sampling.max_tokens == question.output_tokens < MAX_TOKENS
    longer = question.request(backend="", model="", timeout_s=9.0, max_tokens=MAX_TOKENS)
    assert longer.sampling.max_tokens == MAX_TOKENS
    assert place_of(longer) == question.place
    assert request.messages == question.messages
    assert len({each.place for each in recorded.questions}) == len(recorded.questions)
    assert (request.agent_id, request.kind) == (question.agent_id, question.kind)
