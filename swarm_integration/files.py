"""Where the scenarios and configurations that come with this project are."""

from __future__ import annotations

from pathlib import Path

from scheduler.errors import ConfigError

_PACKAGE = Path(__file__).parent


def project_file(name: str) -> Path:
    """Return the path of a file such as `scenarios/llm_batch_12.yaml`.

    A checkout has it beside the package, an installed wheel inside of it.

    Raises:
        ConfigError: There is no such file.
    """
    for root in (_PACKAGE.parent, _PACKAGE / "files"):
        if (root / name).is_file():
            return root / name
    raise ConfigError(f"{name} is not part of this installation; install the package again")
