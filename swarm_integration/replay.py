"""Running a published run again without any model, and comparing byte by byte.

The answers come from the run's journal; everything else is computed anew. Equal
transcripts and metrics show that the run's directory is what its simulation, its
seed and these answers give. A difference is named: which question, which field.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler.backends.base import Backend, BackendInfo, RawAnswer
from scheduler.config import load_config
from scheduler.errors import ConfigError, RequestRejected, StepAborted
from scheduler.journal import Journal, JournalDamaged
from scheduler.types import Message, Request, Sampling
from swarm_integration.agents import Service
from swarm_integration.comparison import compare, lines
from swarm_integration.compat import swarm_version
from swarm_integration.compat_scenario import outside_effects
from swarm_integration.config import InferenceConfig
from swarm_integration.identity import differences, versions
from swarm_integration.idle import SimulationLoop
from swarm_integration.outputs import MEMORY_AT_START, Outputs
from swarm_integration.run import Run, RunOptions, make_reproducible
from swarm_integration.run_journal import journal_of
from swarm_integration.rundir import (
    CONFIGURATION,
    JOURNAL,
    MANIFEST,
    METRICS,
    SCENARIO,
    TRANSCRIPT,
    RunDirectory,
    file_sha256,
    read_manifest,
)
from swarm_integration.scenario import load_scenario
from swarm_integration.schemas import Instructions
from swarm_integration.services import Fleet
from swarm_integration.startup import Started

_NEEDED: Mapping[str, type] = {
    "identity": dict,
    "mode": str,
    "backends": dict,
    "served_by": dict,
    "copies": dict,
}
_IDENTITY = ("versions", "repairs", "seed", "epochs", "steps_per_epoch", "agents", "memory_sha256")


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay found.

    Attributes:
        questions: How many questions the run's transcript has.
        trace_hash: The replayed transcript's; None when nothing was replayed.
        problem: The first difference, or None when there is none.
    """

    questions: int
    trace_hash: str | None
    problem: str | None


class RecordedBackend:
    """Stands where a model was; has no answers of its own.

    Args:
        name: The backend's name in the run.
        facts: What the manifest says of it.
    """

    def __init__(self, name: str, facts: Mapping[str, Any]) -> None:
        try:
            self._info = BackendInfo(
                kind=facts["kind"],
                slots=max(1, int(facts["slots"])),
                context_per_slot=facts["context_per_slot"],
                model=facts["model"],
                build=facts["build"],
                facts=facts["facts"],
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise ConfigError(f"the manifest describes backend {name!r} wrongly: {exc!r}") from exc

    async def start(self) -> BackendInfo:
        """Return what the manifest says."""
        return self._info

    async def wait_ready(self) -> None:
        """Return at once."""

    async def generate(self, request: Request, *, seed: int, slot: int) -> RawAnswer:
        """Refuse: what is asked here is not in the journal."""
        raise RequestRejected(
            f"the journal has no answer to what {request.label} asks (seed {seed}, slot {slot})"
        )

    async def count_prompt_tokens(self, messages: Sequence[Message]) -> int | None:  # noqa: ARG002  # a model's
        """Return None; there is no tokenizer."""
        return None

    async def aclose(self) -> None:
        """Do nothing."""


def replay(directory: Path, *, journal: Path | None = None, trust_scenario: bool = False) -> Replay:
    """Run the run in `directory` again from its journal and compare.

    Args:
        directory: The run's.
        journal: The journal, when it is neither there nor where the configuration says.
        trust_scenario: Replay a scenario that starts programs or calls servers of its own too.

    Raises:
        ConfigError: It is not a run's directory, or other versions are installed.
    """
    manifest = _completed(directory)
    source = journal_of(directory, manifest, journal)
    questions = len(lines(directory / TRANSCRIPT))
    problem = next(_changed_inputs(directory, manifest), None)
    if problem is not None:
        return Replay(questions, None, problem)
    with tempfile.TemporaryDirectory(prefix="replay-") as scratch:
        again = Path(scratch) / "run"
        try:
            with _upstream_silent():
                missing = _run_again(
                    directory, manifest, source, again, trust_scenario=trust_scenario
                )
        except JournalDamaged as exc:
            return Replay(questions, None, str(exc).replace(str(again / JOURNAL), str(source)))
        problem = compare(directory, again, manifest, missing)
        return Replay(questions, file_sha256(again / TRANSCRIPT), problem)


def _completed(directory: Path) -> dict[str, Any]:
    """Return the manifest of a completed run that has all its files."""
    manifest = read_manifest(directory)
    if manifest.get("state") != "completed":
        raise ConfigError(
            f"the run in {directory} has not been completed. Run its command again with --resume "
            f"--run-dir {directory}"
        )
    for name in (SCENARIO, CONFIGURATION, TRANSCRIPT, METRICS):
        if not (directory / name).is_file():
            raise ConfigError(f"{directory / name} is missing, so there is nothing to replay from")
    missing = [name for name in _NEEDED if not isinstance(manifest.get(name), _NEEDED[name])]
    missing += [] if missing else [name for name in _IDENTITY if name not in manifest["identity"]]
    if missing:
        raise ConfigError(f"{directory / MANIFEST} does not say: {', '.join(missing)}")
    return manifest


@contextmanager
def _upstream_silent() -> Iterator[None]:
    """Keep SWARM from reporting, once more, the calls that failed in the run."""
    logger = logging.getLogger("swarm")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _changed_inputs(directory: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the run began with and is not what it was."""
    copies = manifest["copies"]
    if set(copies) != {SCENARIO, CONFIGURATION}:
        yield f"copies of {MANIFEST} names other files than {SCENARIO} and {CONFIGURATION}"
        return
    recorded = {**copies, MEMORY_AT_START: manifest["identity"]["memory_sha256"]}
    for name, digest in recorded.items():
        path = directory / name
        if (file_sha256(path) if path.is_file() else None) != digest:
            yield f"{name} is not the file that {MANIFEST} names: its sha256 differs"


def _run_again(
    directory: Path, manifest: Mapping[str, Any], source: Path, again: Path, *, trust_scenario: bool
) -> str | None:
    """Run into `again`; return the message of the question that has no answer, if one has not."""
    swarm_version()
    from swarm.scenarios.loader import build_orchestrator

    before = manifest["identity"]
    options = RunOptions(
        mode=manifest["mode"],
        scenario=directory / SCENARIO,
        config=_configuration(directory),
        run_dir=again,
        overrides={
            "seed": before["seed"],
            "n_epochs": before["epochs"],
            "steps_per_epoch": before["steps_per_epoch"],
        },
        quiet=True,
    )
    scenario = load_scenario(options.scenario, options.overrides)
    if not trust_scenario:
        _check_harmless(scenario, options.scenario)
    reproducible = make_reproducible(options, scenario)
    _check_versions(before, reproducible.repairs if reproducible else ())
    with RunDirectory(again) as target, asyncio.Runner(loop_factory=SimulationLoop) as runner:
        copies = {
            source: JOURNAL,
            source.with_name(f"{source.name}-wal"): f"{JOURNAL}-wal",
            directory / MEMORY_AT_START: MEMORY_AT_START,
        }
        for path, name in copies.items():
            if path.is_file():
                shutil.copyfile(path, again / name)
        journal = Journal(again / JOURNAL)
        runner.run(journal.open())
        try:
            outputs = Outputs(again, None, earlier={})
            target.begin()
            outputs.begin()
            started = _recorded(manifest, options.config, journal)
            with reproducible.active() if reproducible else nullcontext():
                run = Run(options, scenario, target, started, outputs, reproducible, runner)
                fresh = load_scenario(options.scenario, options.overrides)
                run.build(fresh, build_orchestrator).run()
        except StepAborted as exc:
            return str(exc.failures[0])
        finally:
            runner.run(journal.aclose())
    return None


def _check_harmless(scenario: Any, path: Path) -> None:
    """Check that building and running a scenario reaches nothing outside this process.

    Raises:
        ConfigError: It would.
    """
    found = outside_effects(scenario)
    if found:
        raise ConfigError(
            f"{path} is not replayed, since a run's directory may come from anybody: "
            f"{'; '.join(found)}. Read it, then add --trust-scenario if you would run it yourself"
        )


def _configuration(directory: Path) -> InferenceConfig:
    config = load_config(InferenceConfig, directory / CONFIGURATION, {})
    auto = config.scheduler.model_copy(update={"slots": "auto"})
    quiet = config.logging.model_copy(update={"prompts": False})
    return config.model_copy(update={"scheduler": auto, "logging": quiet})


def _recorded(manifest: Mapping[str, Any], config: InferenceConfig, journal: Journal) -> Started:
    """Return what the run worked with, with nothing behind it."""
    backends: dict[str, Backend] = {
        name: RecordedBackend(name, facts) for name, facts in manifest["backends"].items()
    }
    agents = manifest["identity"]["agents"]
    try:
        services = {
            agent_id: Service(
                backend=name,
                model="",
                base_seed=agents[agent_id]["base_seed"],
                sampling=Sampling(**agents[agent_id]["sampling"]),
                timeout_s=60.0,
                max_retries=0,
            )
            for agent_id, name in manifest["served_by"].items()
        }
    except (KeyError, TypeError) as exc:
        raise ConfigError(f"{MANIFEST} describes the agents wrongly: {exc!r}") from exc
    instructions = Instructions(
        config.prompt_layout,
        structured=config.scheduler.structured_output,
        full_ids=config.actions.full_ids,
    )
    fleet = Fleet(backends, services, names_must_match=False)
    return Started(fleet, {}, instructions, journal, config.scheduler)


def _check_versions(before: Mapping[str, Any], repairs: Sequence[str]) -> None:
    # Another Python is another platform: it may sum otherwise, and is compared within a tolerance.
    recorded = {"versions": {**before["versions"], "python": None}, "repairs": before["repairs"]}
    here = {"versions": {**versions(), "python": None}, "repairs": list(repairs)}
    found = list(differences(recorded, here))
    if found:
        raise ConfigError(
            f"the run was made with other software: {'; '.join(found)}. Install the versions that "
            "its manifest names"
        )
