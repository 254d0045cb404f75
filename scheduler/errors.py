"""The tree of errors that this package raises, and nothing else.

Every message says what happened, to which request or key, and what to try
next. `retry.classify` turns an `AttemptError` into a decision; no other module
decides from an error's type whether to try again.
"""

from __future__ import annotations

from collections.abc import Sequence


class SchedulerError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(SchedulerError):
    """A setting or an input file can't be used; nothing has been started."""


class ServerError(SchedulerError):
    """A llama-server could not be found, started or kept alive."""


class BackendUnavailable(SchedulerError):
    """A backend did not get ready in time (not reachable, or still loading)."""


class SchedulerClosed(SchedulerError):
    """The scheduler takes no more requests, because it is not open."""


class AttemptError(SchedulerError):
    """One attempt at one request failed; see the subclasses for what it means."""


class AttemptTimeout(AttemptError):
    """No answer came within the attempt's deadline (seconds since dispatch)."""


class ConnectionFailed(AttemptError):
    """The connection was refused, broke off, or the server hung up."""


class ServerBusy(AttemptError):
    """The server asked for patience (429, or 5xx with a Retry-After header).

    Args:
        message: What happened.
        retry_after_s: What the server asked for, in seconds, or None.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ServerLoading(AttemptError):
    """The server is up but still loads its model (503 `unavailable_error`)."""


class ServerFault(AttemptError):
    """The server answered with an internal error (5xx)."""


class MalformedAnswer(AttemptError):
    """The answer's bytes are not what the protocol promises."""


class RequestRejected(AttemptError):
    """The server refused the request itself; sending it again can't help."""


class ContextExceeded(RequestRejected):
    """The prompt, or the prompt and its answer, does not fit a slot's context."""


class AuthenticationFailed(RequestRejected):
    """The server did not accept the API key."""


class RequestFailed(SchedulerError):
    """A request has failed for good; `__cause__` is its last attempt's error.

    Args:
        message: What happened, naming the agent, epoch and step.
        attempts: How many attempts were dispatched, including the last one.
    """

    def __init__(self, message: str, attempts: int) -> None:
        super().__init__(message)
        self.attempts = attempts


class StepAborted(SchedulerError):
    """A step ended early because a request failed and `on_failure` is `abort`.

    Args:
        message: What happened and how to go on.
        failures: The errors of the requests that failed, in the order of requests.
        answered: How many of the step's requests were answered before the end.
    """

    def __init__(self, message: str, failures: Sequence[RequestFailed], answered: int) -> None:
        super().__init__(message)
        self.failures = tuple(failures)
        self.answered = answered


class RunEndingError(SchedulerError):
    """Not one request's failure but the whole run's; it ends every step."""


class JournalError(RunEndingError):
    """An answer could not be stored, so nothing may be built upon it."""


class RetryBudgetExhausted(RunEndingError):
    """The run has spent all the retries that its configuration allows."""
