"""Where the journal of a run lies, and whether it is the one that the run began with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scheduler.errors import ConfigError
from scheduler.journal import Journal
from swarm_integration.rundir import JOURNAL, TRANSCRIPT


def check_kept(directory: Path, earlier: Mapping[str, Any] | None, journal: Journal) -> None:
    """Check that a run that asked something goes on with the journal that it began with.

    Args:
        directory: The run's directory, with the transcript of the earlier attempt.
        earlier: The earlier attempt's manifest, None for a new run.
        journal: The journal, open.

    Raises:
        ConfigError: The journal is empty, so that all would be asked anew.
    """
    if earlier is None or not journal.is_empty:
        return
    # The manifest of a killed run does not say how far it came.
    transcript = directory / TRANSCRIPT
    asked = transcript.is_file() and transcript.stat().st_size > 0
    if asked and not (earlier.get("journal") or {}).get("broken"):
        raise ConfigError(
            f"the run in {directory} has answers, but its journal {journal.path} holds none: it "
            "was moved or removed, or journal.path names another one. Put it back as it was, or "
            "start a new run"
        )


def journal_of(directory: Path, manifest: Mapping[str, Any], given: Path | None = None) -> Path:
    """Return the file that holds a run's answers: the one given, the directory's, the configured.

    Args:
        directory: The run's directory.
        manifest: What its manifest says.
        given: Where somebody says that the journal is, or None.

    Raises:
        ConfigError: It is not there.
    """
    candidates = [given] if given else [directory / JOURNAL, *_configured(manifest)]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        places = " and ".join(str(path.absolute()) for path in candidates)
        raise ConfigError(
            f"{places} {'is' if len(candidates) == 1 else 'are'} missing, so there is nothing to "
            "replay from. Give --journal FILE, where the run's journal is"
        )
    return found


def _configured(manifest: Mapping[str, Any]) -> list[Path]:
    try:
        path = manifest["configuration"]["journal"]["path"]
    except (KeyError, TypeError):
        return []
    # The directory may be a stranger's, who could name a share of theirs: this machine would
    # log in there.
    local = isinstance(path, str) and not path.startswith(("//", "\\\\"))
    return [Path(path)] if local and path != "auto" else []
