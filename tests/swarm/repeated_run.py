"""Runs a scenario and says what a reader of its results could see; also as a program.

python -m tests.swarm.repeated_run [--plain] [--sleep S] SCENARIO... -> one JSON object per scenario
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from swarm.scenarios.loader import build_orchestrator, load_scenario

from scheduler.backends.fake import FakeBackend
from scheduler.config import BackendConfig
from scheduler.engine import Scheduler
from swarm_integration.agents import LlmAgents
from swarm_integration.compat import Simulation
from swarm_integration.driver import Driver, Mode
from swarm_integration.reproducible import Reproducible
from swarm_integration.rounds import Rounds
from swarm_integration.scenario import rehearse
from swarm_integration.schemas import Instructions
from swarm_integration.services import muster
from tests.swarm.simulations import on_loop

SEED = 1234


@dataclass
class Record:
    """What a run leaves behind: events as the log has them, prompts, metrics."""

    events: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    memory: str = ""

    def differs_in(self, other: Record) -> set[str]:
        ours, theirs = asdict(self), asdict(other)
        return {name for name in ours if ours[name] != theirs[name]}

    @property
    def posts(self) -> bool:
        return any("Visible Posts" in prompt for prompt in self.prompts)


def observe(
    scenario: Path,
    *,
    repaired: bool = True,
    seed: int = SEED,
    sleep_s: float = 0.0,
    mode: Mode = "batch",
    seconds_per_step: float = 60.0,
    memory: Path | None = None,
    slots: int = 4,
) -> Record:
    """Run a scenario on the fake backend, the way a command would."""
    sections = yaml.safe_load(scenario.read_text())
    rehearsal = rehearse(scenario, {})
    services = muster(rehearsal, BackendConfig(kind="fake"), managed_url=None).services
    run = Reproducible(seed, seconds_per_step=seconds_per_step) if repaired else None
    record = Record()
    with run.active() if run else nullcontext():
        config = load_scenario(scenario)
        config.orchestrator_config.graph_memory_path = str(memory) if memory else None
        if run:
            run.prepare_scenario(config)
        orchestrator = build_orchestrator(config)
        if run:
            run.prepare(orchestrator)
        for number in range(sections.get("tasks", 0)):
            orchestrator.task_pool.create_task(f"Summarise paper {number}.")
        orchestrator.subscribe_events(
            lambda event: record.events.append(json.dumps(event.to_dict(), default=str))
        )
        simulation = Simulation(orchestrator)

        def on_step(epoch: int, step: int) -> None:
            time.sleep(sleep_s)
            if run:
                run.set_time(epoch, step)
            tasks = orchestrator.task_pool.get_open_tasks(epoch)
            record.tasks.append(" ".join(task.prompt for task in tasks))

        async def main() -> list[Any]:
            backend = FakeBackend(slots=slots, latency_s=0.002 if sleep_s else 0.0)
            async with Scheduler(backend) as scheduler:
                rounds = Rounds(scheduler)
                agents = LlmAgents(services, rounds, simulation.state, Instructions())
                driver = Driver(
                    simulation,
                    mode,
                    rounds,
                    agents,
                    on_phase=lambda _, completions: record.prompts.extend(
                        message.content for one in completions for message in one.request.messages
                    ),
                    on_step=on_step,
                )
                return await driver.run()

        record.metrics = [json.dumps(epoch.to_dict(), default=str) for epoch in on_loop(main)]
    if memory:
        record.memory = memory.read_text()
    return record


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scenarios", nargs="+", type=Path)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--sleep", type=float, default=0.0)
    parser.add_argument("--mode", choices=["batch", "serial"], default="batch")
    options = parser.parse_args()
    for scenario in options.scenarios:
        record = observe(
            scenario,
            repaired=not options.plain,
            sleep_s=options.sleep,
            mode=options.mode,
        )
        print(json.dumps(asdict(record)))


if __name__ == "__main__":
    main()
