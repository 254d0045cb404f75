"""Where an API key comes from: the environment, or a file that nobody else may read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from scheduler.config import BackendConfig
from scheduler.errors import ConfigError

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_LONGEST_KEY = 4096  # bytes; what is longer is some other file


def configured_key(config: BackendConfig, variable: str | None) -> str | None:
    """Return the API key that the `backend` section names, or None when it names none.

    Args:
        config: Names the file, if there is one.
        variable: Name of the environment variable, if there is no file.

    Raises:
        ConfigError: The variable is not set, or the file is not as a key's file must be.
    """
    if config.api_key_file is not None:
        return _key_in(config.api_key_file)
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(
            f"backend.api_key_env names {variable}, which is not set. Set it: export {variable}=..."
        )
    return key


def _key_in(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            # Windows keeps permissions elsewhere; there the mode says nothing.
            if os.name == "posix" and mode & _OTHERS:
                raise ConfigError(
                    f"backend.api_key_file: others may read {path} (mode "
                    f"{stat.S_IMODE(mode):o}). Keep the key to yourself: chmod 600 {path}"
                )
            data = file.read(_LONGEST_KEY + 1)
        text = data.decode("ascii").strip()
    except OSError as exc:
        raise ConfigError(f"backend.api_key_file: {path} can't be read: {exc}") from exc
    except UnicodeDecodeError:
        text = ""  # an error that quotes the file would quote a key
    if not text or len(data) > _LONGEST_KEY or len(text.split()) > 1:
        raise ConfigError(
            f"backend.api_key_file: {path} does not hold one key. Write the key alone into it"
        )
    return text
