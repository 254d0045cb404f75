"""The sequences of one context: prompts read into them, beginnings copied, steps of all of them.

Between `batched_engine.py`, which knows jobs and answers, and llama.cpp. It keeps what each
sequence holds in step with what llama.cpp holds: where an evaluation fails, nothing has changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

from scheduler.backends.batched_cuts import Cuts, Text
from scheduler.backends.batched_prefixes import Prefixes
from scheduler.backends.batched_rows import window
from scheduler.backends.llama_library import Context, LoadedModel
from scheduler.backends.llama_prefix import CHUNK_TOKENS

_PADDING_TOKEN = 0
"""What a row holds that no answer needs; it is dropped after its step."""


@dataclass(slots=True)
class Counts:
    """What was evaluated since the start, for measurements.

    Attributes:
        chunks: Evaluations of a part of a prompt.
        prefilled_tokens: Tokens of prompts that were evaluated.
        cached_tokens: Tokens of prompts that were there already.
        copies: Sequences that were copied.
        steps: Evaluations of a token of every answer.
        rows: Rows of these, padding included.
        padding: Rows that no answer needed.
        written: Rows that an answer needed.
        evaluating_s: Seconds inside llama.cpp's evaluations.
    """

    chunks: int = 0
    prefilled_tokens: int = 0
    cached_tokens: int = 0
    copies: int = 0
    steps: int = 0
    rows: int = 0
    padding: int = 0
    written: int = 0
    evaluating_s: float = 0.0


class Sequences:
    """The sequences of a context, those with the lowest numbers for answers.

    Args:
        model: The loaded model.
        cuts: How prompts are cut.
        rows: The row counts that agree; empty to evaluate as many rows as there are answers.
        slots: How many sequences answer.
        count: How many sequences there are; those beyond `slots` keep prefixes.

    Raises:
        ConfigError: There is no room for them.
    """

    def __init__(
        self, model: LoadedModel, *, cuts: Cuts, rows: Sequence[int], slots: int, count: int
    ) -> None:
        self._cuts = cuts
        self._rows = tuple(rows)
        self._context = Context(
            model, sequences=count, n_ctx=model.spec.n_ctx, most_rows=max(CHUNK_TOKENS, count)
        )
        self._prefixes = Prefixes(cuts, slots, count)
        self._lengths = [0] * count
        self._busy: set[int] = set()
        self.counts = Counts()

    @property
    def context(self) -> Context:
        """The context, for scores and interruptions."""
        return self._context

    def length(self, sequence: int) -> int:
        """Return how many tokens `sequence` holds."""
        return self._lengths[sequence]

    def place(self, text: Text) -> int:
        """Take a sequence for a prompt and return its number.

        What the prompt shares with one that is there is in it afterwards. There is an idle
        sequence, or this must not be called.
        """
        place = self._prefixes.find(text, self._busy, self._rows)
        if place.source != place.sequence and place.tokens:
            self._copy(place.source, place.sequence)
        self._keep(place.sequence, place.tokens)
        self._prefixes.hold(place.sequence, text.first(place.tokens))
        self._busy.add(place.sequence)
        self.counts.cached_tokens += place.tokens
        if place.tokens >= text.border:
            self._keep_prefix(place.sequence, text)
        return place.sequence

    def read(self, sequence: int, text: Text) -> int:
        """Evaluate the next chunk of the prompt in `sequence`; return llama_decode's code.

        The scores of its last token are the last row's.
        """
        start = self._lengths[sequence]
        end = self._cuts.end(text, start)
        began = perf_counter()
        code = self._context.read(text.tokens[start:end], start, sequence)
        self.counts.evaluating_s += perf_counter() - began
        if code != 0:
            self._keep(sequence, start)
            return code
        self._lengths[sequence] = end
        self._prefixes.hold(sequence, text.first(end))
        self.counts.chunks += 1
        self.counts.prefilled_tokens += end - start
        if start < text.border <= end:
            self._keep_prefix(sequence, text)
        return 0

    def step(self, tokens: Mapping[int, int]) -> tuple[int, int]:
        """Evaluate the next token of sequences.

        Args:
            tokens: The next token by sequence.

        Returns:
            llama_decode's code, and the sequence of the first row; the others follow it.
        """
        step = window(tokens.keys(), self._rows, len(self._lengths))
        lengths = self._lengths
        rows = [(tokens.get(each, _PADDING_TOKEN), lengths[each], each, True) for each in step]
        began = perf_counter()
        code = self._context.evaluate(rows)
        self.counts.evaluating_s += perf_counter() - began
        for sequence in step:
            if code != 0 or sequence not in tokens:
                self._keep(sequence, lengths[sequence])
            else:
                lengths[sequence] += 1
        if code == 0:
            self.counts.steps += 1
            self.counts.rows += len(rows)
            self.counts.padding += len(rows) - len(tokens)
            self.counts.written += len(tokens)
        return code, step.start

    def release(self, sequence: int) -> None:
        """Give a sequence back; what other prompts may share with its prompt stays."""
        self._busy.discard(sequence)
        self._keep(sequence, self._prefixes.tokens(sequence))

    def close(self) -> None:
        """Free everything; may be called twice."""
        self._context.close()

    def _keep_prefix(self, sequence: int, text: Text) -> None:
        """Keep what other prompts may well share with the one in `sequence`, if it is new."""
        prefix = text.first(text.border)
        keeper = self._prefixes.keeper(prefix, text.lasting) if len(prefix) else None
        if keeper is not None:
            self._copy(sequence, keeper)
            self._keep(keeper, text.border)
            self._prefixes.hold(keeper, prefix)

    def _copy(self, source: int, target: int) -> None:
        self._context.copy(source, target)
        self._lengths[target] = self._lengths[source]
        self.counts.copies += 1

    def _keep(self, sequence: int, tokens: int) -> None:
        """Drop all of `sequence` but its first `tokens`."""
        self._context.keep(sequence, tokens)
        self._lengths[sequence] = tokens
