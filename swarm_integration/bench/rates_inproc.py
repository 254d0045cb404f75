"""What llama.cpp in this process needs for prompts and decode steps, on the low-level API."""

from __future__ import annotations

from pathlib import Path

from scheduler.backends.llama_batched import AUTO_SLOTS
from scheduler.backends.llama_library import Context, LoadedModel
from scheduler.backends.native_model import NativeSpec, import_llama_cpp
from swarm_integration.bench.builds import inproc_build
from swarm_integration.bench.chained_oracle import chained_oracle
from swarm_integration.bench.library import NativeClock
from swarm_integration.bench.oracle import Ask, Rates, Tokens, batched_oracle
from swarm_integration.bench.rates_server import rows_up_to, typical
from swarm_integration.bench.turns import Measured, Turn
from swarm_integration.bench.workload import Workload

CHUNKS = (64, 128, 256, 512)
REPEATS = 2
STEP_REPEATS = 5


def measure_inproc(turn: Turn, workload: Workload) -> Measured:
    """Measure the library as the engines use it, and return the oracles of both of them."""
    lib = import_llama_cpp()
    clock = NativeClock(lib)
    slots = AUTO_SLOTS[0] if turn.slots == "auto" else turn.slots
    spec = NativeSpec(Path(turn.model), workload.context, turn.threads, 0)
    model = LoadedModel(lib, spec)
    sequences = -(-slots // 4) * 4  # more rows than slots may take less time
    context = Context(model, sequences=sequences, n_ctx=spec.n_ctx, most_rows=max(CHUNKS))
    try:
        steps = [
            [
                Ask(
                    model.reader.read(each.messages, None).tokens,
                    each.output_tokens,
                )
                for each in one
            ]
            for one in workload.rounds
        ]
        prompt = typical([ask.tokens for step in steps for ask in step], 1)[0]
        prefill = min(
            (_prefill(context, clock, prompt, size) for size in CHUNKS for _ in range(REPEATS)),
            key=lambda points: points[-1][1],
        )
        step_s = _steps(context, clock, prompt, sorted({*rows_up_to(sequences), slots}))
    finally:
        context.close()
        model.close()
    rates = Rates(prefill, step_s)
    oracles = {"f": chained_oracle(steps, 1, rates), "g": batched_oracle(steps, slots, rates)}
    build = inproc_build(lib)
    return Measured(prefill, step_s, oracles, build.name, build.instructions)


def _prefill(
    context: Context, clock: NativeClock, prompt: Tokens, size: int
) -> tuple[tuple[int, float], ...]:
    """Return how long the prompt's beginnings take, read in chunks of one size."""
    context.keep(0, 0)
    points, seconds = [], 0.0
    for start in range(0, len(prompt), size):
        chunk = prompt[start : start + size]
        last = start + len(chunk) - 1
        rows = [(token, at, 0, at == last) for at, token in enumerate(chunk, start)]
        seconds += _timed(context, clock, rows)
        points.append((last + 1, seconds))
    return tuple(points)


def _steps(
    context: Context, clock: NativeClock, prompt: Tokens, counts: list[int]
) -> dict[int, float]:
    """Return the seconds of a decode step after the prompt, by its number of rows."""
    length = len(prompt)
    for other in range(1, max(counts)):
        context.copy(0, other)
    step_s = {}
    for count in counts:
        rows = [(prompt[-1], length, sequence, True) for sequence in range(count)]
        took = []
        for _ in range(STEP_REPEATS):
            took.append(_timed(context, clock, rows))
            for sequence in range(count):
                context.keep(sequence, length)
        step_s[count] = min(took[1:])
    return step_s


def _timed(context: Context, clock: NativeClock, rows: list[tuple[int, int, int, bool]]) -> float:
    """Return the seconds that the library takes for `rows`.

    Raises:
        RuntimeError: llama.cpp could not evaluate them.
    """
    before = clock.seconds
    code = context.evaluate(rows)
    if code != 0:
        raise RuntimeError(f"llama_decode returned {code} for {len(rows)} rows")
    return clock.seconds - before
