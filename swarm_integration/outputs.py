"""What SWARM itself writes during a run, led into the run's directory.

Upstream appends its event log and prompt audit to files outside, and reads and
writes one graph memory across runs. Inside a run's directory they begin anew when
the run is resumed; what belongs outside is brought there when the run has ended.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from scheduler.errors import ConfigError

EVENT_LOG = "event_log.jsonl"
PROMPT_AUDIT = "prompt_audit.jsonl"
MEMORY = "graph_memory.json"
MEMORY_AT_START = "graph_memory_at_start.json"


class Outputs:
    """The files that SWARM writes in one run.

    Args:
        directory: The run's directory.
        memory: Where the scenario keeps its graph memory, or None.
        earlier: The manifest of the attempt from which the run goes on, or None.

    Attributes:
        brought_out: Whether `finish` has been done, now or in an earlier attempt.
    """

    def __init__(
        self, directory: Path, memory: Path | None, *, earlier: Mapping[str, Any] | None
    ) -> None:
        self._directory = directory
        self._memory = memory
        self._audit_wanted: Path | None = None
        self.brought_out = earlier is not None and bool(earlier.get("brought_out"))
        if earlier is None:
            (directory / MEMORY_AT_START).unlink(missing_ok=True)
            if memory is not None and memory.is_file():
                shutil.copyfile(memory, directory / MEMORY_AT_START)

    @property
    def memory_sha256(self) -> str | None:
        """The sha256 of the memory that the run began with, None without one."""
        start = self._directory / MEMORY_AT_START
        return sha256(start.read_bytes()).hexdigest() if start.is_file() else None

    def begin(self) -> None:
        """Forget what an earlier attempt wrote."""
        for name in (EVENT_LOG, PROMPT_AUDIT, MEMORY):
            (self._directory / name).unlink(missing_ok=True)
        if (self._directory / MEMORY_AT_START).is_file():
            shutil.copyfile(self._directory / MEMORY_AT_START, self._directory / MEMORY)

    def redirect_scenario(self, scenario: Any, *, event_log: bool) -> None:
        """Let a scenario write into the directory.

        Args:
            scenario: Upstream's `ScenarioConfig`, before `build_orchestrator`.
            event_log: Whether the scenario's file asks for an event log.
        """
        config = scenario.orchestrator_config
        if event_log:
            config.log_path = self._directory / EVENT_LOG
            config.log_events = True
        if config.graph_memory_path is not None:
            config.graph_memory_path = str(self._directory / MEMORY)

    def redirect_audit(self, wanted: str | None) -> str | None:
        """Return where `--prompt-audit` is to write, and remember where it belongs."""
        if wanted is None:
            return None
        self._audit_wanted = Path(wanted)
        return str(self._directory / PROMPT_AUDIT)

    def redirect_agents(self, llm_agents: list[Any]) -> None:
        """Let the agents whose scenario asks for a prompt audit write into the directory."""
        for agent in llm_agents:
            if agent.llm_config.prompt_audit_path:
                agent.llm_config.prompt_audit_path = str(self._directory / PROMPT_AUDIT)

    def finish(self) -> None:
        """Bring the prompt audit and the graph memory to where they belong outside, once."""
        if self.brought_out:
            return
        audit, memory = self._directory / PROMPT_AUDIT, self._directory / MEMORY
        if self._audit_wanted is not None and audit.is_file():
            self._audit_wanted.parent.mkdir(parents=True, exist_ok=True)
            with self._audit_wanted.open("ab") as target:
                target.write(audit.read_bytes())
        if self._memory is not None and memory.is_file():
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(memory, self._memory)
        self.brought_out = True


def check_targets(args: Any) -> None:
    """Check that what is written at a run's end can be written, before its beginning.

    Args:
        args: Upstream's options of `swarm run`.

    Raises:
        ConfigError: An option names a place where it can't.
    """
    for name, is_folder in (("prompt_audit", False), ("export_json", False), ("export_csv", True)):
        value = getattr(args, name, None)
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            _check_target(option, Path(value), is_folder=is_folder)
            if name != "prompt_audit":
                _check_below(option, Path(value))


def _check_target(option: str, path: Path, *, is_folder: bool) -> None:
    if path.exists() and path.is_dir() != is_folder:
        is_what, wanted = ("a file", "directory") if is_folder else ("a directory", "file")
        raise ConfigError(f"{option} {path} is {is_what}. Give a {wanted}")
    place = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not os.access(place, os.W_OK) or not (place.is_dir() or place == path):
        raise ConfigError(f"{option} {path} can't be written, because {place} can't. Give another")


def _check_below(option: str, path: Path) -> None:
    """Check what upstream checks at the end: that a relative path does not lead outside."""
    here = Path.cwd().resolve()
    if not path.is_absolute() and not (here / path).resolve().is_relative_to(here):
        raise ConfigError(
            f"{option} {path} leads out of the working directory, which SWARM allows only to whole "
            f"paths. Give {(here / path).resolve()}"
        )
