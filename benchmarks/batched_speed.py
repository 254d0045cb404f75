"""How fast the batched engine is, for `batched_engine.py`: parts `price` and `speed`."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
import llama_cpp
from batched_ceiling import Ceiling, fewest_tokens, oracle_s
from batched_questions import N_CTX, PERSONAS, question

from scheduler.backends.batched_cuts import Grain
from scheduler.backends.batched_engine import BatchedEngine
from scheduler.backends.batched_job import Job
from scheduler.backends.llama_inproc import LlamaInprocBackend
from scheduler.backends.llama_library import LoadedModel
from scheduler.backends.llama_memory import sequences_for
from scheduler.backends.native_model import NativeSpec


@dataclass(frozen=True)
class Ran:
    """One batch of questions through an engine."""

    seconds: float
    prompts: list[tuple[int, ...]]
    written: list[int]
    counts: dict[str, Any]


def run_jobs(engine: BatchedEngine, numbers: Sequence[int]) -> Ran:
    """Put questions to an engine, all at once, and wait until it has answered them."""

    async def go() -> Ran:
        jobs = []
        before = asdict(engine.counts)
        began = perf_counter()
        for n in numbers:
            job = Job(question(n), seed=n)
            job.prompt = engine.prompt(job.request.messages, None)
            engine.submit(job)
            jobs.append(job)
        while engine.turn():
            pass
        took = perf_counter() - began
        counts = {name: value - before[name] for name, value in asdict(engine.counts).items()}
        prompts = [job.prompt.tokens for job in jobs]
        return Ran(took, prompts, [job.result().usage.completion_tokens for job in jobs], counts)

    return anyio.run(go)


@contextmanager
def _engine_of(
    path: Path, slots: int, threads: int, found: Mapping[str, Any], *, fixed: bool = True
) -> Iterator[BatchedEngine]:
    model = LoadedModel(llama_cpp, NativeSpec(path, N_CTX, threads, 0))
    rows = found["rows"] if fixed else ()
    sequences = sequences_for(slots, rows)
    grain = None if found["grain"] is None else Grain(**found["grain"])
    engine = BatchedEngine(model, rows=rows, grain=grain, slots=slots, sequences=sequences)
    try:
        yield engine
    finally:
        engine.close()


def _tell(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def price(path: Path, threads: int, found: Any, *, quick: bool) -> list[dict[str, Any]]:
    """Time fixed shapes and none in turns, with everything else equal.

    Three prompts for each slot, so that the slots are full most of the time.
    """
    table = []
    turns = 1 if quick else 3
    for slots in (8,) if quick else (8, 12, 16):
        prompts = slots if quick else 3 * slots
        times: dict[bool, list[float]] = {True: [], False: []}
        with (
            _engine_of(path, slots, threads, found) as fixed,
            _engine_of(path, slots, threads, found, fixed=False) as free,
        ):
            for turn in range(turns + 1):
                for is_fixed, engine in ((True, fixed), (False, free)):
                    took = run_jobs(engine, range(prompts)).seconds
                    name = "fixed" if is_fixed else "free"
                    _tell(f"{slots} slots, turn {turn} of {turns}, {name}: {took:.2f} s")
                    if turn:  # the first warms up
                        times[is_fixed].append(took)
        fixed_s, free_s = statistics.median(times[True]), statistics.median(times[False])
        table.append({"slots": slots, "fixed_s": fixed_s, "free_s": free_s,
                      "price": fixed_s / free_s - 1})  # fmt: skip
    return table


async def _locked_speed(path: Path, threads: int, prompts: int) -> dict[str, Any]:
    backend = LlamaInprocBackend(path, n_ctx=N_CTX, n_threads=threads, engine="locked")
    await backend.start()
    written = 0
    began = perf_counter()
    for n in sorted(range(prompts), key=lambda n: n % len(PERSONAS)):
        answer = await backend.generate(question(n), seed=n, slot=0)
        written += answer.usage.completion_tokens
    took = perf_counter() - began
    await backend.aclose()
    return _speed_row("locked", prompts, written, took)


def _loop_speed(path: Path, threads: int, prompts: int) -> dict[str, Any]:
    llama = llama_cpp.Llama(str(path), n_ctx=N_CTX, n_threads=threads, verbose=False)
    written = 0
    began = perf_counter()
    for n in range(prompts):
        request = question(n)
        answer = llama.create_chat_completion(
            [{"role": m.role, "content": m.content} for m in request.messages],
            max_tokens=request.sampling.max_tokens,
            temperature=0.8,
            seed=n,
        )
        written += answer["usage"]["completion_tokens"]
    took = perf_counter() - began
    llama.close()
    return _speed_row("Llama in a loop", prompts, written, took)


def _speed_row(name: str, prompts: int, written: int, took: float) -> dict[str, Any]:
    return {"engine": name, "prompts_min": 60 * prompts / took, "tokens_s": written / took,
            "seconds": took}  # fmt: skip


def speed(path: Path, threads: int, found: Any, prompts: int, rounds: int) -> dict[str, Any]:
    """Time all engines on the same prompts, in turns with what this build can do at all.

    Each time the batched engine is new: nothing is kept of the round before.
    """
    table = [_loop_speed(path, threads, prompts), anyio.run(_locked_speed, path, threads, prompts)]
    by_persona = sorted(range(prompts), key=lambda n: n % len(PERSONAS))
    runs: dict[int, list[Ran]] = {}
    model = LoadedModel(llama_cpp, NativeSpec(path, N_CTX, threads, 0))
    ceiling = Ceiling(model)
    for turn in range(rounds):
        ceiling.measure()
        for slots in (8, 12, 16) if rounds == 1 else (1, 2, 4, 8, 12, 16):
            with _engine_of(path, slots, threads, found) as engine:
                ran = run_jobs(engine, by_persona)
            runs.setdefault(slots, []).append(ran)
            _tell(f"round {turn + 1} of {rounds}, {slots} slots: {ran.seconds:.2f} s")
    rates = ceiling.rates()
    ceiling.close()
    model.close()
    for slots, ran_all in runs.items():
        ran = sorted(ran_all, key=lambda each: each.seconds)[len(ran_all) // 2]
        ideal = oracle_s(rates, ran.prompts, ran.written, slots)
        row = _speed_row(f"batched, {slots} slots", prompts, sum(ran.written), ran.seconds)
        read, fewest = ran.counts["prefilled_tokens"], fewest_tokens(ran.prompts)
        table.append({**row, **ran.counts, "oracle_s": ideal, "share": ideal / ran.seconds,
                      "fewest_tokens": fewest, "read_over_fewest": read / fewest,
                      "python_share": 1 - ran.counts["evaluating_s"] / ran.seconds})  # fmt: skip
    rate = {"prefill": rates.prefill_tokens_s, "decode": rates.decode_tokens_s}
    return {"tokens_s": rate, "table": table}
