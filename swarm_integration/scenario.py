"""Reading a scenario before it is run, and a rehearsal that leaves no trace.

Upstream's loader reports some mistakes only while it builds, or not at all; what
a run under the scheduler needs is checked here first. The rehearsal builds the
simulation once more, with nothing that it could write to, to learn which LLM
agents there are and how long their prompts begin.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from scheduler.yaml_text import load_yaml
from swarm_integration import compat
from swarm_integration.compat import Simulation
from swarm_integration.compat_prompts import Prompt, first_prompts
from swarm_integration.errors import ScenarioError


@dataclass(frozen=True, slots=True)
class LlmBlock:
    """What a scenario says of one LLM agent.

    Attributes:
        agent: Upstream's agent object, from the rehearsal.
        seed: The `seed:` of its `llm:` block, which upstream drops, or None.
        limit_s: A limit per answer beside the agent's own time-out, or None.
    """

    agent: Any
    seed: int | None
    limit_s: float | None


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What is known of a run before it starts.

    Attributes:
        blocks: The LLM agents by id, in order of registration.
        prompts: Their first prompts, agent after agent.
        seed: The run's seed.
    """

    blocks: dict[str, LlmBlock]
    prompts: tuple[Prompt, ...]
    seed: int | None


def load_scenario(path: Path, overrides: Mapping[str, int | None] | None = None) -> Any:
    """Return upstream's `ScenarioConfig` of a file.

    Args:
        path: The YAML file.
        overrides: `seed`, `n_epochs` and `steps_per_epoch` from the command line.

    Raises:
        ScenarioError: It is missing, not YAML, not a scenario, or has no agents.
    """
    compat.swarm_version()
    from swarm.scenarios.loader import load_scenario as load

    if not path.is_file():
        raise ScenarioError(f"scenario {path} is not a file. Give the path of a scenario's YAML")
    try:
        data = load_yaml(path.read_text(encoding="utf-8"))  # upstream's reader knows no limits
        if isinstance(data, dict) and {"sweep", "base_scenario"} <= data.keys():
            raise ScenarioError(
                f"{path} is no scenario but a sweep of many runs. Type: swarm sweep {path} "
                "--output results/sweep/"
            )
        scenario = load(path)
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ScenarioError(f"scenario {path} is not YAML: {_one_line(exc)}") from exc
    except OSError as exc:
        raise ScenarioError(f"scenario {path} can't be read: {exc}") from exc
    except ScenarioError:
        raise
    except Exception as exc:  # upstream's loader raises whatever its parsers raise
        raise ScenarioError(f"scenario {path} is not a scenario: {_reason(exc)}") from exc
    if not isinstance(scenario.agent_specs, list) or not scenario.agent_specs:
        raise ScenarioError(f"scenario {path} has no agents. Add a list `agents:` with an entry")
    for name, value in (overrides or {}).items():
        if value is not None:
            setattr(scenario.orchestrator_config, name, value)
    _check_length(scenario.orchestrator_config, path)
    _check_seed(scenario.orchestrator_config.seed, path, overrides or {})
    return scenario


def _check_length(config: Any, path: Path) -> None:
    for key in ("n_epochs", "steps_per_epoch"):
        length = getattr(config, key)
        if not isinstance(length, int) or length < 1:
            raise ScenarioError(
                f"scenario {path}: {key} must be a whole number, 1 or more; got {length!r}"
            )


def _check_seed(seed: Any, path: Path, overrides: Mapping[str, int | None]) -> None:
    if seed is None or (isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0):
        return
    key = f"scenario {path}: simulation.seed" if overrides.get("seed") is None else "--seed"
    raise ScenarioError(f"{key} must be a whole number, 0 or more, got {seed!r}")


def _reason(exc: Exception) -> str:
    """Return what a parser objects to in one line, with the keys where it names them."""
    if not isinstance(exc, ValidationError):
        return _one_line(exc)
    reasons = []
    for error in exc.errors():
        place = ".".join(map(str, error["loc"]))
        given = "" if isinstance(error["input"], dict) else f" = {error['input']!r}"
        reasons.append(": ".join(filter(None, [f"{place}{given}".strip(" ="), error["msg"]])))
    return "; ".join(reasons)


def _one_line(exc: Exception) -> str:
    return " ".join(str(exc).split())


def rehearse(path: Path, overrides: Mapping[str, int | None]) -> Rehearsal:
    """Build the scenario without side effects and look at its LLM agents.

    Raises:
        ScenarioError: The scenario can't be built.
    """
    from swarm.scenarios.loader import build_orchestrator

    scenario = load_scenario(path, overrides)
    config = scenario.orchestrator_config
    config.log_path, config.log_events, config.graph_memory_path = None, False, None
    with _global_random_untouched():
        try:
            orchestrator = build_orchestrator(scenario)
        except Exception as exc:  # upstream raises whatever its constructors raise
            raise ScenarioError(f"scenario {path} can't be built: {exc}") from exc
        simulation = Simulation(orchestrator)
        if simulation.letta_lifecycle is None:
            simulation.initialize_network()
        seeds = _seeds(scenario.agent_specs, path)
        blocks: dict[str, LlmBlock] = {}
        prompts: list[Prompt] = []
        for agent in simulation.agents.values():
            inner = compat.llm_agents_of(agent)
            council = compat.council_of(agent)
            limit_s = None if council is None else float(council.timeout_per_member)
            for llm_agent in inner:
                seed = seeds.get(llm_agent.agent_id)
                blocks[llm_agent.agent_id] = LlmBlock(llm_agent, seed, limit_s)
            if inner:
                observation = simulation.observe(agent.agent_id)
                prompts.extend(_first_prompts(path, agent, orchestrator, observation))
    return Rehearsal(blocks, tuple(prompts), config.seed)


def _first_prompts(path: Path, agent: Any, orchestrator: Any, observation: Any) -> Sequence[Prompt]:
    try:
        prompts = list(first_prompts(agent, orchestrator, observation))
        if all(isinstance(one.system + one.user, str) for one in prompts):
            return prompts
    except TypeError:
        pass
    raise ScenarioError(
        f"scenario {path}: no prompt can be made for {agent.agent_id}: system_prompt must be a text"
    )


def _seeds(specs: list[Any], path: Path) -> dict[str, int]:
    """Return the seeds that `llm:` blocks name, by the ids that upstream gives."""
    seeds: dict[str, int] = {}
    counts: dict[str, int] = {}
    for spec in specs:
        kind = spec.get("type", "honest")
        for _ in range(spec.get("count", 1)):
            counts[kind] = counts.get(kind, 0) + 1
            for agent_id, block, key in _llm_blocks(spec, kind, counts[kind]):
                seed = block.get(key)
                if seed is None:
                    continue
                if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
                    raise ScenarioError(
                        f"scenario {path}: {key} of {agent_id} must be a whole number, "
                        f"0 or more, got {seed!r}"
                    )
                seeds[agent_id] = seed
    return seeds


def _llm_blocks(spec: Any, kind: str, nth: int) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    if kind == "llm":
        yield f"llm_{nth}", spec.get("llm") or {}, "seed"
    elif kind == "council":
        for index, member in enumerate((spec.get("council") or {}).get("members", [])):
            name = member.get("member_id", f"member_{index}")
            yield f"council_{nth}_member_{name}", member.get("llm") or {}, "seed"
    elif kind == "awm_agent":
        yield f"awm_agent_{nth}_llm_delegate", spec.get("config") or {}, "llm_seed"


@contextmanager
def _global_random_untouched() -> Iterator[None]:
    before = random.getstate()
    try:
        yield
    finally:
        random.setstate(before)
