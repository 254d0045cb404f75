"""Scenarios, runs and backends for the tests of the SWARM side."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio
import yaml

from scheduler.backends.base import BackendInfo, RawAnswer
from scheduler.config import BackendConfig, SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import RequestRejected
from scheduler.types import Completion, FinishReason, Message, Request, Usage
from swarm_integration import cli
from swarm_integration.agents import LlmAgents
from swarm_integration.compat import Simulation
from swarm_integration.driver import Driver, Mode
from swarm_integration.idle import SimulationLoop
from swarm_integration.rounds import Rounds
from swarm_integration.scenario import rehearse
from swarm_integration.schemas import Instructions
from swarm_integration.services import muster

T = TypeVar("T")

NOOP = '{"action_type": "NOOP", "reasoning": "nothing to do"}'
POST = '{"action_type": "POST", "reasoning": "speak", "params": {"content": "hello"}}'
MODEL = {"provider": "llama_cpp", "model": "m", "max_tokens": 64}
TOKENS = Usage(prompt_tokens=100, completion_tokens=7)

Reply = Callable[[Request, int], str]
"""Returns the answer's text; given the request and how often it was put, from 0."""


def llm(count: int = 1, **block: Any) -> dict[str, Any]:
    return {"type": "llm", "count": count, "llm": {**MODEL, **block}}


def council(members: int = 3, *, seed: int | None = None, **section: Any) -> dict[str, Any]:
    block = MODEL if seed is None else {**MODEL, "seed": seed}
    names = [{"member_id": f"m{n}", "llm": block} for n in range(members)]
    return {"type": "council", "council": {"members": names, "seed": 1, **section}}


def awm(count: int = 1, **config: Any) -> dict[str, Any]:
    plan = {"llm_planning": True, "llm_provider": "llama_cpp", "llm_model": "m"}
    return {"type": "awm_agent", "count": count, "config": {**plan, **config}}


def write_scenario(
    path: Path, agents: Sequence[Any], *, epochs: int = 1, steps: int = 1, **sections: Any
) -> Path:
    scenario = {
        "scenario_id": path.stem,
        "agents": list(agents),
        "simulation": {"n_epochs": epochs, "steps_per_epoch": steps, "seed": 7},
        **sections,
    }
    path.write_text(yaml.safe_dump(scenario), encoding="utf-8")
    return path


def write_config(path: Path, **sections: Any) -> Path:
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return path


def swarm(*arguments: object) -> int:
    """Run the `swarm` command in this process and return its exit code."""
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 1


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def manifest(directory: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    return data


def on_loop(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `main` on a simulation's event loop; never for ever."""
    with asyncio.Runner(loop_factory=SimulationLoop) as runner:
        return runner.run(asyncio.wait_for(main(), 100))


def reject(request: Request, put: int) -> str:
    """The reply of a backend that refuses everything."""
    raise RequestRejected("refused by the test")


class ReplyingBackend:
    """Answers with what a function returns, after a delay.

    Args:
        reply: Returns the text, or raises an `AttemptError`.
        delay_s: How long each answer takes.
    """

    def __init__(self, reply: Reply, *, slots: int = 4, delay_s: float = 0.0) -> None:
        self._reply = reply
        self._info = BackendInfo("replying", slots, None, model="m")
        self._delay_s = delay_s
        self.requests: list[Request] = []
        self.seeds: list[int] = []

    async def start(self) -> BackendInfo:
        return self._info

    async def wait_ready(self) -> None:
        return None

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
        names = (request.agent_id, request.epoch, request.step, request.kind, request.ordinal)
        put = sum(
            names == (one.agent_id, one.epoch, one.step, one.kind, one.ordinal)
            for one in self.requests
        )
        self.requests.append(request)
        self.seeds.append(seed)
        await anyio.sleep(self._delay_s)
        return RawAnswer(self._reply(request, put), FinishReason.STOP, TOKENS)

    async def count_prompt_tokens(self, messages: Sequence[Message]) -> int | None:
        return None

    async def aclose(self) -> None:
        return None


@dataclass
class Simulated:
    """A run that has ended: its agents, and what each phase brought."""

    orchestrator: Any
    phases: list[tuple[str, list[Completion]]]
    rounds: int
    actions: dict[str, Any] = field(default_factory=dict)

    def agent(self, agent_id: str) -> Any:
        return next(a for a in self.orchestrator.get_all_agents() if a.agent_id == agent_id)

    @property
    def posts(self) -> list[Any]:
        return self.orchestrator.feed.get_ranked_posts(limit=1000)  # type: ignore[no-any-return]

    @property
    def asked(self) -> list[Completion]:
        return [completion for _, completions in self.phases for completion in completions]


def simulate(
    scenario: Path,
    backend: Any,
    *,
    mode: Mode = "batch",
    config: SchedulerConfig | None = None,
    instructions: Instructions | None = None,
    prepare: Callable[[Any], None] = lambda orchestrator: None,
) -> Simulated:
    """Run a scenario whose LLM agents are all served by `backend`."""
    from swarm.scenarios.loader import build_orchestrator, load_scenario

    services = muster(rehearse(scenario, {}), BackendConfig(kind="fake"), managed_url=None).services
    orchestrator = build_orchestrator(load_scenario(scenario))
    prepare(orchestrator)
    simulation = Simulation(orchestrator)
    phases: list[tuple[str, list[Completion]]] = []

    async def main() -> tuple[int, dict[str, Any]]:
        async with Scheduler(backend, config) as scheduler:
            rounds = Rounds(scheduler)
            agents = LlmAgents(services, rounds, simulation.state, instructions or Instructions())
            driver = Driver(
                simulation,
                mode,
                rounds,
                agents,
                on_phase=lambda kind, completions: phases.append((kind, list(completions))),
            )
            await driver.run()
        return rounds.played, driver.actions.summary()

    played, counts = on_loop(main)
    return Simulated(orchestrator, phases, played, counts)
