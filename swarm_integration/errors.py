"""The errors of the SWARM side; all of them are `SchedulerError`s."""

from __future__ import annotations

from scheduler.errors import ConfigError, RequestFailed, SchedulerError


class CompatError(ConfigError):
    """SWARM is not installed, or lacks a name that this project leans on; nothing was started."""


class ScenarioError(ConfigError):
    """The scenario can't be run under the scheduler; nothing has been started."""


class FitnessError(ConfigError):
    """A backend can't serve this scenario; nothing has been started."""


class InvalidAnswer(RequestFailed):
    """Every answer to a question broke its output schema."""


class RunFilesError(SchedulerError):
    """A file of the run can't be written; what was answered is in the journal."""
