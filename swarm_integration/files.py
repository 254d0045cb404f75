"""Files that come with this project, and what may be written where."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from scheduler.errors import ConfigError
from swarm_integration.errors import RunFilesError

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


def links_in(directory: Path) -> Iterator[Path]:
    """Yield the links in a directory and below; none is followed."""
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            yield path


def has_alone(file: TextIO) -> bool:
    """Take an open file for this process alone until it is closed; return whether it could.

    True where files can't be taken: on Windows, and on a network's disk without locks.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file of a run that can't be written, and say what to do.

    Raises:
        RunFilesError: The system refused.
    """
    try:
        yield
    except OSError as exc:
        raise RunFilesError(
            f"{path} can't be written: {exc.strerror or exc}. Make room or choose another disk, "
            "then go on with --resume"
        ) from exc


@contextmanager
def room_for(directory: Path) -> Iterator[None]:
    """Name the directory of a run where SWARM itself finds no room for one of its files.

    Raises:
        RunFilesError: A file can't grow, which the system says without its name.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise
        raise RunFilesError(
            f"a file of SWARM's in {directory} can't be written: {exc.strerror or exc}. Make room, "
            "then go on with --resume"
        ) from exc
