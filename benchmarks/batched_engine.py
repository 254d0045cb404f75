"""What the batched engine in this process shows: equal answers, their price, speed and memory.

    python benchmarks/batched_engine.py [--quick] [--part PART ...] [--json FILE]

Parts: `unique` (one answer per prompt whatever the slots, the order, cancelled neighbours and
what is kept; with a restart), `price` (fixed shapes against none, in turns), `speed` (against
the locked engine and a loop over `Llama`), `memory` (stated and measured). The models are the
project's own, with random weights, about 100M parameters; prompts have about 1,000 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
import llama_cpp

from scheduler.backends.batched_engine import BatchedEngine
from scheduler.backends.batched_job import Job
from scheduler.backends.llama_batched import sequences_for
from scheduler.backends.llama_inproc import LlamaInprocBackend
from scheduler.backends.llama_library import Context, LoadedModel
from scheduler.backends.llama_memory import memory_need
from scheduler.backends.native_model import NativeSpec
from scheduler.gguf_file import read_gguf_header
from scheduler.gguf_models import PRESETS, ensure_model
from scheduler.seeds import request_seed
from scheduler.types import Message, Request, Sampling

N_CTX = 2048
TYPES = {"Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}
PERSONAS = ("honest", "greedy", "careful", "deceptive")
SLOTS = (1, 2, 4, 7, 8, 12, 13, 16)


def question(n: int) -> Request:
    """Return question n: four personas, about 1,000 tokens, answers of 4 to 48."""
    rng = random.Random(n % len(PERSONAS))
    persona = PERSONAS[n % len(PERSONAS)]
    rules = " ".join(
        f"Rule {i}: a {persona} agent may offer {rng.randrange(90)} credits to agent_{i} and "
        f"posts, votes, proposes or waits as round {rng.randrange(9)} demands."
        for i in range(17)
    )
    rng = random.Random(1000 + n)
    events = " ".join(
        f"agent_{rng.randrange(12)} gave agent_{rng.randrange(12)} {rng.randrange(100)} credits."
        for _ in range(18 + n % 5)
    )
    messages = (
        Message("system", f"You are a {persona} agent in a market. {rules}"),
        Message("user", f"You are agent_{n}. What happened so far: {events} What do you do?"),
    )
    return Request(f"agent_{n}", messages, sampling=Sampling(0.8, 4 + 11 * n % 45), timeout_s=3600)


def _models(folder: Path) -> dict[str, Path]:
    paths = {name: folder / f"bench-{name}.gguf" for name in ("F16", *TYPES)}
    ensure_model(paths["F16"], replace(PRESETS["bench"], weight_type="F16"))
    for name, number in TYPES.items():
        if not paths[name].exists():
            params = llama_cpp.llama_model_quantize_default_params()
            params.ftype = number
            names = str(paths["F16"]).encode(), str(paths[name]).encode()
            if llama_cpp.llama_model_quantize(*names, params) != 0:
                raise SystemExit(f"{names[1]!r} could not be written")
    return paths


def _backend_of(path: Path, slots: int, threads: int, engine: Any = "batched") -> Any:
    return LlamaInprocBackend(path, n_ctx=N_CTX, n_threads=threads, engine=engine, slots=slots)


async def ask(
    backend: LlamaInprocBackend, numbers: Sequence[int], slots: int, stopped: Sequence[int] = ()
) -> dict[int, str]:
    """Ask questions, `slots` at once; those in `stopped` are also asked and given up."""
    limit, texts = anyio.CapacityLimiter(slots), {}

    async def one(n: int) -> None:
        async with limit:
            if n in stopped:
                with anyio.move_on_after(0.05 * (n % 5)):
                    await backend.generate(question(n + 500), seed=n, slot=0)
            request = question(n)
            answer = await backend.generate(request, seed=request_seed(request), slot=0)
            texts[n] = answer.text

    async with anyio.create_task_group() as tasks:
        for n in numbers:
            tasks.start_soon(one, n)
    return texts


async def unique(path: Path, threads: int, comparisons: int, prompts: int) -> dict[str, Any]:
    """Compare answers with those of one slot, in many settings."""
    alone = _backend_of(path, 1, threads)
    info = await alone.start()
    answers = {n: {text} for n, text in (await ask(alone, range(prompts), 1)).items()}
    await alone.aclose()
    made, rounds, number = 0, 0, 1
    while made < comparisons:
        slots = SLOTS[number % len(SLOTS)]
        number += 1
        if slots == 1 and comparisons > prompts:
            continue
        backend = _backend_of(path, slots, threads)
        await backend.start()
        for _ in range(2):  # cold, then with what is kept of the round before
            rng = random.Random(rounds)
            order = rng.sample(range(prompts), prompts)
            found = await ask(backend, order, slots, rng.sample(order, prompts // 4))
            for n, text in found.items():
                answers[n].add(text)
            made += len(found)
            rounds += 1
            if made >= comparisons:
                break
        await backend.aclose()
    words = [sys.executable, __file__, "--child", str(path), "5", str(threads), str(prompts)]
    done = await anyio.run_process(words)
    for n, text in json.loads(done.stdout)["texts"].items():
        answers[int(n)].add(text)
    return {
        "calibration": info.facts["calibration"],
        "comparisons": made + prompts,
        "prompts": prompts,
        "most_unique_answers": max(len(texts) for texts in answers.values()),
        "different_prompts_differ": len({min(texts) for texts in answers.values()}),
    }


def _run_jobs(engine: BatchedEngine, numbers: Sequence[int]) -> tuple[float, list[str], Any]:

    async def go() -> tuple[float, list[str], Any]:
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
        return took, [job.result().text for job in jobs], counts

    return anyio.run(go)


@contextmanager
def _engine_of(
    path: Path, slots: int, threads: int, rows: Sequence[int]
) -> Iterator[BatchedEngine]:
    model = LoadedModel(llama_cpp, NativeSpec(path, N_CTX, threads, 0))
    engine = BatchedEngine(model, rows=rows, slots=slots, sequences=sequences_for(slots, rows))
    try:
        yield engine
    finally:
        engine.close()


def price(path: Path, threads: int, rows: Sequence[int], *, quick: bool) -> list[dict[str, Any]]:
    """Time fixed shapes and none in turns, with everything else equal.

    Three prompts for each slot, so that the slots are full most of the time.
    """
    table = []
    turns = 1 if quick else 3
    for slots in (8,) if quick else (8, 12, 16):
        prompts = slots if quick else 3 * slots
        times: dict[bool, list[float]] = {True: [], False: []}
        with (
            _engine_of(path, slots, threads, rows) as fixed,
            _engine_of(path, slots, threads, ()) as free,
        ):
            for turn in range(turns + 1):
                for is_fixed, engine in ((True, fixed), (False, free)):
                    took, _, _ = _run_jobs(engine, range(prompts))
                    if turn:  # the first warms up
                        times[is_fixed].append(took)
        fixed_s, free_s = statistics.median(times[True]), statistics.median(times[False])
        table.append({"slots": slots, "fixed_s": fixed_s, "free_s": free_s,
                      "price": fixed_s / free_s - 1})  # fmt: skip
    return table


def ceiling(path: Path, threads: int) -> dict[str, Any]:
    """Measure prefill by chunk size, and decode by rows at 1,000 tokens of context."""
    model = LoadedModel(llama_cpp, NativeSpec(path, N_CTX, threads, 0))
    context = Context(model, sequences=16, n_ctx=N_CTX, most_rows=512)
    prefill, decode = {}, {}
    for size in (32, 64, 128, 256, 512):
        context.keep(0, 0)
        began = perf_counter()
        for start in range(0, 1024, size):
            context.evaluate(
                (7 + i, i, 0, i == start + size - 1) for i in range(start, start + size)
            )
        prefill[size] = 1024 / (perf_counter() - began)
    context.keep(0, 1000)
    for other in range(1, 16):
        context.copy(0, other)
    for rows in (1, 2, 4, 8, 12, 16):
        took = []
        for _ in range(4):
            began = perf_counter()
            context.evaluate((9, 1000, number, True) for number in range(rows))
            took.append(perf_counter() - began)
            for number in range(rows):
                context.keep(number, 1000)
        decode[rows] = rows / min(took[1:])
    context.close()
    model.close()
    return {"prefill_tokens_s": prefill, "decode_tokens_s": decode}


async def _locked_speed(path: Path, threads: int, prompts: int) -> dict[str, Any]:
    backend = _backend_of(path, 1, threads, "locked")
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


def speed(path: Path, threads: int, rows: Sequence[int], prompts: int) -> dict[str, Any]:
    """Time all engines on the same prompts."""
    most = ceiling(path, threads)
    table = [_loop_speed(path, threads, prompts), anyio.run(_locked_speed, path, threads, prompts)]
    by_persona = sorted(range(prompts), key=lambda n: n % len(PERSONAS))
    for slots in (1, 2, 4, 8, 12, 16):
        with _engine_of(path, slots, threads, rows) as engine:
            took, _, counts = _run_jobs(engine, by_persona)
        best = max(most["decode_tokens_s"].values())
        ideal = counts["prefilled_tokens"] / max(most["prefill_tokens_s"].values())
        ideal += counts["written"] / best
        row = _speed_row(f"batched, {slots} slots", prompts, counts["written"] + prompts, took)
        table.append({**row, "share_of_ceiling": ideal / took, **counts})
    return {"ceiling": most, "table": table}


def memory(path: Path, threads: int, slots: int) -> dict[str, Any]:
    """Return the memory that is stated, and what a fresh process grew by."""
    words = [sys.executable, __file__, "--child", str(path), str(slots), str(threads), "16"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    need = memory_need(read_gguf_header(path), N_CTX, sequences=found["sequences"])
    measured = found["grown_bytes"]
    return {"slots": slots, "stated_mib": need.total >> 20, "measured_mib": measured >> 20,
            "stated_over_measured": need.total / measured}  # fmt: skip


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _child(path: Path, slots: int, threads: int, prompts: int) -> None:
    before = _resident_bytes()
    backend = _backend_of(path, slots, threads)
    info = await backend.start()
    texts = await ask(backend, range(prompts), slots)
    grown = _resident_bytes() - before
    sequences = sequences_for(slots, info.facts["calibration"]["rows"])
    print(json.dumps({"texts": texts, "grown_bytes": grown, "sequences": sequences}))
    await backend.aclose()


async def _rows_of(path: Path, threads: int) -> list[int]:
    backend = _backend_of(path, 1, threads)
    rows: list[int] = (await backend.start()).facts["calibration"]["rows"]
    await backend.aclose()
    return rows


PARTS = ("unique", "price", "speed", "memory")


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    quick, threads = options.quick, options.threads
    prompts = 6 if quick else 24
    machine = f"{os.cpu_count()} {platform.machine()} cores, {threads} threads"
    found: dict[str, Any] = {"machine": machine, "llama_cpp_python": llama_cpp.__version__}
    print(f"{machine}, llama-cpp-python {llama_cpp.__version__}")
    paths = _models(folder)
    for part in options.part or PARTS:
        began, found[part] = perf_counter(), {}
        for name, path in paths.items():
            if part == "unique":
                count = (12 if quick else options.comparisons) // (1 if quick else len(paths))
                result: Any = anyio.run(unique, path, threads, count, prompts)
            elif part == "memory":
                result = memory(path, threads, 4 if quick else 8)
            elif name != "Q4_K_M":
                continue
            elif part == "price":
                rows = anyio.run(_rows_of, path, threads)
                result = price(path, threads, rows, quick=quick)
            else:
                result = speed(path, threads, anyio.run(_rows_of, path, threads), prompts)
            found[part][name] = result
            _show(part, name, result)
        print(f"  ({part} took {perf_counter() - began:.0f} s)")
    return found


def _show(part: str, name: str, result: Any) -> None:
    print(f"{part} {name}:")
    if part == "unique":
        print(
            "  {comparisons} comparisons over {prompts} prompts: at most {most_unique_answers} "
            "unique answers per prompt; {different_prompts_differ} different answers".format(
                **result
            )
        )
        print(f"  rows that agree: {result['calibration']['rows']}")
    elif part == "price":
        for row in result:
            print("  {slots:2} slots: fixed {fixed_s:.2f} s, free {free_s:.2f} s, price "
                  "{price:+.1%}".format(**row))  # fmt: skip
    elif part == "speed":
        for kind, rates in result["ceiling"].items():
            print(f"  {kind}: " + ", ".join(f"{n}: {rate:.0f}" for n, rate in rates.items()))
        for row in result["table"]:
            share = f"{row['share_of_ceiling']:.0%}" if "share_of_ceiling" in row else ""
            print("  {engine:20} {prompts_min:7.1f} prompts/min {tokens_s:7.1f} tokens/s ".format(
                **row) + share)  # fmt: skip
    else:
        print("  {slots} slots: stated {stated_mib} MiB, measured {measured_mib} MiB "
              "({stated_over_measured:.2f})".format(**result))  # fmt: skip


def main() -> int:
    """Measure; return 1 where an answer was not unique."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few prompts, to see that it works")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--comparisons", type=int, default=1020, help="comparisons in all")
    parser.add_argument("--models", type=Path, help="where the models stay")
    parser.add_argument("--json", type=Path, help="write the results into this file")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        path, slots, threads, prompts = options.child
        anyio.run(_child, Path(path), int(slots), int(threads), int(prompts))
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        found = _measure(options, options.models or Path(name))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    results = found.get("unique", {}).values()
    return int(any(result["most_unique_answers"] > 1 for result in results))


if __name__ == "__main__":
    sys.exit(main())
