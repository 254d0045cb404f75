"""The prompts of a SWARM run and the lengths of their answers, recorded once and served often.

A recording is a real simulation, driven as `swarm run --inference-scheduler batch` drives it,
on canned answers: same options, same prompts, on every machine. What is served later depends on
no answer, so every way gets exactly the same work, step by step.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextvars import copy_context
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from scheduler.canonical import canonical_json
from scheduler.engine import Scheduler
from scheduler.types import Completion, Message, Request, Sampling
from swarm_integration.agents import LlmAgents
from swarm_integration.bench.canned import CannedBackend
from swarm_integration.compat import Simulation
from swarm_integration.config import InferenceConfig
from swarm_integration.driver import Driver
from swarm_integration.fitness import estimated_context
from swarm_integration.idle import SimulationLoop
from swarm_integration.reproducible import Reproducible
from swarm_integration.rounds import Rounds
from swarm_integration.scenario import load_scenario, rehearse
from swarm_integration.schemas import Instructions, PromptLayout
from swarm_integration.services import Fleet, muster

PERSONAS = ("honest", "strategic", "adversarial", "open")
TEMPERATURE = 0.8
MAX_TOKENS = 192
SEED = 42
_FORMAT = 1


Place = tuple[str, int, int, str, int]


def place_of(request: Request) -> Place:
    """Return where in the run a request is asked, as `Question.place`."""
    return (request.agent_id, request.epoch, request.step, request.kind, request.ordinal)


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and how many tokens its answer has.

    Attributes:
        agent_id: Who asks.
        kind: `act` or `accept`.
        epoch: The epoch, from 0.
        step: The step, from 0.
        ordinal: Which question of this kind by this agent in this step.
        base_seed: From which the request's seed is derived.
        prefix_group: As the request had it; empty where the system message decides.
        messages: The chat, as the layout made it.
        output_tokens: Tokens of the answer, on every way.
    """

    agent_id: str
    kind: str
    epoch: int
    step: int
    ordinal: int
    base_seed: int
    prefix_group: str
    messages: tuple[Message, ...]
    output_tokens: int

    @property
    def place(self) -> Place:
        """Where in the run it is asked; no other question has the same."""
        return (self.agent_id, self.epoch, self.step, self.kind, self.ordinal)

    def request(
        self, *, backend: str, model: str, timeout_s: float, max_tokens: int | None = None
    ) -> Request:
        """Return it as a scheduler takes it, without a schema.

        Args:
            backend: The backend's name.
            model: The model's name.
            timeout_s: Seconds for one attempt.
            max_tokens: Most tokens of the answer; None takes the recorded number. In a run it is
                the agent's `MAX_TOKENS`: nobody knows beforehand how long an answer gets.
        """
        return Request(
            agent_id=self.agent_id,
            messages=self.messages,
            epoch=self.epoch,
            step=self.step,
            kind=self.kind,
            ordinal=self.ordinal,
            sampling=Sampling(TEMPERATURE, max_tokens or self.output_tokens),
            base_seed=self.base_seed,
            backend=backend,
            model=model,
            timeout_s=timeout_s,
            max_retries=0,
            prefix_group=self.prefix_group,
        )


@dataclass(frozen=True)
class Workload:
    """What is served: rounds of questions that are asked together.

    Attributes:
        agents: How many LLM agents there are.
        steps: How many steps were recorded.
        layout: How the prompts are laid out.
        context: Tokens that a slot must hold, as the project reckons them.
        rounds: The questions; each round begins when the one before it is answered.
        scenario: The scenario's YAML.
    """

    agents: int
    steps: int
    layout: PromptLayout
    context: int
    rounds: tuple[tuple[Question, ...], ...]
    scenario: str

    @property
    def questions(self) -> list[Question]:
        """All questions, in order."""
        return [question for one in self.rounds for question in one]

    @cached_property
    def sha256(self) -> str:
        """The sha256 (hexadecimal) of all prompts, answers' lengths and rounds."""
        rounds = [[asdict(question) for question in one] for one in self.rounds]
        return sha256(canonical_json(rounds).encode()).hexdigest()

    def with_output_tokens(self, output_tokens: int) -> Workload:
        """Return the same prompts with answers of one length."""
        rounds = tuple(
            tuple(replace(question, output_tokens=output_tokens) for question in one)
            for one in self.rounds
        )
        return replace(self, rounds=rounds)

    def first(self, requests: int) -> Workload:
        """Return the first so many questions alone, in their rounds."""
        rounds: list[tuple[Question, ...]] = []
        for one in self.rounds:
            part = one[: requests - sum(map(len, rounds))]
            if part:
                rounds.append(part)
        return replace(self, rounds=tuple(rounds))

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps({"format": _FORMAT, **asdict(self)}), encoding="utf-8")


def load_workload(path: Path) -> Workload:
    """Return the workload that `save` wrote."""
    data = json.loads(path.read_text(encoding="utf-8"))
    del data["format"]
    rounds = tuple(tuple(_question(entry) for entry in one) for one in data.pop("rounds"))
    return Workload(**data, rounds=rounds)


def _question(entry: dict[str, Any]) -> Question:
    messages = tuple(Message(**message) for message in entry.pop("messages"))
    return Question(**entry, messages=messages)


def scenario_of(agents: int, steps: int) -> dict[str, Any]:
    """Return the scenario of a recording: LLM agents of four personas, three scripted ones."""
    llm = {
        "provider": "llama_cpp",
        "model": "bench",
        "base_url": "http://127.0.0.1:8080/v1",
        "temperature": TEMPERATURE,
        "max_tokens": MAX_TOKENS,
        "timeout": 3600,
    }
    counts = [agents // len(PERSONAS) + (i < agents % len(PERSONAS)) for i in range(len(PERSONAS))]
    specs: list[dict[str, Any]] = [
        {"type": "llm", "count": count, "name": persona, "llm": {**llm, "persona": persona}}
        for persona, count in zip(PERSONAS, counts, strict=True)
        if count
    ]
    specs += [{"type": "honest", "count": 2}, {"type": "opportunistic", "count": 1}]
    return {
        "scenario_id": f"bench_{agents}",
        "description": f"{agents} LLM agents ({len(PERSONAS)} personas) and 3 scripted ones",
        "agents": specs,
        "simulation": {
            "n_epochs": 1,
            "steps_per_epoch": steps,
            "max_actions_per_step": agents + 3,  # upstream's default lets 20 agents act
            "seed": SEED,
        },
    }


def record(agents: int, steps: int, layout: PromptLayout, folder: Path) -> Workload:
    """Run the simulation on canned answers and return what was asked.

    Args:
        agents: How many LLM agents there are.
        steps: How many steps of one epoch.
        layout: `prompt_layout` of the configuration.
        folder: Where the scenario's file is written.
    """
    text = yaml.safe_dump(scenario_of(agents, steps), sort_keys=False)
    path = folder / f"bench_{agents}.yaml"
    path.write_text(text, encoding="utf-8")
    config = InferenceConfig.model_validate(
        {"backend": {"kind": "fake"}, "prompt_layout": layout, "scheduler": {"max_batch": agents}}
    )
    rehearsal = rehearse(path, {})
    fleet = muster(rehearsal, config.backend, managed_url=None)
    scenario = load_scenario(path)
    reproducible = Reproducible(SEED, seconds_per_step=config.determinism.seconds_per_step)
    reproducible.prepare_scenario(scenario)
    with reproducible.active(), asyncio.Runner(loop_factory=SimulationLoop) as runner:
        simulation = _built(scenario, reproducible)
        work = _asked(simulation, fleet, config, reproducible)
        rounds = runner.run(work, context=copy_context())
    return Workload(agents, steps, layout, estimated_context(rehearsal, layout), rounds, text)


def _built(scenario: Any, reproducible: Reproducible) -> Simulation:
    from swarm.scenarios.loader import build_orchestrator

    settings = scenario.orchestrator_config
    settings.log_path, settings.log_events = None, False
    orchestrator = build_orchestrator(scenario)
    reproducible.prepare(orchestrator)
    return Simulation(orchestrator)


async def _asked(
    simulation: Simulation, fleet: Fleet, config: InferenceConfig, reproducible: Reproducible
) -> tuple[tuple[Question, ...], ...]:
    instructions = Instructions(config.prompt_layout, full_ids=config.actions.full_ids)
    async with _Recorder(dict.fromkeys(fleet.backends, CannedBackend()), config.scheduler) as one:
        rounds = Rounds(one)
        llm_agents = LlmAgents(fleet.services, rounds, simulation.state, instructions)
        driver = Driver(simulation, "batch", rounds, llm_agents, on_step=reproducible.set_time)
        await driver.run()
    return tuple(one.rounds)


class _Recorder(Scheduler):
    """Notes what it is asked, and how long the answers are."""

    rounds: list[tuple[Question, ...]]

    async def run_step(self, requests: Sequence[Request]) -> list[Completion]:
        completions = await super().run_step(requests)
        if not hasattr(self, "rounds"):
            self.rounds = []
        if requests:
            self.rounds.append(tuple(_noted(completion) for completion in completions))
        return completions


def _noted(completion: Completion) -> Question:
    request = completion.request
    return Question(
        agent_id=request.agent_id,
        kind=request.kind,
        epoch=request.epoch,
        step=request.step,
        ordinal=request.ordinal,
        base_seed=request.base_seed,
        prefix_group=request.prefix_group,
        messages=request.messages,
        output_tokens=completion.answers[-1].usage.completion_tokens,
    )
