"""Where the journal of a run that is over lies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scheduler.errors import ConfigError
from swarm_integration.rundir import JOURNAL


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
