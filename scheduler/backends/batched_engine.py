"""Many answers at once from one llama.cpp model, each as if it had the model to itself.

Each turn evaluates one thing: a chunk of one prompt, by itself, or the next token of every
answer, in a step whose row count is one of those that agree bit for bit. Which comes next
follows from the jobs alone; no clock is read to decide. All of it runs on the thread that owns
the model, except `stop`, `stop_all` and `overdue`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

from scheduler.backends.answer_writer import AnswerWriter
from scheduler.backends.base import RawAnswer
from scheduler.backends.batched_job import Job
from scheduler.backends.batched_prefixes import Prefixes
from scheduler.backends.batched_rows import Turn, next_turn, window
from scheduler.backends.llama_library import ABORTED, Context, LoadedModel, Row
from scheduler.backends.llama_prefix import CHUNK_TOKENS, Chunk, border_of, cut
from scheduler.backends.llama_prompt import Prompt
from scheduler.backends.native_model import AnswerStopped
from scheduler.errors import AttemptError, ServerFault
from scheduler.types import Message

_PADDING_TOKEN = 0
"""What a row holds that no answer needs; it is dropped after its step."""


@dataclass(eq=False, slots=True)
class _Answer:
    """A job in a sequence: first its prompt is read, then its answer is written."""

    job: Job
    writer: AnswerWriter
    sequence: int
    chunks: tuple[Chunk, ...]
    border: int
    read: int
    """How many chunks are evaluated."""
    cached_tokens: int
    tokens: int
    """How many tokens the sequence holds."""
    next_token: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0


@dataclass(slots=True)
class Counts:
    """What was evaluated since the start, for measurements."""

    chunks: int = 0
    steps: int = 0
    rows: int = 0
    padding: int = 0
    written: int = 0
    prefilled_tokens: int = field(default=0)


class BatchedEngine:
    """Reads prompts and writes answers in turns.

    Args:
        model: The loaded model, closed with this.
        rows: The row counts that agree; empty to evaluate as many rows as there are answers.
        slots: How many answers are written at once.
        sequences: How many sequences there are; those beyond `slots` keep prefixes.

    Raises:
        ConfigError: There is no room for the sequences.
    """

    def __init__(
        self, model: LoadedModel, *, rows: Sequence[int], slots: int, sequences: int
    ) -> None:
        self._model = model
        self._rows = tuple(rows)
        self._slots = slots
        self._sequences = sequences
        self._context = Context(
            model, sequences=sequences, n_ctx=model.spec.n_ctx, most_rows=CHUNK_TOKENS
        )
        self._prefixes = Prefixes(slots, sequences)
        self._waiting: deque[Job] = deque()
        self._reading: _Answer | None = None
        self._writing: dict[int, _Answer] = {}
        self._abandoned: list[Job] = []
        self._chunks_since_step = 0
        self._closing = False
        self.counts = Counts()

    def __repr__(self) -> str:
        return (
            f"<BatchedEngine {len(self._writing)} writing, {int(self._reading is not None)} "
            f"reading, {len(self._waiting)} waiting, {self._slots} slots>"
        )

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
        self._context.close()
        self._model.close()

    def _turn(self) -> None:
        if self._closing:
            raise AnswerStopped
        self._drop_stopped()
        self._begin()
        match next_turn(
            reads=self._reading is not None,
            writes=bool(self._writing),
            chunks_since_step=self._chunks_since_step,
        ):
            case Turn.PREFILL:
                self._read()
            case Turn.DECODE:
                self._write()
            case Turn.NOTHING:
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
            except AttemptError as exc:
                job.settle(exc)
                continue
            self._place(job, writer)

    def _place(self, job: Job, writer: AnswerWriter) -> None:
        tokens, system = job.prompt.tokens, job.prompt.system_tokens
        chunks = cut(tokens, system)
        place = self._prefixes.find(chunks, self._writing.keys(), self._rows)
        if place.source != place.sequence and place.chunks:
            self._context.copy(place.source, place.sequence)
        cached = sum(len(chunk) for chunk in chunks[: place.chunks])
        self._context.keep(place.sequence, cached)
        self._prefixes.hold(place.sequence, chunks[: place.chunks])
        self._reading = _Answer(
            job=job,
            writer=writer,
            sequence=place.sequence,
            chunks=chunks,
            border=border_of(tokens, system),
            read=place.chunks,
            cached_tokens=cached,
            tokens=cached,
        )
        if cached >= self._reading.border:
            self._keep_prefix(self._reading)

    def _read(self) -> None:
        """Evaluate the next chunk of the prompt that is being read."""
        answer = self._reading
        if answer is None:
            return
        chunk = answer.chunks[answer.read]
        last = len(chunk) - 1
        began = perf_counter()
        code = self._evaluate(
            [
                (token, answer.tokens + i, answer.sequence, i == last)
                for i, token in enumerate(chunk)
            ]
        )
        if code == ABORTED:
            return  # it was stopped, and goes at the next turn; or the flag was not for it
        if code != 0:
            self._end(answer, _fault(code, len(chunk), answer.tokens))
            return
        self._chunks_since_step += 1
        self.counts.chunks += 1
        self.counts.prefilled_tokens += len(chunk)
        answer.read += 1
        answer.tokens += len(chunk)
        self._prefixes.hold(answer.sequence, answer.chunks[: answer.read])
        if answer.tokens == answer.border:
            self._keep_prefix(answer)
        answer.prefill_s += perf_counter() - began
        if answer.read == len(answer.chunks):
            self._reading = None
            self._writing[answer.sequence] = answer
            self._draw(answer, last)

    def _write(self) -> None:
        """Evaluate the last token of every answer and draw the next one."""
        step = window(self._writing.keys(), self._rows, self._sequences)
        rows: list[Row] = []
        for sequence in step:
            answer = self._writing.get(sequence)
            token = _PADDING_TOKEN if answer is None else answer.next_token
            rows.append((token, self._tokens(sequence), sequence, True))
        began = perf_counter()
        code = self._evaluate(rows)
        if code == ABORTED:
            return
        for sequence in step:
            if sequence not in self._writing:
                self._context.keep(sequence, self._tokens(sequence))
        answers = [self._writing[sequence] for sequence in step if sequence in self._writing]
        if code != 0:
            for answer in answers:
                self._end(answer, _fault(code, len(rows), answer.tokens))
            return
        self._chunks_since_step = 0
        self.counts.steps += 1
        self.counts.rows += len(rows)
        self.counts.padding += len(rows) - len(answers)
        self.counts.written += len(answers)
        for answer in answers:
            answer.tokens += 1
        for answer in answers:
            answer.decode_s += perf_counter() - began
            self._draw(answer, answer.sequence - step.start)

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
        self._context.keep(answer.sequence, self._prefixes.tokens(answer.sequence))
        answer.job.settle(outcome)

    def _keep_prefix(self, answer: _Answer) -> None:
        """Keep what other prompts may share with the one that is being read, if it is new."""
        count = length = 0
        while length < answer.border:
            length += len(answer.chunks[count])
            count += 1
        prefix = answer.chunks[:count]
        keeper = self._prefixes.keeper(prefix) if prefix else None
        if keeper is not None:
            self._context.copy(answer.sequence, keeper)
            self._context.keep(keeper, answer.border)
            self._prefixes.hold(keeper, prefix)

    def _tokens(self, sequence: int) -> int:
        """Return how many tokens `sequence` holds."""
        for answer in self._answers():
            if answer.sequence == sequence:
                return answer.tokens
        return self._prefixes.tokens(sequence)

    def _answers(self) -> list[_Answer]:
        reading = [] if self._reading is None else [self._reading]
        return [*reading, *self._writing.values()]

    def _evaluate(self, rows: Sequence[Row]) -> int:
        """Evaluate `rows`; where that fails, leave every sequence as it was."""
        self._context.allow()
        if self._closing:
            raise AnswerStopped
        code = self._context.evaluate(rows)
        if code != 0:
            first = {sequence: position for _, position, sequence, _ in reversed(rows)}
            for sequence, position in first.items():
                self._context.keep(sequence, position)
        return code

    def _fail_all(self, exc: Exception) -> None:
        for answer in self._answers():
            self._end(answer, exc)
        while self._waiting:
            self._waiting.popleft().settle(exc)


def _fault(code: int, tokens: int, position: int) -> ServerFault:
    return ServerFault(
        f"llama.cpp could not evaluate {tokens} tokens at position {position} (llama_decode "
        f"returned {code}); if this happens again, restart the run"
    )
