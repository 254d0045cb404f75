"""A run directory becomes a `RunRecord`.

Only files that lie in the directory itself are read: the directory may come from a
stranger, and a link in it could point anywhere. Nothing is unpickled or run. What is
missing or damaged is named in the record, except the manifest, without which a
directory is no run's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from scheduler.errors import ConfigError
from swarm_integration.report.log import parse_log
from swarm_integration.report.plain import mapping, number, sequence, text
from swarm_integration.report.records import Log, RunRecord
from swarm_integration.rundir import LOG, MANIFEST, METRICS, TRANSCRIPT, read_manifest

MOST_EPOCHS = 10_000
_CHUNK_BYTES = 1 << 20


def read_run(path: Path) -> RunRecord:
    """Read the run in `path`.

    Raises:
        ConfigError: It is no directory of a run.
    """
    if not path.is_dir():
        raise ConfigError(f"{path} is no directory. Give the directory of a run, such as runs/a")
    if (path / MANIFEST).is_symlink() or not (path / MANIFEST).is_file():
        raise ConfigError(f"there is no run in {path}: it has no file {MANIFEST}")
    try:
        manifest = read_manifest(path)
    except RecursionError as exc:
        raise ConfigError(f"there is no run in {path}: its manifest is nested too deep") from exc
    missing: list[str] = []
    return RunRecord(
        path=path,
        name=text(path.resolve().name, "run"),
        manifest=manifest,
        log=_log(path, missing),
        epochs=_epochs(path, missing),
        personas=_personas(manifest),
        transcript_sha256=_transcript_sha256(path, missing),
        missing=tuple(missing),
    )


def _own(path: Path, name: str, missing: list[str]) -> Path | None:
    """Return a file of the directory if it is one, and lies in it."""
    file = path / name
    if file.is_symlink():
        missing.append(f"{name} is a link and was not followed")
    elif not file.is_file():
        missing.append(f"{name} is not there")
    else:
        return file
    return None


def _log(path: Path, missing: list[str]) -> Log:
    file = _own(path, LOG, missing)
    if file is None:
        return Log()
    try:
        with file.open("rb") as lines:
            log = parse_log(lines)
    except OSError as exc:
        missing.append(f"{LOG} can't be read: {exc.strerror}")
        return Log()
    if log.unreadable:
        plural = "line" if log.unreadable == 1 else "lines"
        missing.append(f"{LOG} has {log.unreadable} unreadable {plural}, which were left out")
    return log


def _epochs(path: Path, missing: list[str]) -> tuple[Mapping[str, float], ...]:
    file = _own(path, METRICS, missing)
    if file is None:
        return ()
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        missing.append(f"{METRICS} can't be read: {type(exc).__name__}")
        return ()
    return tuple(_numbers(epoch) for epoch in sequence(data)[:MOST_EPOCHS])


def _numbers(epoch: object) -> dict[str, float]:
    named = {text(name): number(value) for name, value in mapping(epoch).items()}
    return {name: value for name, value in named.items() if value is not None}


def _personas(manifest: Mapping[str, Any]) -> dict[str, str]:
    agents = mapping(manifest.get("agents"))
    named = {text(agent): text(mapping(facts).get("persona")) for agent, facts in agents.items()}
    return {agent: persona for agent, persona in named.items() if persona}


def _transcript_sha256(path: Path, missing: list[str]) -> str | None:
    file = _own(path, TRANSCRIPT, missing)
    if file is None:
        return None
    digest = sha256()
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as exc:
        missing.append(f"{TRANSCRIPT} can't be read: {exc.strerror}")
        return None
    return digest.hexdigest()
