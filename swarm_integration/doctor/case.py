"""What the doctor is asked about: a configuration, a scenario, a server, a model file.

Reads them as a run would, and goes on with the defaults where one can't be read, so that one
mistake does not hide the others.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scheduler.backends.llama_memory import sequences_for
from scheduler.config import BackendConfig, load_config
from scheduler.errors import SchedulerError
from swarm_integration.config import InferenceConfig
from swarm_integration.doctor.findings import Finding
from swarm_integration.doctor.model import ModelUse
from swarm_integration.doctor.packages import installed
from swarm_integration.doctor.servers import (
    PATIENCE_S,
    check_agents_keys,
    check_configured_key,
    lacking_key,
)
from swarm_integration.files import project_file
from swarm_integration.fitness import estimated_context
from swarm_integration.managed import DEFAULT_MANAGED_SLOTS, managed_slots
from swarm_integration.scenario import Rehearsal, load_scenario, rehearse

SAMPLE_SCENARIO = "scenarios/llm_batch_12.yaml"
SERVE_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """What to look at, and how to say it.

    Attributes:
        scenario: A scenario that is to run.
        config: The file for `--inference-config`.
        base_url: A server to look at, whatever the configuration says.
        model: A model file to look at.
        fix: Do what is safe about what was found.
        as_json: Print JSON data.
    """

    scenario: Path | None = None
    config: Path | None = None
    base_url: str | None = None
    model: Path | None = None
    fix: bool = False
    as_json: bool = False


@dataclass(slots=True)
class Case:
    """What was read.

    Attributes:
        options: What was asked for.
        config: The effective configuration.
        rehearsal: The scenario's LLM agents; of a sample where no scenario was named.
        answers: How many answers the scenario asks for at most.
        findings: What is wrong with the files.
    """

    options: DoctorOptions
    config: InferenceConfig = field(default_factory=InferenceConfig)
    rehearsal: Rehearsal | None = None
    answers: int | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def backend(self) -> BackendConfig:
        """The `backend` section, with less patience than a run has."""
        section = self.config.backend
        return section.model_copy(
            update={"ready_timeout_s": min(PATIENCE_S, section.ready_timeout_s)}
        )

    @property
    def chosen(self) -> Rehearsal | None:
        """The scenario's LLM agents, None where no scenario was named."""
        return self.rehearsal if self.options.scenario else None

    @property
    def context(self) -> int | None:
        """Tokens of a slot that would be made for the scenario, None where nobody says."""
        configured = self.config.backend.context_per_slot
        if configured != "auto":
            return configured
        if self.chosen is None or not self.chosen.prompts:
            return None
        return estimated_context(self.chosen, self.config.prompt_layout)

    @property
    def threads(self) -> tuple[int | None, str]:
        """How many threads are configured, and which key says so."""
        named = [
            int(block.agent.llm_config.n_threads)
            for block in (self.chosen.blocks.values() if self.chosen else ())
            if _in_process(block.agent.llm_config) and block.agent.llm_config.n_threads
        ]
        if self.config.backend.kind == "auto" and named:
            return max(named), "n_threads"
        return self.config.backend.threads, "backend.threads"

    def key_findings(self) -> list[Finding]:
        """Return of each API key that is needed whether it is there."""
        if self.config.backend.kind in ("fake", "llama_inproc"):
            return []
        if self.config.backend.kind != "auto":
            return list(check_configured_key(self.config.backend))
        return list(check_agents_keys(self.chosen)) if self.chosen else []

    def models(self) -> list[ModelUse]:
        """Return the model files that would be loaded, and the one that was named."""
        backend, slots = self.config.backend, self.config.scheduler.slots
        uses: list[ModelUse] = []
        path, layers = backend.model_path, backend.n_gpu_layers
        use = None if path is None else ModelUse(path, context=self.context, n_gpu_layers=layers)
        if backend.managed and use is not None:
            invariant = self.config.determinism.server_profile == "invariant"
            many = managed_slots(self.config, self.chosen, self.context or SERVE_CONTEXT)
            uses.append(replace(use, slots=many, invariant=invariant, flash_attention=True))
        elif backend.kind == "llama_inproc" and use is not None:
            # What `auto` takes is what fits, down to one answer after another.
            auto = backend.engine == "auto" and slots == "auto"
            one = backend.engine == "locked" or auto
            many = 1 if slots == "auto" or backend.engine == "locked" else slots
            uses.append(
                replace(
                    use,
                    slots=many,
                    sequences=1 if one else sequences_for(many),
                    flash_attention=backend.flash_attention is True,
                    at_least=slots == "auto" and backend.engine != "locked",
                )
            )
        elif backend.kind == "auto" and self.chosen is not None:
            configs = [block.agent.llm_config for block in self.chosen.blocks.values()]
            places = {(str(one.model_path), one.n_ctx) for one in configs if _in_process(one)}
            more = slots == "auto" and backend.engine != "locked"
            uses += [
                ModelUse(Path(path), 1, context, at_least=more) for path, context in sorted(places)
            ]
        if self.options.model is not None and all(one.path != self.options.model for one in uses):
            many = DEFAULT_MANAGED_SLOTS if slots == "auto" else slots
            uses.append(ModelUse(self.options.model, many, self.context or SERVE_CONTEXT))
        return uses

    @property
    def in_process(self) -> bool:
        """Whether a model is to run in the process of the run."""
        backend = self.config.backend
        if backend.kind != "auto":
            return backend.kind == "llama_inproc"
        blocks = self.chosen.blocks.values() if self.chosen else ()
        return any(_in_process(block.agent.llm_config) for block in blocks)

    @property
    def reachable(self) -> Rehearsal | None:
        """The LLM agents whose API key is there, or who need none."""
        if self.rehearsal is None or self.config.backend.kind != "auto":
            return self.rehearsal
        blocks = {
            agent_id: block
            for agent_id, block in self.rehearsal.blocks.items()
            if not _key_is_missing(block.agent.llm_config)
        }
        return replace(self.rehearsal, blocks=blocks)


def read_case(options: DoctorOptions) -> Case:
    """Read what was named; what can't be read is among the findings."""
    case = Case(options)
    try:
        case.config = _config(options)
    except SchedulerError as exc:
        name = f"configuration {options.config}" if options.config else "options"
        mend = "correct it; docs/configuration.md has every key"
        case.findings.append(Finding(name, "error", str(exc), mend))
    else:
        if options.config is not None:
            says = f"kind {case.config.backend.kind}"
            case.findings.append(Finding(f"configuration {options.config}", "ok", says))
    if installed("swarm-safety") is not None:
        logging.getLogger("swarm").setLevel(logging.CRITICAL)
        case.findings.extend(_read_scenario(case))
    return case


def _config(options: DoctorOptions) -> InferenceConfig:
    overrides: dict[str, Any] = {"backend.model_path": options.model if options.config else None}
    config = load_config(InferenceConfig, options.config, overrides)
    if options.base_url is None:
        return config
    overrides["backend.base_url"] = options.base_url
    overrides["backend.managed"] = False
    if config.backend.kind != "openai":
        overrides["backend.kind"] = "llama_server"
    return load_config(InferenceConfig, options.config, overrides)


def _read_scenario(case: Case) -> Iterator[Finding]:
    named = case.options.scenario
    check = f"scenario {named}" if named else "swarm-safety"
    try:
        path = named or project_file(SAMPLE_SCENARIO)
        case.rehearsal = rehearse(path, {})
        settings = load_scenario(path).orchestrator_config
    except SchedulerError as exc:
        says = str(exc).removeprefix(f"scenario {named} ")
        mend = "correct the file" if named else "python -m pip install swarm-safety==1.9.0"
        yield Finding(check, "error", says, mend)
        return
    if named is None:
        yield Finding(check, "ok", "has every name that this release needs")
        return
    agents = len(case.rehearsal.blocks)
    # An act and an accept each, at most, in each step.
    case.answers = 2 * agents * int(settings.n_epochs) * int(settings.steps_per_epoch)
    facts = {
        "llm_agents": agents,
        "epochs": settings.n_epochs,
        "steps_per_epoch": settings.steps_per_epoch,
        "estimated_context": estimated_context(case.rehearsal) if case.rehearsal.prompts else None,
    }
    says = f"{agents} LLM agents, {settings.n_epochs} epochs of {settings.steps_per_epoch} steps"
    if not agents:
        says = "no LLM agents, so it needs no model"
    yield Finding(check, "ok", says, facts=facts)


def _in_process(llm_config: Any) -> bool:
    return str(llm_config.provider.value) == "llama_cpp" and bool(llm_config.model_path)


def _key_is_missing(llm_config: Any) -> bool:
    variable = lacking_key(llm_config)
    return variable is not None and not os.environ.get(variable)
