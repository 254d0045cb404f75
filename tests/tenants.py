"""Who owns entries in tests that have no scheduler."""

from __future__ import annotations

from scheduler.lane import Entry, Lane


class IdleTenant:
    """Starts nothing: the test does."""

    def start(self, lane: Lane, entry: Entry) -> None:
        """Do nothing."""


TENANT = IdleTenant()
