"""Putting printed tables into a document, whole or between two marks.

A number in a document is then always one that the command has printed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scheduler.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Place:
    """Where text goes: a whole file, or the part of one between the marks of `name`."""

    path: Path
    name: str | None = None

    @classmethod
    def of(cls, words: str) -> Place:
        """Return the place that `FILE` or `FILE#NAME` says."""
        path, _, name = words.partition("#")
        return cls(Path(path), name or None)

    @property
    def marks(self) -> tuple[str, str]:
        """The lines between which the text stands."""
        return f"<!-- begin: {self.name} -->", f"<!-- end: {self.name} -->"

    def check(self) -> None:
        """See that the marks are there.

        Raises:
            ConfigError: They are not, or the file is not.
        """
        if self.name is not None:
            self._around()

    def put(self, text: str) -> None:
        """Write the text, in place of what was there."""
        if self.name is not None:
            before, after = self._around()
            text = f"{before}\n{text.strip()}\n{after}"
        self.path.write_text(text, encoding="utf-8")

    def _around(self) -> tuple[str, str]:
        try:
            whole = self.path.read_text(encoding="utf-8")
        except OSError as exc:
            raise ConfigError(f"--markdown {self.path} can't be read: {exc.strerror}") from exc
        begin, end = self.marks
        if whole.count(begin) != 1 or whole.count(end) != 1 or whole.find(end) < whole.find(begin):
            raise ConfigError(
                f"--markdown {self.path} has no lines `{begin}` and `{end}`; add them where the "
                "tables are to stand, or name a file alone"
            )
        at = whole.index(begin) + len(begin)
        return whole[:at], whole[whole.index(end) :]
