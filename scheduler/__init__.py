"""A batch-oriented asynchronous inference scheduler for multi-agent simulations.

Many agents' prompts go in together, are packed for a server's parallel slots,
retried when they fail, and come back in the order in which they were asked.
"""

from scheduler.backends.base import Backend
from scheduler.backends.fake import FakeBackend
from scheduler.backends.llama_server import LlamaServerBackend
from scheduler.config import SchedulerConfig
from scheduler.engine import Scheduler
from scheduler.errors import ConfigError, RequestFailed, SchedulerError, StepAborted
from scheduler.types import Answer, Completion, Message, OutputSchema, Request, Sampling

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
