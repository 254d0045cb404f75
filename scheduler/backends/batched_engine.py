"""Many answers at once from one llama.cpp model, each as if it had the model to itself.

Each turn evaluates one thing: a chunk of one prompt, by itself, or the next token of every
answer, in a step whose row count is one of those that agree bit for bit. Which comes next
follows from the jobs alone; no clock is read to decide. All of it runs on the thread that owns
the model, except `stop`, `stop_all` and `overdue`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from scheduler.backends.answer_writer import AnswerWriter
from scheduler.backends.base import RawAnswer
from scheduler.backends.batched_cuts import Grain, Text, cuts_for
from scheduler.backends.batched_job import Job
from scheduler.backends.batched_rows import Turn, groups, next_turn
from scheduler.backends.batched_sequences import Counts, Sequences
from scheduler.backends.llama_library import ABORTED, LoadedModel
from scheduler.backends.llama_prompt import Prompt
from scheduler.backends.native_model import AnswerStopped
from scheduler.errors import ServerFault
from scheduler.types import Message


@dataclass(eq=False, slots=True)
class _Answer:
    """A job in a sequence: first its prompt is read, then its answer is written."""

    job: Job
    writer: AnswerWriter
    sequence: int
    text: Text
    cached_tokens: int
    next_token: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0


class BatchedEngine:
    """Reads prompts and writes answers in turns.

    Args:
        model: The loaded model, closed with this.
        rows: The row counts that agree; empty to evaluate as many rows as there are answers,
            which is not reproducible where several answer at once.
        grain: How prompts may be cut; None to cut at fixed places.
        slots: How many answers are written at once.
        sequences: How many sequences there are; those beyond `slots` keep prefixes.

    Raises:
        ConfigError: There is no room for the sequences.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        rows: Sequence[int],
        grain: Grain | None,
        slots: int,
        sequences: int,
    ) -> None:
        self._model = model
        self._slots = slots
        self._rows = tuple(rows)
        self._cuts = cuts_for(grain)
        self._sequences = Sequences(model, cuts=self._cuts, rows=rows, slots=slots, count=sequences)
        self._context = self._sequences.context
        self._waiting: deque[Job] = deque()
        self._reading: _Answer | None = None
        self._writing: dict[int, _Answer] = {}
        self._abandoned: list[Job] = []
        self._prompts_since_step = 0
        self._closing = False

    def __repr__(self) -> str:
        return (
            f"<BatchedEngine {len(self._writing)} writing, {int(self._reading is not None)} "
            f"reading, {len(self._waiting)} waiting, {self._slots} slots>"
        )

    @property
    def counts(self) -> Counts:
        """What was evaluated since the start."""
        return self._sequences.counts

    @property
    def overdue(self) -> str | None:
        """The label of a job that was told to stop and is still in its sequence, if any is."""
        for job in list(self._abandoned):
            if not job.settled:
                return job.request.label
        return None

    def prompt(self, messages: Sequence[Message], thinking: bool | None) -> Prompt:
        """Return `messages` as tokens.

        Raises:
            RequestRejected: The model's chat template refuses them.
        """
        return self._model.reader.read(messages, thinking)

    def submit(self, job: Job) -> None:
        """Take a job whose prompt has been read and fits."""
        self._waiting.append(job)

    def stop(self, job: Job) -> None:
        """Give up a job; it settles at the next turn. From any thread."""
        job.stopped = True
        reading = self._reading
        if reading is not None and reading.job is job:
            self._context.interrupt()

    def abandon(self, job: Job) -> None:
        """Note that nobody waits for `job`, which did not stop in time. From any thread."""
        self._abandoned = [each for each in self._abandoned if not each.settled]
        self._abandoned.append(job)

    def stop_all(self) -> None:
        """Give up all jobs at once; from any thread."""
        self._closing = True
        self._context.interrupt()

    def turn(self) -> bool:
        """Evaluate one thing; return whether there is more to do."""
        try:
            self._turn()
        except Exception as exc:  # noqa: BLE001 - whoever waits is told, whatever it is
            self._fail_all(exc)
        return bool(self._waiting or self._writing or self._reading is not None)

    def close(self) -> None:
        """Free everything; may be called twice. Whoever still waits is told."""
        self._fail_all(AnswerStopped())
        self._sequences.close()
        self._model.close()

    def _turn(self) -> None:
        if self._closing:
            raise AnswerStopped
        self._drop_stopped()
        self._begin()
        match next_turn(
            reads=self._reading is not None,
            writes=bool(self._writing),
            prompts_since_step=self._prompts_since_step,
            slots=self._slots,
        ):
            case Turn.PREFILL if self._reading is not None:
                self._read(self._reading)
            case Turn.DECODE:
                self._write()
            case _:
                pass

    def _drop_stopped(self) -> None:
        for job in [job for job in self._waiting if job.stopped]:
            self._waiting.remove(job)
            job.settle(AnswerStopped())
        for answer in self._answers():
            if answer.job.stopped:
                self._end(answer, AnswerStopped())

    def _begin(self) -> None:
        """Give the job that waits longest a sequence, if there is one and no prompt is read."""
        while self._waiting and self._reading is None and len(self._writing) < self._slots:
            job = self._waiting.popleft()
            request = job.request
            try:
                writer = AnswerWriter(
                    self._model, job.prompt, request.sampling, job.seed, request.schema
                )
            except Exception as exc:  # noqa: BLE001 - its own failure, not its neighbours'
                job.settle(exc)
                continue
            prompt = job.prompt
            text = self._cuts.text(prompt.tokens, prompt.system_tokens, prompt.shared)
            sequence = self._sequences.place(text)
            self._reading = _Answer(
                job, writer, sequence, text, cached_tokens=self._sequences.length(sequence)
            )

    def _read(self, answer: _Answer) -> None:
        """Evaluate the next chunk of the prompt that is being read."""
        began, position = perf_counter(), self._sequences.length(answer.sequence)
        self._allow()
        code = self._sequences.read(answer.sequence, answer.text)
        answer.prefill_s += perf_counter() - began
        if code == ABORTED:
            return  # it was stopped, and goes at the next turn; or the flag was not for it
        if code != 0:
            self._end(answer, _fault(code, "a chunk of a prompt", position))
        elif self._sequences.length(answer.sequence) == len(answer.text):
            self._reading = None
            self._prompts_since_step += 1
            self._writing[answer.sequence] = answer
            self._draw(answer, -1)

    def _write(self) -> None:
        """Evaluate the last token of every answer and draw the next one."""
        for group in groups(self._writing, self._rows):
            if not self._step([self._writing[number] for number in group]):
                return
        self._prompts_since_step = 0

    def _step(self, answers: Sequence[_Answer]) -> bool:
        """Take answers one token further; return False where the evaluation was left."""
        began = perf_counter()
        self._allow()
        code, first = self._sequences.step({each.sequence: each.next_token for each in answers})
        took = perf_counter() - began
        if code == ABORTED:
            return False
        for answer in answers:
            answer.decode_s += took
            if code != 0:
                position = self._sequences.length(answer.sequence)
                self._end(answer, _fault(code, f"a step of {len(answers)} answers", position))
            else:
                self._draw(answer, answer.sequence - first)
        return True

    def _draw(self, answer: _Answer, row: int) -> None:
        """Draw the next token of an answer from a row of what was evaluated last."""
        try:
            answer.next_token = answer.writer.write(self._context.pointer, row)
        except Exception as exc:  # noqa: BLE001 - its own failure, not its neighbours'
            self._end(answer, exc)
            return
        if answer.writer.finished:
            self._end(
                answer,
                answer.writer.answer(
                    cached_tokens=answer.cached_tokens,
                    prefill_s=answer.prefill_s,
                    decode_s=answer.decode_s,
                ),
            )

    def _end(self, answer: _Answer, outcome: RawAnswer | BaseException) -> None:
        """Free the sequence of an answer and tell who waits."""
        answer.writer.close()
        if self._reading is answer:
            self._reading = None
        self._writing.pop(answer.sequence, None)
        self._sequences.release(answer.sequence)
        answer.job.settle(outcome)

    def _answers(self) -> list[_Answer]:
        reading = [] if self._reading is None else [self._reading]
        return [*reading, *self._writing.values()]

    def _allow(self) -> None:
        """Take back an interruption that came too late, unless it was for everyone."""
        self._context.allow()
        if self._closing:
            raise AnswerStopped

    def _fail_all(self, exc: Exception) -> None:
        for answer in self._answers():
            self._end(answer, exc)
        while self._waiting:
            self._waiting.popleft().settle(exc)


def _fault(code: int, what: str, position: int) -> ServerFault:
    return ServerFault(
        f"llama.cpp could not evaluate {what} at position {position} (llama_decode returned "
        f"{code}); if this happens again, restart the run"
    )
