"""What is checked of the backends before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from scheduler.backends.base import Backend, BackendInfo
from scheduler.backends.fake import FakeBackend
from scheduler.config import BackendConfig
from scheduler.types import Message
from swarm_integration.errors import FitnessError
from swarm_integration.fitness import check_fitness, crowded, estimated_context, same_model
from swarm_integration.scenario import Rehearsal, rehearse
from swarm_integration.schemas import Instructions, PromptLayout
from swarm_integration.services import Fleet, muster
from tests.swarm.simulations import ReplyingBackend, awm, council, llm, on_loop, write_scenario


class CountingBackend(FakeBackend):
    """Counts tokens as told: all prompts alike, or not at all."""

    def __init__(self, context: int, tokens: int | None) -> None:
        super().__init__(2, context)
        self._tokens = tokens
        self.counted: list[Sequence[Message]] = []

    async def count_prompt_tokens(self, messages: Sequence[Message]) -> int | None:
        self.counted.append(messages)
        return self._tokens


def rehearsed(tmp_path: Path, *agents: object) -> tuple[Rehearsal, Fleet]:
    rehearsal = rehearse(write_scenario(tmp_path / "s.yaml", agents), {})
    return rehearsal, muster(rehearsal, BackendConfig(kind="fake"), managed_url=None)


def check(rehearsal: Rehearsal, fleet: Fleet, backend: Backend, *, named: bool = False) -> None:
    served = Fleet({"default": backend}, fleet.services, names_must_match=named)
    on_loop(lambda: check_fitness(rehearsal, served, Instructions()))


def test_context_must_hold_prompt_growth_and_answer(tmp_path: Path) -> None:
    rehearsal, fleet = rehearsed(tmp_path, llm(max_tokens=200))
    with pytest.raises(FitnessError) as caught:
        check(rehearsal, fleet, CountingBackend(1000, 700))
    message = str(caught.value)
    assert "holds 1000 tokens" in message
    assert "llm_1" in message
    assert "first prompt 700" in message
    assert "answer 200" in message
    assert "backend.fake.context_per_slot" in message


def test_what_the_message_says_to_type_is_enough(tmp_path: Path) -> None:
    rehearsal, fleet = rehearsed(tmp_path, llm(max_tokens=200))
    with pytest.raises(FitnessError) as caught:
        check(rehearsal, fleet, CountingBackend(1000, 700))
    context = int(str(caught.value).split("context_per_slot to ")[1].split(",")[0])
    check(rehearsal, fleet, CountingBackend(context, 700))


def test_growth_is_part_of_what_is_needed(tmp_path: Path) -> None:
    rehearsal, fleet = rehearsed(tmp_path, llm(max_tokens=200))
    with pytest.raises(FitnessError, match="growth"):
        check(rehearsal, fleet, CountingBackend(900, 700))


def test_each_kind_of_prompt_is_counted_once(tmp_path: Path) -> None:
    """Four agents of two personas, act and accept: four system prompts."""
    rehearsal, fleet = rehearsed(tmp_path, llm(2, persona="honest"), llm(2, persona="open"))
    backend = CountingBackend(30000, 700)
    check(rehearsal, fleet, backend)
    assert len(backend.counted) == 4


def test_council_needs_room_for_every_members_answer_beside_its_own(tmp_path: Path) -> None:
    """Three members of 64 tokens each: their answers are quoted to each of them."""
    rehearsal, fleet = rehearsed(tmp_path, council(3))
    without_quotes = 300 + 64  # the longest of its prompts, grown, and the answer
    with pytest.raises(FitnessError, match=r"answers of others in it 192, .*, answer 64") as caught:
        check(rehearsal, fleet, FakeBackend(2, without_quotes))
    message = str(caught.value)
    assert "council_1_member_m" in message
    assert "lower max_tokens of the council's members" in message
    context = int(message.split("context_per_slot to ")[1].split(",")[0])
    check(rehearsal, fleet, FakeBackend(2, context))


def test_longer_answer_of_one_member_counts_for_all(tmp_path: Path) -> None:
    """Only m1 may answer at length, and all of them read what it wrote."""
    agent = council(2)
    first, second = agent["council"]["members"]
    first["llm"], second["llm"] = {**first["llm"]}, {**second["llm"], "max_tokens": 5000}
    rehearsal, fleet = rehearsed(tmp_path, agent)
    served = {name: one for name, one in fleet.services.items() if name.endswith("m0")}
    small = Fleet({"default": CountingBackend(4000, 300)}, served, names_must_match=False)
    with pytest.raises(FitnessError, match=r"council_1_member_m0 needs .* in it 5064"):
        on_loop(lambda: check_fitness(rehearsal, small, Instructions()))


def test_council_of_longer_answers_gets_more_context(tmp_path: Path) -> None:
    agent = council(5)
    for member in agent["council"]["members"]:
        member["llm"] = {**member["llm"], "max_tokens": 1000}
    rehearsal, _ = rehearsed(tmp_path, agent)
    assert estimated_context(rehearsal) >= 6 * 1000


def test_planner_needs_room_for_its_task_and_plan(tmp_path: Path) -> None:
    path = write_scenario(tmp_path / "s.yaml", [awm(llm_max_tokens=700)], awm={"enabled": True})
    rehearsal = rehearse(path, {})
    fleet = muster(rehearsal, BackendConfig(kind="fake"), managed_url=None)
    with pytest.raises(FitnessError, match=r"awm_agent_1_llm_delegate needs .* answer 700"):
        check(rehearsal, fleet, CountingBackend(900, 300))
    check(rehearsal, fleet, CountingBackend(2000, 300))


def test_longest_answer_counts(tmp_path: Path) -> None:
    rehearsal, fleet = rehearsed(tmp_path, llm(max_tokens=10), llm(max_tokens=2000))
    with pytest.raises(FitnessError, match="llm_2"):
        check(rehearsal, fleet, CountingBackend(2000, 700))


def test_backend_that_cannot_count_or_has_no_limit_is_taken(tmp_path: Path) -> None:
    rehearsal, fleet = rehearsed(tmp_path, llm())
    check(rehearsal, fleet, CountingBackend(10, None))
    check(rehearsal, fleet, ReplyingBackend(lambda request, put: ""))


def test_wrong_model_is_refused_with_both_names(tmp_path: Path) -> None:
    rehearsal, fleet = rehearsed(tmp_path, llm(model="mine"))
    with pytest.raises(FitnessError, match=r"llm_1 names the model 'mine'.*'fake'.*model: fake"):
        check(rehearsal, fleet, FakeBackend(), named=True)
    check(rehearsal, fleet, FakeBackend(), named=False)


@pytest.mark.parametrize(
    ("wanted", "served", "same"),
    [
        ("llama-3.2-3b-instruct", "Llama-3.2-3B-Instruct-Q4_K_M.gguf", True),
        ("demo", "demo", True),
        ("meta/Llama-3.2-3B", "llama-3.2-3b-instruct", True),
        ("llama-3.2-3b-instruct", "llama-3.2-1b-instruct", False),
        ("demo", "bench", False),
        ("", "demo", False),
        ("llama-3.2-3b-instruct", "llama", False),
    ],
)
def test_model_names_are_compared_by_letters_and_digits(
    wanted: str, served: str, same: bool
) -> None:
    assert same_model(wanted, served) is same


def test_estimated_context_holds_the_longest_prompt_and_answer(tmp_path: Path) -> None:
    rehearsal, _ = rehearsed(tmp_path, llm(), llm(max_tokens=3000))
    longest = max(len(p.system) + len(p.user) for p in rehearsal.prompts)
    context = estimated_context(rehearsal)
    assert context % 256 == 0
    assert context >= longest // 2 + 3000


def test_estimated_context_is_never_tiny(tmp_path: Path) -> None:
    rehearsal, _ = rehearsed(tmp_path, council(2))
    assert estimated_context(rehearsal) >= 2048


def test_info_of_a_started_backend_is_what_is_checked() -> None:
    info: BackendInfo = on_loop(FakeBackend(3, 77).start)
    assert (info.slots, info.context_per_slot) == (3, 77)


def test_an_endpoint_without_room_is_told_which_key_to_set(tmp_path: Path) -> None:
    rehearsal, fleet = rehearsed(tmp_path, llm(max_tokens=200))

    class Endpoint(CountingBackend):
        async def start(self) -> BackendInfo:
            return BackendInfo("openai", 2, 1000, model="")

    with pytest.raises(FitnessError, match=r"set backend\.openai\.context_per_slot to \d+, or"):
        check(rehearsal, fleet, Endpoint(1000, 700), named=True)


@pytest.mark.parametrize(
    "info", [BackendInfo("openai", 2, None, ""), BackendInfo("llama_inproc", 1, None, "x")]
)
def test_names_are_not_compared_where_the_agent_chose_the_model_itself(
    info: BackendInfo, tmp_path: Path
) -> None:
    class Chosen(FakeBackend):
        async def start(self) -> BackendInfo:
            return info

    rehearsal, fleet = rehearsed(tmp_path, llm(model="mine"))
    check(rehearsal, fleet, Chosen(), named=True)


def test_more_threads_than_cores_are_noted() -> None:
    def info(kind: str, threads: int) -> BackendInfo:
        return BackendInfo(kind, 1, 512, "m.gguf", facts={"n_threads": threads})

    few, many = info("llama_inproc", 1), info("llama_inproc", 4096)
    assert list(crowded([few, info("llama_server", 4096)])) == []
    [note] = crowded([few, many])
    assert note.startswith("note: m.gguf has 4096 threads on ")


def test_a_persona_in_chinese_and_a_layout_that_adds_text_get_more_context(tmp_path: Path) -> None:
    def context(persona: str, layout: PromptLayout = "upstream") -> int:
        path = write_scenario(tmp_path / "s.yaml", [llm(system_prompt=persona)])
        return estimated_context(rehearse(path, {}), layout)

    assert context("\u8bda" * 2000) >= context("ab" * 1000) + 4000
    assert context("a" * 9000, "shared_first") > context("a" * 9000)
