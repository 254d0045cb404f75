"""`prompt_layout: shared_first` says what upstream's prompts say, with what is shared in front."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swarm.agents import llm_prompts
from swarm.agents.base import Observation
from swarm.agents.llm_config import PersonaType
from swarm.core.observation_builder import ObservationBuilder
from swarm.core.orchestrator import OrchestratorConfig
from swarm.env.state import EnvState

from scheduler.backends.fake import FakeBackend
from scheduler.types import Message
from swarm_integration import commands
from swarm_integration.bench.workload import record
from swarm_integration.compat import replaced
from swarm_integration.compat_layout import OWN_ROW_CHARS, WORDING, check_wording, scene_of
from swarm_integration.errors import CompatError
from swarm_integration.layout import Scene, shared_first
from swarm_integration.schemas import Instructions
from tests.swarm.simulations import (
    POST,
    awm,
    council,
    json_lines,
    llm,
    manifest,
    simulate,
    swarm,
    write_config,
    write_scenario,
)
from tests.wire.scripted_server import CHAT, Reply, ScriptedServer, answer_body, error_body

SCRIPTED = [{"type": "honest", "count": 2}, {"type": "opportunistic"}]
CLOSING = ("## Your Turn", "## Your Decision")
RUN, FRESH = Path("the-run"), Path("fresh")

Facts = Counter[tuple[str, str]]


@dataclass
class Laid:
    """A prompt as upstream has it, and as it is sent."""

    system: str
    user: str
    scene: Scene
    sent: tuple[Message, ...]

    @property
    def moved(self) -> bool:
        return self.sent[1].shared_chars > 0

    @property
    def in_front(self) -> str:
        return self.sent[1].content[: self.sent[1].shared_chars]


class Recording(Instructions):
    """Keeps what was laid out."""

    def __init__(self) -> None:
        super().__init__("shared_first")
        self.laid: list[Laid] = []

    def messages(
        self, system_prompt: str, user_prompt: str, scene: Scene | None = None
    ) -> tuple[Message, ...]:
        sent = super().messages(system_prompt, user_prompt, scene)
        assert scene is not None
        self.laid.append(Laid(system_prompt, user_prompt, scene, sent))
        return sent


def tasks(orchestrator: Any) -> None:
    for number in range(7):
        orchestrator.task_pool.create_task(
            f"Summarise paper {number}.", bounty=10.0 - number, min_reputation=0.1 * (number > 4)
        )


def economy(folder: Path) -> tuple[Path, Callable[[Any], None]]:
    """More agents than a prompt shows, with tasks and limits that are soon reached."""
    agents = [llm(4, persona=each.value) for each in PersonaType] + SCRIPTED
    sections = {"rate_limits": {"posts_per_epoch": 1, "tasks_per_epoch": 1}}
    return write_scenario(folder / "s.yaml", agents, epochs=2, steps=2, **sections), tasks


def small(folder: Path) -> tuple[Path, Callable[[Any], None]]:
    return write_scenario(folder / "s.yaml", [llm(3)], epochs=2, steps=2), lambda _: None


def network(folder: Path) -> tuple[Path, Callable[[Any], None]]:
    """Agents who see their neighbours only, and those not quite as they are."""
    agents = [llm(6), *SCRIPTED]
    path = write_scenario(
        folder / "s.yaml", agents, epochs=2, steps=2,
        network={"topology": "small_world", "k_neighbors": 2, "rewire_probability": 0.3},
    )  # fmt: skip

    def noisy(orchestrator: Any) -> None:
        orchestrator.config.observation_noise_probability = 0.5
        orchestrator.config.observation_noise_std = 0.2

    return path, noisy


def kernels(folder: Path) -> tuple[Path, Callable[[Any], None]]:
    sections = {"kernel_oracle": {"enabled": True, "seed": 1}}
    return write_scenario(folder / "s.yaml", [llm(4)], epochs=1, steps=3, **sections), tasks


SCENES = [economy, small, network, kernels]


def played(tmp_path: Path, scene: Any, mode: Any = "batch") -> tuple[Recording, Any]:
    recording = Recording()
    path, prepare = scene(tmp_path)
    run = simulate(path, FakeBackend(8), mode=mode, instructions=recording, prepare=prepare)
    assert len(recording.laid) == len(run.asked)
    return recording, run


def facts(prompt: str) -> Facts:
    """Each line with the heading that it stands under; headings themselves say nothing."""
    heading, found = "", Counter[tuple[str, str]]()
    for line in prompt.splitlines():
        if line.startswith("## "):
            heading = line
        elif line:
            found[heading, line] += 1
    return found


def own_id(prompt: str) -> str:
    return prompt.split("- Your ID: ")[1].split("\n")[0]


def check_same_facts(upstream: str, ours: str) -> int:
    """Check that nothing is lost or invented; return how many own rows there are more."""
    before, after = facts(upstream), facts(ours)
    assert not before - after, "lost"
    more = list((after - before).elements())
    for heading, line in more:
        assert heading == "## Other Agents"
        assert line.startswith(f"- {own_id(upstream)}: rep=")
    return len(more)


def sections(prompt: str) -> list[str]:
    return [f"## {part}".strip() for part in f"\n{prompt}".split("\n## ")[1:]]


# --- what is said


@pytest.mark.parametrize("scene", SCENES, ids=lambda one: one.__name__)
@pytest.mark.parametrize("mode", ["batch", "serial"])
def test_nothing_is_lost_or_invented_but_the_agents_own_row(
    scene: Any, mode: Any, tmp_path: Path
) -> None:
    recording, _ = played(tmp_path, scene, mode)
    assert len(recording.laid) > 10
    for one in recording.laid:
        assert one.moved
        system, user = one.sent
        assert check_same_facts(one.user, user.content) <= 1
        assert sorted(one.system.split()) == sorted(system.content.split())
        assert sections(user.content)[-1] == sections(one.user)[-1]
        assert sections(one.user)[-1].startswith(CLOSING)
        assert [message.role for message in one.sent] == ["system", "user"]
        assert len(user.content) - len(one.user) <= OWN_ROW_CHARS


@pytest.mark.parametrize("scene", [economy, kernels], ids=lambda one: one.__name__)
def test_both_parts_keep_upstreams_order_and_wording(scene: Any, tmp_path: Path) -> None:
    recording, _ = played(tmp_path, scene)
    for one in recording.laid:
        order = {text.split("\n")[0]: n for n, text in enumerate(sections(one.user))}
        front, own = one.sent[1].content.split("## Current State")
        for part in (front, own):
            headings = [text.split("\n")[0] for text in sections(part)]
            assert headings == sorted(headings, key=lambda heading: order[heading])
        for section in sections(one.user):
            if not section.startswith("## Other Agents"):
                assert section in one.sent[1].content


def test_the_own_row_is_what_the_others_read(tmp_path: Path) -> None:
    recording, run = played(tmp_path, economy)
    place = rows = 0
    for _, completions in run.phases:
        phase = recording.laid[place : place + len(completions)]
        place += len(completions)
        seen = {fact for one in phase for fact in facts(one.user)}
        # An agent may decide on several proposals in a phase in which nobody else is asked.
        alone = len({completion.request.agent_id for completion in completions}) == 1
        for one in phase:
            more = list((facts(one.sent[1].content) - facts(one.user)).elements())
            rows += len(more)
            assert alone or not more or more[0] in seen
    assert rows > 10


def test_what_is_in_front_is_the_same_for_all_of_a_phase_and_is_most_of_it(tmp_path: Path) -> None:
    workload = record(16, 3, "shared_first", tmp_path)
    assert {one.kind for one in workload.questions} == {"act", "accept"}
    for phase in workload.rounds:
        users = [question.messages[1].content for question in phase]
        lengths = [question.messages[1].shared_chars for question in phase]
        fronts = {user[:length] for user, length in zip(users, lengths, strict=True)}
        assert len(fronts) == 1
        assert fronts.pop().endswith("- Your ID:")
        if phase[0].kind == "act":
            assert sum(lengths) > 0.75 * sum(map(len, users))
            assert len(set(users)) == len(users) == 16


def test_an_agent_reads_its_own_row_where_it_would_stand(tmp_path: Path) -> None:
    recording, _ = played(tmp_path, economy)
    acts = {own_id(one.user): one.sent[1].content for one in recording.laid[:16]}
    names = [f"llm_{n}" for n in range(1, 11)]
    for agent_id, prompt in acts.items():
        front, own = prompt.split("## Current State")
        listed = [line.split(":")[0][2:] for line in front.splitlines() if ": rep=" in line]
        assert listed == names
        # Upstream shows ten others: who stands among the first ten reads of the eleventh.
        assert ("- llm_11: rep=" in own) == (agent_id in names)


def test_limits_go_to_the_front_only_while_all_agents_have_the_same(tmp_path: Path) -> None:
    recording, run = played(tmp_path, economy)
    place, kinds = 0, set()
    for _, completions in run.phases:
        phase = recording.laid[place : place + len(completions)]
        place += len(completions)
        limits = {text for one in phase for text in sections(one.user)[1:2]}
        in_front = {"## Rate Limits" in one.in_front for one in phase}
        assert len(in_front) == 1
        kinds |= in_front
        assert len(limits) == 1 or in_front == {False}
    assert kinds == {True, False}


def test_what_is_not_the_same_for_all_stays_with_the_agent(tmp_path: Path) -> None:
    recording, _ = played(tmp_path, network)
    for one in recording.laid:
        assert one.scene.others is not None
        assert "## Other Agents" not in one.in_front
        assert facts(one.sent[1].content) == facts(one.user)
    assert any("## Ecosystem Health" not in one.in_front for one in recording.laid)


# --- what it follows from


def test_a_prompt_follows_from_the_state_and_changes_nothing(tmp_path: Path) -> None:
    _, run = played(tmp_path, economy)
    state = run.orchestrator.state
    state.rate_limit_states.pop("llm_3")
    before = copy.deepcopy((state.to_dict(), state.rate_limit_states))
    agents = [agent_id for agent_id in state.agents if agent_id.startswith("llm")]
    first = {one: scene_of(state, one, agents) for one in agents}
    random.Random(1).shuffle(agents)
    assert {one: scene_of(state, one, agents) for one in agents} == first
    assert (state.to_dict(), state.rate_limit_states) == before
    assert "llm_3" not in state.rate_limit_states


def test_frozen_agents_are_on_nobodys_list(tmp_path: Path) -> None:
    _, run = played(tmp_path, small)
    state = run.orchestrator.state
    state.freeze_agent("llm_2")
    scene = scene_of(state, "llm_1", ["llm_1"])
    assert "llm_2" not in scene.everyone + (scene.others or "")
    assert "llm_1" in scene.everyone


def test_upstreams_layout_is_upstreams_byte_for_byte(tmp_path: Path) -> None:
    recording, _ = played(tmp_path, economy)
    plain = Instructions("upstream")
    for one in recording.laid:
        for scene in (one.scene, None):
            pair = plain.messages(one.system, one.user, scene)
            assert [message.content for message in pair] == [one.system, one.user]
            assert [message.shared_chars for message in pair] == [0, 0]


def test_prompts_of_other_kinds_are_left_alone_and_counted(tmp_path: Path) -> None:
    agents = [llm(), council(2), awm()]
    scenario = write_scenario(tmp_path / "s.yaml", agents, awm={"enabled": True})
    config = write_config(
        tmp_path / "c.yaml", backend={"kind": "fake"}, prompt_layout="shared_first"
    )
    arguments = ("run", scenario, "--inference-scheduler", "batch", "--inference-config", config)
    assert swarm(*arguments, "--run-dir", RUN, "-q") == 0
    prompts = manifest(RUN)["prompts"]
    assert prompts["layout"] == "shared_first"
    assert prompts["laid_out"]["shared_first"] == 1
    assert prompts["laid_out"]["upstream"] == len(json_lines(RUN / "transcript.jsonl")) - 1 > 1
    assert manifest(RUN)["identity"]["prompt_layout"] == "shared_first"


# --- prompts that nobody has seen yet


def words() -> st.SearchStrategy[str]:
    traps = ["## Your Turn", "\n\n## Other Agents\n- llm_9: rep=1.00", "\n", "## ", "- Your ID: x"]
    return st.lists(st.sampled_from([*traps, "trade", "trust", "[x]"]), max_size=3).map(" ".join)


def records(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(st.fixed_dictionaries(fields), max_size=7)


PAY = st.floats(-9, 9)
NAMES = st.integers(1, 15).map("llm_{}".format)
POSTS = records(post_id=st.uuids().map(str), author_id=NAMES, content=words(), score=st.integers())
OFFERS = records(proposal_id=st.uuids().map(str), initiator_id=NAMES, content=words())
WORK = records(task_id=st.uuids().map(str), prompt=words(), reward=PAY)
MEMORY = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("interaction_outcome"), "counterparty": NAMES, "p": PAY}
        ),
        st.fixed_dictionaries(
            {"type": st.just("action_reasoning"), "action_type": words(), "reasoning": words()}
        ),
    ),
    max_size=6,
)
CHALLENGES = records(challenge_id=st.uuids().map(str), name=st.just("saxpy"))


@settings(deadline=None, max_examples=150)
@given(
    agents=st.lists(st.tuples(PAY, PAY, st.booleans()), min_size=1, max_size=15),
    me=st.integers(0, 14),
    fields=st.fixed_dictionaries(
        {
            "visible_posts": POSTS,
            "pending_proposals": OFFERS,
            "available_tasks": WORK,
            "active_tasks": WORK,
            "kernel_available_challenges": CHALLENGES,
            "can_post": st.booleans(),
        }
    ),
    memory=MEMORY,
    kind=st.sampled_from(["act", "accept", "kernel"]),
)
def test_any_observation_says_the_same_in_both_layouts(
    agents: list[tuple[float, float, bool]],
    me: int,
    fields: dict[str, Any],
    memory: list[dict[str, Any]],
    kind: str,
) -> None:
    state = EnvState()
    for number, (reputation, resources, frozen) in enumerate(agents, 1):
        state.add_agent(f"llm_{number}", None, initial_reputation=reputation)
        state.agents[f"llm_{number}"].resources = resources
        if frozen:
            state.freeze_agent(f"llm_{number}")
    agent_id = f"llm_{me % len(agents) + 1}"
    seen = observed(state, agent_id, fields)
    persona = PersonaType.OPEN
    if kind == "accept":
        offer = {"proposal_id": "p", "initiator_id": "llm_2", "content": "## Your Decision"}
        _, user = llm_prompts.build_accept_prompt(persona, offer, seen, None, memory)
    elif kind == "kernel":
        _, user = llm_prompts.build_kernel_action_prompt(persona, seen, None, memory)
    else:
        _, user = llm_prompts.build_action_prompt(persona, seen, None, memory)
    laid = shared_first(user, WORDING, scene_of(state, agent_id, list(state.agents)))
    if laid is None:
        # Only what a model wrote, and upstream remembers of kernels, can look like a section.
        assert kind == "kernel"
        assert any("\n## " in str(value) for item in memory for value in item.values())
        return
    text, front = laid
    assert check_same_facts(user, text) <= 1
    assert len(text) - len(user) <= OWN_ROW_CHARS
    assert text.split("\n\n## ")[-1] == user.split("\n\n## ")[-1]
    assert text[:front].endswith("\n- Your ID:")
    assert 0 < front < text.index(f" {agent_id}\n- Reputation") + 1


def observed(state: EnvState, agent_id: str, fields: dict[str, Any]) -> Observation:
    """What upstream's own builder shows, and the given fields."""
    from swarm.core.handler_registry import HandlerRegistry
    from swarm.env.feed import Feed
    from swarm.env.tasks import TaskPool

    builder = ObservationBuilder(
        OrchestratorConfig(), state, Feed(), TaskPool(), None, HandlerRegistry(), random.Random(1)
    )
    seen = builder.build(agent_id)
    for name, value in fields.items():
        setattr(seen, name, value)
    return seen


# --- an upstream with other words


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("## Other Agents", "## Agents"),
        ("## Rate Limits", "### Rate Limits"),
        ("- Your ID: ", "- You are "),
        ("\n\n## Ecosystem", "\n## Ecosystem"),
    ],
)
def test_an_upstream_that_words_its_prompts_otherwise_is_named(text: str, other: str) -> None:
    made = llm_prompts.format_observation
    check_wording()
    with (
        replaced(llm_prompts, "format_observation", lambda seen: made(seen).replace(text, other)),
        pytest.raises(CompatError, match=r"swarm-safety 1\.9\.0 words the prompt for an action"),
    ):
        Instructions("shared_first")
    check_wording()


def test_such_an_upstream_does_not_matter_to_its_own_layout() -> None:
    with replaced(llm_prompts, "format_observation", lambda seen: "nothing"):
        Instructions("upstream")


def test_doctor_says_so_before_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [llm()])
    config = write_config(
        tmp_path / "c.yaml", backend={"kind": "fake"}, prompt_layout="shared_first"
    )
    words = ["doctor", str(scenario), "--inference-config", str(config), "--json"]

    def found() -> list[dict[str, Any]]:
        commands.main(words)
        checks = json.loads(capsys.readouterr().out)["checks"]
        return [one for one in checks if one["check"] == "prompt_layout"]

    assert found() == []
    with replaced(llm_prompts, "format_observation", lambda seen: "nothing"):
        [finding] = found()
    assert finding["level"] == "error"
    assert "set prompt_layout" in finding["mend"]


# --- whole runs


def command(run: Path, config: Path, *more: object) -> list[object]:
    mode = ("--inference-scheduler", "batch", "--run-dir", run, "--inference-config", config)
    return ["run", "s.yaml", *mode, "-q", *more]


def test_a_run_is_resumed_and_replayed_in_its_layout(tmp_path: Path) -> None:
    write_scenario(tmp_path / "s.yaml", [llm(14, max_retries=0), *SCRIPTED], epochs=1, steps=3)

    def config(server: ScriptedServer) -> Path:
        address = {"kind": "llama_server", "base_url": server.base_url, "ready_timeout_s": 0.5}
        return write_config(Path("c.yaml"), backend=address, prompt_layout="shared_first")

    answer = Reply(answer_body(POST))
    with ScriptedServer() as server:
        server.on(CHAT, answer)
        assert swarm(*command(FRESH, config(server))) == 0
        prompts = [json.loads(seen.body)["messages"] for seen in server.requests(CHAT)]
        server.reset()
        refusal = Reply(error_body(400, "out of luck", "invalid_request_error"), status=400)
        server.on(CHAT, *[answer] * 19, refusal)
        assert swarm(*command(RUN, config(server))) == 1
        server.reset()
        server.on(CHAT, answer)
        assert swarm(*command(RUN, config(server), "--resume")) == 0
    assert all("## Current State" in user["content"][50:] for _, user in prompts)
    assert manifest(RUN)["trace_hash"] == manifest(FRESH)["trace_hash"]
    assert manifest(RUN)["prompts"] == manifest(FRESH)["prompts"]
    assert commands.main(["replay", str(RUN)]) == 0


def test_one_trace_hash_whatever_the_slots_and_delays_are(tmp_path: Path) -> None:
    agents = [llm(4, persona=each.value) for each in PersonaType] + SCRIPTED
    write_scenario(tmp_path / "s.yaml", agents, epochs=2, steps=2)
    hashes = {}
    for number, (slots, latency_s) in enumerate(((1, 0.0), (3, 0.004), (16, 0.002), (16, 0.0))):
        fake = {"kind": "fake", "fake": {"slots": slots, "latency_s": latency_s}}
        config = write_config(Path("c.yaml"), backend=fake, prompt_layout="shared_first")
        run = Path(f"run-{number}")
        assert swarm(*command(run, config)) == 0
        hashes[slots, latency_s] = manifest(run)["trace_hash"]
    assert len(set(hashes.values())) == 1
    assert manifest(run)["prompts"]["laid_out"]["shared_first"] > 64
    config = write_config(Path("c.yaml"), backend=fake)
    assert swarm(*command(Path("upstream"), config)) == 0
    assert manifest(Path("upstream"))["trace_hash"] not in hashes.values()
    assert manifest(Path("upstream"))["prompts"] == {"layout": "upstream", "laid_out": {}}
