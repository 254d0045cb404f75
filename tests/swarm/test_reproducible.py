"""Same seed, same simulation: whatever the interpreter's hash seed, the clock or other threads."""

from __future__ import annotations

import asyncio
import datetime as real_datetime
import json
import os
import random
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from enum import Enum
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import yaml

from scheduler.errors import SchedulerError
from swarm_integration.errors import CompatError
from swarm_integration.orders import SortedSet
from swarm_integration.reproducible import Reproducible
from tests.swarm.repeated_run import Record, observe

HERE = Path(__file__).parent
SCENARIOS = sorted((HERE / "reproducible").glob("*.yaml"))
NAMES = [path.stem for path in SCENARIOS]
CELLS = (("0", 0.0), ("1", 0.004), ("random", 0.001))
"""PYTHONHASHSEED and the seconds slept before each step."""

every_scenario = pytest.mark.parametrize("name", NAMES)


def child(hash_seed: str, sleep_s: float, *options: str) -> dict[str, Record]:
    """Run all scenarios in a fresh interpreter."""
    program = [sys.executable, "-W", "ignore", "-m", "tests.swarm.repeated_run"]
    done = subprocess.run(
        [*program, *options, "--sleep", str(sleep_s), *map(str, SCENARIOS)],
        cwd=HERE.parents[1],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return {name: Record(**json.loads(line)) for name, line in zip(NAMES, lines, strict=True)}


@cache
def children() -> tuple[list[dict[str, Record]], list[dict[str, Record]]]:
    """The repaired cells and two that are not, two processes at a time."""
    with ThreadPoolExecutor(2) as pool:
        repaired = [pool.submit(child, *cell) for cell in CELLS]
        plain = [pool.submit(child, *cell, "--plain") for cell in CELLS[:2]]
        return [one.result() for one in repaired], [one.result() for one in plain]


@every_scenario
def test_repaired_runs_are_equal_in_every_process(name: str) -> None:
    first, *others = (cell[name] for cell in children()[0])
    assert first.events
    assert first.metrics
    for other in others:
        assert first.differs_in(other) == set()


@every_scenario
def test_runs_without_the_repair_differ(name: str) -> None:
    """Otherwise the equality above would prove nothing."""
    first, second = (cell[name] for cell in children()[1])
    expected = {"prompts"} if first.prompts else {"metrics"}
    assert first.differs_in(second) >= {"events"} | expected


def test_scenarios_reach_what_their_names_say() -> None:
    records = children()[0][0]
    kinds = {
        name: {json.loads(event)["event_type"] for event in record.events}
        for name, record in records.items()
    }
    assert records["feed_votes_and_proposals"].posts
    assert "interaction_proposed" in kinds["feed_votes_and_proposals"]
    assert "reputation_updated" in kinds["guarded_network"]
    assert len(records["tasks"].tasks[0].split(".")) > 9
    assert len(records["council"].prompts) > 6 * 3
    assert records["planners_on_threads"].prompts


def scenario(name: str) -> Path:
    return HERE / "reproducible" / f"{name}.yaml"


def test_serial_mode_repeats_itself() -> None:
    first = observe(scenario("feed_votes_and_proposals"), mode="serial")
    second = observe(scenario("feed_votes_and_proposals"), mode="serial", sleep_s=0.002)
    assert first.differs_in(second) == set()


def test_slots_do_not_matter() -> None:
    first = observe(scenario("council"), slots=1)
    assert first.differs_in(observe(scenario("council"), slots=16, sleep_s=0.001)) == set()


def test_another_seed_gives_other_ids() -> None:
    first = observe(scenario("tasks"), seed=1)
    assert first.differs_in(observe(scenario("tasks"), seed=2)) >= {"events", "prompts"}


def test_two_runs_on_two_threads_each_equal_themselves_alone() -> None:
    names = ("feed_votes_and_proposals", "unseeded_handlers")
    alone = [observe(scenario(name), seed=seed) for seed, name in enumerate(names)]
    with ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(observe, scenario(name), seed=seed, sleep_s=0.01)
            for seed, name in enumerate(names)
        ]
        together = [one.result() for one in both]
    assert [one.differs_in(other) for one, other in zip(alone, together, strict=True)] == [
        set()
    ] * 2


def test_graph_memory_is_equal_byte_by_byte(tmp_path: Path) -> None:
    memories = [
        observe(scenario("tasks"), memory=tmp_path / f"{n}.json", sleep_s=n / 1000).memory
        for n in range(2)
    ]
    assert memories[0] == memories[1]
    assert "2000-01-01T" in memories[0]


def test_times_follow_the_seconds_per_step() -> None:
    slow = observe(scenario("guarded_network"), seconds_per_step=3600.0)
    assert json.loads(slow.events[-1])["timestamp"].startswith("2000-01-01T23:")


def swarm_globals() -> dict[tuple[str, str], Any]:
    """Everything that SWARM's modules and classes hold, by place."""
    places: dict[tuple[str, str], Any] = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] != "swarm":
            continue
        for name, value in vars(module).items():
            places[module_name, name] = value
            if isinstance(value, type) and value.__module__ == module_name:
                for attribute, held in vars(value).items():
                    if isinstance(held, FunctionType):
                        places[f"{module_name}.{name}", attribute] = held
    return places


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_leaving_gives_every_name_back(failure: type[BaseException] | None) -> None:
    with Reproducible(1).active():
        pass  # everything is imported now
    before = swarm_globals()
    assert before["swarm.env.feed", "uuid"] is uuid
    try:
        with Reproducible(1).active(), Reproducible(2).active():
            assert swarm_globals()["swarm.env.feed", "uuid"] is not uuid
            if failure is not None:
                raise failure
    except (RuntimeError, KeyboardInterrupt):
        pass
    after = swarm_globals()
    assert set(after) == set(before)
    assert [place for place in before if after[place] is not before[place]] == []


def test_other_threads_and_code_outside_see_the_real_thing() -> None:
    from swarm.env.feed import Feed, Post
    from swarm.env.tasks import TaskPool
    from swarm.models.interaction import SoftInteraction

    def made_outside() -> tuple[Any, ...]:
        post, interaction = Post(), SoftInteraction(initiator="a", counterparty="b")
        Feed().get_ranked_posts()
        return post.created_at.year, interaction.timestamp.year, type(TaskPool()._open_tasks), post

    this_year = real_datetime.datetime.now().year  # noqa: DTZ005 - as SWARM's
    with Reproducible(1).active():
        inside = made_outside()
        with ThreadPoolExecutor(1) as pool:
            outside = pool.submit(made_outside).result()
    assert inside[:3] == (2000, 2000, SortedSet)
    assert outside[:3] == (this_year, this_year, set)
    assert outside[3].post_id != inside[3].post_id
    with Reproducible(1).active():
        assert made_outside()[3].post_id == inside[3].post_id


def test_other_modules_of_the_process_are_untouched() -> None:
    with Reproducible(1).active():
        assert uuid.uuid4() != uuid.uuid4()
        assert abs(time.time() - real_datetime.datetime.now(real_datetime.UTC).timestamp()) < 60
        assert type({1} | {2}) is set


def test_random_of_the_process_is_neither_seeded_nor_drawn_from() -> None:
    state = random.getstate()
    observe_without_rehearsal(scenario("unseeded_handlers"))
    assert random.getstate() == state


def observe_without_rehearsal(path: Path) -> Any:
    from swarm.scenarios.loader import build_orchestrator, load_scenario

    run = Reproducible(5)
    with run.active():
        config = load_scenario(path)
        run.prepare_scenario(config)
        orchestrator = build_orchestrator(config)
        run.prepare(orchestrator)
        return orchestrator.run()


def test_upstreams_own_run_repeats_itself_too() -> None:
    first, second = (observe_without_rehearsal(scenario("unseeded_handlers")) for _ in range(2))
    assert first == second


def test_random_numbers_drawn_through_imports_inside_functions_follow_the_seed() -> None:
    from swarm.skills.library import SkillLibrary
    from swarm.skills.model import Skill, SkillDomain

    def draws(seed: int) -> list[str]:
        with Reproducible(seed).active():
            library = SkillLibrary("agent")
            for _ in range(20):
                library.add_skill(Skill(domain=SkillDomain.INTERACTION))
            chosen = [
                library.select_best_skill(SkillDomain.INTERACTION, {}, exploration_rate=1.0)
                for _ in range(9)
            ]
        return [skill.skill_id for skill in chosen if skill is not None]

    state = random.getstate()
    assert len(set(draws(1))) > 1
    assert draws(1) == draws(1) != draws(2)
    assert random.getstate() == state


def test_run_goes_on_where_it_was_in_another_context() -> None:
    from swarm.env.feed import Post

    run, whole = Reproducible(1), Reproducible(1)
    with whole.active():
        expected = [Post() for _ in range(2)]
    with run.active():
        first = Post()

    async def later() -> Post:
        with run.active():
            return Post()

    second = asyncio.new_event_loop()
    try:
        posts = [first, second.run_until_complete(later())]
    finally:
        second.close()
    assert posts == expected


def test_copied_context_carries_the_run_to_a_thread() -> None:
    from swarm.env.feed import Post

    ids: list[str] = []
    with Reproducible(1).active():
        context = copy_context()
        thread = threading.Thread(target=context.run, args=[lambda: ids.append(Post().post_id)])
        thread.start()
        thread.join()
    with Reproducible(1).active():
        assert [Post().post_id] == ids


def test_ids_follow_the_documented_formula() -> None:
    from swarm.env.feed import Post

    with Reproducible(7).active():
        ids = [Post().post_id for _ in range(2)]
    texts = [f'["simulation-id/1",7,{number}]' for number in range(2)]
    digests = [sha256(text.encode()).digest()[:16] for text in texts]
    assert ids == [str(uuid.UUID(bytes=digest, version=4)) for digest in digests]
    assert ids[0] == "18308e6a-75d6-4627-9913-79637d1a016b"


def test_clock_moves_with_every_reading_and_with_the_steps() -> None:
    from swarm.env.feed import Post, Vote

    run = Reproducible(1, seconds_per_step=60.0)
    with run.active():
        first, second = Post(), Post()
        run.set_time(0, 5)
        third = Vote()
        run.set_time(0, 1)
        fourth = Vote("given")
    assert (second.created_at - first.created_at).total_seconds() == 1e-6
    assert third.timestamp == real_datetime.datetime(2000, 1, 1, 0, 5, 0, 1)  # noqa: DTZ001 - naive
    assert fourth.timestamp > third.timestamp
    assert fourth.vote_id == "given"


def test_posts_of_one_step_rank_by_age_and_all_ages_are_of_one_instant() -> None:
    from swarm.env.feed import Feed

    run = Reproducible(1)
    with run.active():
        feed = Feed()
        posts = [feed.create_post("author", f"post {number}") for number in range(200)]
        run.set_time(0, 3)
        ranked = feed.get_ranked_posts(limit=200)
        assert ranked == posts[::-1]


@pytest.mark.parametrize("seconds_per_step", [30.0, 120.0])
def test_contagion_velocity_is_per_simulated_minute(seconds_per_step: float) -> None:
    from swarm.metrics.security import SecurityAnalyzer
    from swarm.models.interaction import SoftInteraction

    run = Reproducible(1, seconds_per_step=seconds_per_step)
    with run.active():
        spread = []
        for step, (source, target) in enumerate([("a", "b"), ("b", "c"), ("b", "d")]):
            run.set_time(0, step)
            time.sleep(0.002)
            spread.append(
                SoftInteraction(initiator=source, counterparty=target, accepted=True, p=0.1)
            )
        analyzer = SecurityAnalyzer(contagion_velocity_threshold=0.0)
        [chain] = analyzer.analyze(spread).contagion_chains
    assert chain.velocity == pytest.approx(3 / (2 * seconds_per_step / 60 + 0.01))


def test_orders_that_upstream_takes_from_literal_sets_are_sorted() -> None:
    """Thirty elements, since a few may stand in order by chance."""
    from swarm.core import rivals_handler
    from swarm.governance.config import GovernanceConfig
    from swarm.governance.identity_lever import SybilDetectionLever
    from swarm.metrics.collusion import CollusionDetector
    from swarm.metrics.security import SecurityAnalyzer
    from swarm.models.interaction import SoftInteraction

    names = [f"agent {number}" for number in range(30)]
    random.Random(3).shuffle(names)
    with Reproducible(1).active():
        made = [SoftInteraction(initiator=name, counterparty="hub") for name in names]
        lever = SybilDetectionLever(GovernanceConfig(sybil_detection_enabled=True))
        for interaction in made:
            lever.on_interaction(interaction, None)
        lever.on_epoch_start(None, 1)
        clusters = [list(cluster) for cluster in lever.get_clusters()]
        threats = list(SecurityAnalyzer().analyze(made).agent_threat_scores)
        risks = list(CollusionDetector().analyze(made).agent_collusion_risk)
        assert list(rivals_handler._PRODUCER_ROLES) == ["chart_maker", "coder", "writer"]
        assert isinstance(rivals_handler._PRODUCER_ROLES, SortedSet)
    assert clusters == [sorted(names)]
    assert threats == risks == sorted([*names, "hub"])


def test_datetimes_stay_datetimes() -> None:
    from swarm.env import feed

    with Reproducible(1).active():
        now = feed.datetime.now()
        assert isinstance(now, feed.datetime)
        assert type(feed.datetime.fromisoformat(now.isoformat())) is real_datetime.datetime
        assert type(feed.datetime(2020, 1, 1)) is real_datetime.datetime
        assert feed.datetime.now(real_datetime.UTC).tzinfo is real_datetime.UTC


class Colour(Enum):
    RED = 1
    BLUE = 2


@pytest.mark.parametrize(
    "elements",
    [
        ["b", "a", "c"],
        [Colour.RED, Colour.BLUE],
        [("a", 2), ("a", 1)],
        [2, 10, 1.5],
        ["a", None, 3],
        [frozenset("ab"), frozenset("a")],
    ],
)
def test_sorted_sets_are_sets_in_one_order(elements: list[Any]) -> None:
    ours = SortedSet(elements)
    assert ours == set(elements)
    assert list(ours) == list(SortedSet(reversed(elements)))
    for made in (ours | {"x"}, {"x"} | ours, ours & ours, ours - {"x"}, ours ^ {"x"}, ours.copy()):
        assert isinstance(made, SortedSet)
    assert {"x", *elements} - ours == {"x"}
    kept = list(ours)
    assert [ours.pop() for _ in elements] == kept
    with pytest.raises(KeyError):
        ours.pop()


def test_seed_is_given_where_the_scenario_names_none() -> None:
    from swarm.scenarios.loader import load_scenario

    config = load_scenario(scenario("unseeded_handlers"))
    config.orchestrator_config.scholar_config.seed = 9
    run = Reproducible(5)
    run.prepare_scenario(config)
    orchestrator = config.orchestrator_config
    parts = ("moltbook", "moltipedia", "memory_tier", "rivals", "scholar")
    seeds = {part: getattr(orchestrator, f"{part}_config").seed for part in parts}
    assert seeds == {"moltbook": 5, "moltipedia": 5, "memory_tier": 5, "rivals": 5, "scholar": 9}
    assert orchestrator.seed == 53
    assert "seed: the run's for moltbook" in run.repairs
    assert not any("scholar" in name for name in run.repairs)


def test_simulation_built_outside_is_refused() -> None:
    from swarm.scenarios.loader import build_orchestrator, load_scenario

    state = random.getstate()
    orchestrator = build_orchestrator(load_scenario(scenario("tasks")))
    random.setstate(state)
    run = Reproducible(1)
    with run.active(), pytest.raises(SchedulerError, match="active"):
        run.prepare(orchestrator)


def test_another_swarm_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from swarm.env import state

    monkeypatch.delattr(state, "uuid")
    run = Reproducible(1)
    with pytest.raises(CompatError, match=r"1\.9\.0 has no swarm\.env\.state\.uuid"), run.active():
        pass
    assert sys.modules["swarm.env.feed"].uuid is uuid


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_steps_take_time(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds_per_step"):
        Reproducible(1, seconds_per_step=seconds)


def test_scenarios_name_no_seed_where_the_run_should_give_it() -> None:
    for name, section in (("perturbed", "perturbations"), ("unseeded_handlers", "moltbook")):
        assert "seed" not in yaml.safe_load(scenario(name).read_text())[section]
