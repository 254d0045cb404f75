"""What the batched engine in this process shows: equal answers, their price, speed and memory.

    python benchmarks/batched_engine.py [--quick] [--part PART ...] [--json FILE]

Parts: `unique` (one answer per prompt whatever the slots, the order, cancelled neighbours and
what is kept; with a restart), `price` (fixed shapes against none, in turns), `speed` (against
the locked engine, a loop over `Llama` and an oracle), `memory` (stated and measured). The
models are the project's own, with random weights, about 100M parameters; prompts have about
1,000 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
import llama_cpp
from batched_questions import N_CTX, models, question
from batched_speed import price, speed

from scheduler.backends.llama_inproc import LlamaInprocBackend
from scheduler.backends.llama_memory import memory_need, sequences_for
from scheduler.gguf_file import read_gguf_header
from scheduler.seeds import request_seed

SLOTS = (1, 2, 4, 7, 8, 12, 13, 16)


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


async def unique(
    path: Path, threads: int, comparisons: int, prompts: int, all_slots: Sequence[int] = SLOTS
) -> dict[str, Any]:
    """Compare answers with those of one slot, in many settings."""
    alone = _backend_of(path, 1, threads)
    info = await alone.start()
    answers = {n: {text} for n, text in (await ask(alone, range(prompts), 1)).items()}
    await alone.aclose()
    made, rounds, number = 0, 0, 1
    while made < comparisons:
        slots = all_slots[number % len(all_slots)]
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


def memory(path: Path, threads: int, slots: int) -> dict[str, Any]:
    """Return the memory that is stated, and what a fresh process grew by."""
    words = [sys.executable, __file__, "--child", str(path), str(slots), str(threads), "16"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    need = memory_need(
        read_gguf_header(path),
        N_CTX,
        sequences=found["sequences"],
        flash_attention=found["flash_attention"],
    )
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
    told = {
        "texts": texts,
        "grown_bytes": grown,
        "sequences": sequences,
        "flash_attention": info.facts["flash_attention"],
    }
    print(json.dumps(told))
    await backend.aclose()


async def _calibration_of(path: Path, threads: int) -> dict[str, Any]:
    backend = _backend_of(path, 1, threads)
    found: dict[str, Any] = (await backend.start()).facts["calibration"]
    await backend.aclose()
    return found


TYPES = ("F16", "Q4_K_M", "Q8_0")
PARTS = ("unique", "price", "speed", "memory")


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    quick, threads = options.quick, options.threads
    prompts = 6 if quick else 24
    machine = f"{os.cpu_count()} {platform.machine()} cores, {threads} threads"
    found: dict[str, Any] = {"machine": machine, "llama_cpp_python": llama_cpp.__version__}
    print(f"{machine}, llama-cpp-python {llama_cpp.__version__}")
    paths = {name: path for name, path in models(folder).items() if name in options.types}
    for part in options.part or PARTS:
        began, found[part] = perf_counter(), {}
        for name, path in paths.items():
            if part == "unique":
                count = (12 if quick else options.comparisons) // (1 if quick else len(paths))
                result: Any = anyio.run(unique, path, threads, count, prompts, options.slots)
            elif part == "memory":
                result = memory(path, threads, 4 if quick else 8)
            elif name != "Q4_K_M":
                continue
            elif part == "price":
                found_rows = anyio.run(_calibration_of, path, threads)
                result = price(path, threads, found_rows, quick=quick)
            else:
                found_rows = anyio.run(_calibration_of, path, threads)
                result = speed(path, threads, found_rows, prompts, 1 if quick else 3)
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
        print("  rows that agree: {rows}, grain: {grain}".format(
            **result["calibration"]))  # fmt: skip
    elif part == "price":
        for row in result:
            print("  {slots:2} slots: fixed {fixed_s:.2f} s, free {free_s:.2f} s, price "
                  "{price:+.1%}".format(**row))  # fmt: skip
    elif part == "speed":
        for kind, rates in result["tokens_s"].items():
            print(f"  {kind} tokens/s: " + ", ".join(f"{n}: {r:.0f}" for n, r in rates.items()))
        for row in result["table"]:
            share = ("{share:.0%} of the oracle, {python_share:.1%} Python, {read_over_fewest:.3f} "
                     "of the fewest tokens".format(**row) if "share" in row else "")  # fmt: skip
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
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES, help="weights")
    parser.add_argument("--slots", nargs="+", type=int, default=SLOTS, help="slots of `unique`")
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
