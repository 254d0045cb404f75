"""A batch-oriented asynchronous inference scheduler for multi-agent simulations.

Many agents' prompts go in together, are packed for a server's parallel slots,
retried when they fail, and come back in the order in which they were asked.
`LlamaServerBackend` is imported when it is asked for: the `openai` package beneath it takes
longer to import than all the rest.
"""

from typing import TYPE_CHECKING

from scheduler.backends.base import Backend
from scheduler.backends.fake import FakeBackend
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import ConfigError, RequestFailed, SchedulerError, StepAborted
from scheduler.types import Answer, Completion, Message, OutputSchema, Request, Sampling

if TYPE_CHECKING:
    from scheduler.backends.llama_server import LlamaServerBackend
else:  # hidden, or mypy would take any name for one of this package

    def __getattr__(name: str) -> type[Backend]:
        if name != "LlamaServerBackend":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from scheduler.backends.llama_server import LlamaServerBackend  # noqa: PLC0415 - see above

        return LlamaServerBackend


__all__ = [
    "Answer",
    "Backend",
    "Completion",
    "ConfigError",
    "FakeBackend",
    "LlamaServerBackend",
    "Message",
    "OutputSchema",
    "Request",
    "RequestFailed",
    "Sampling",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerError",
    "StepAborted",
]
