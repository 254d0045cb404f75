"""One question on its way through the batched engine, between the event loop and its thread."""

from __future__ import annotations

import anyio
from anyio.lowlevel import current_token

from scheduler.backends.base import RawAnswer
from scheduler.backends.llama_prompt import Prompt
from scheduler.types import Request
from scheduler.wake import wake


class Job:
    """A question, and whoever waits for its answer; made on the event loop.

    Args:
        request: What is asked.
        seed: The seed of its answer.
    """

    def __init__(self, request: Request, seed: int) -> None:
        self.request = request
        self.seed = seed
        self.prompt = Prompt(())
        self.stopped = False
        self.abandoned = False
        self.done = anyio.Event()
        self._token = current_token()
        self._settled = False
        self._answer: RawAnswer | None = None
        self._error: BaseException | None = None

    def settle(self, outcome: RawAnswer | BaseException) -> None:
        """Say how it ended, once; from the engine's thread."""
        if self._settled:
            return
        self._settled = True
        if isinstance(outcome, BaseException):
            self._error = outcome
        else:
            self._answer = outcome
        wake(self._token, self.done.set)

    @property
    def settled(self) -> bool:
        """Whether it has ended."""
        return self._settled

    def result(self) -> RawAnswer:
        """Return the answer, or raise what came instead; after `done`."""
        if self._answer is None:
            raise self._error or RuntimeError(f"{self.request.label} has not ended")
        return self._answer
