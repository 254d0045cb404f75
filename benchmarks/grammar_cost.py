"""What a schema of its own for each prompt costs: milliseconds per prompt.

    python benchmarks/grammar_cost.py [--names 0 5 10 100 500] [--repeats 20] [--server] [--json]

Each size is a schema of all actions whose lists of posts, tasks and agents have so many
names; 0 is the schema that takes any id. Measured are: making the schema; its first check
here, which proves its shape, and the first check of another one of that shape; checking an
answer; and, where llama-cpp-python is installed, writing and compiling its grammar.

`--server` asks a llama-server of its own for answers of one token: without a schema, with
the same schema each time, and with another one each time. It needs the extra `server`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, TypeVar
from uuid import UUID

import anyio

from scheduler.backends.fake import example_of
from scheduler.backends.gbnf import grammar_of
from scheduler.backends.llama_server import LlamaServerBackend
from scheduler.errors import ConfigError
from scheduler.gguf_models import write_model
from scheduler.server import ManagedServer, ServerSpec
from scheduler.structured import SchemaChecker
from scheduler.types import Message, OutputSchema, Request, Sampling
from swarm_integration.schemas import act_schema
from swarm_integration.shown import Names, Shown

T = TypeVar("T")
ACTIONS = (
    "NOOP",
    "POST",
    "REPLY",
    "VOTE",
    "PROPOSE_INTERACTION",
    "CLAIM_TASK",
    "SUBMIT_OUTPUT",
)
PROMPT = (Message("user", "Decide your action and respond with the JSON format."),)


def schema_of(names: int, draw: Random) -> OutputSchema:
    """Return a schema whose lists have `names` names each; without names any id will do."""
    if not names:
        return act_schema()
    ids = [str(UUID(int=draw.getrandbits(128), version=4)) for _ in range(names)]
    cut = Names(tuple((whole[:8], whole) for whole in ids))
    agents = Names(tuple((f"llm_{n}", f"llm_{n}") for n in range(1, names + 1)), cut=False)
    return act_schema(Shown(ACTIONS, cut, cut, cut, agents, Names(), Names()))


def median_ms(call: Callable[[T], object], arguments: Iterable[T]) -> float:
    """Return the median milliseconds of `call`, over `arguments`."""
    samples = []
    for argument in arguments:
        began = time.perf_counter()
        call(argument)
        samples.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(samples), 3)


def here(names: int, repeats: int, compile_ms: Callable[[str], float] | None) -> dict[str, Any]:
    """Return what schemas of that size cost on this side."""
    draw = Random(names)
    schemas = [schema_of(names, draw) for _ in range(repeats)]
    checker = SchemaChecker()
    checker.prepare(schemas[0])
    answers = [json.dumps(example_of(schema.schema, draw)) for schema in schemas]
    grammars = [grammar_of(schema.schema) for schema in schemas]
    found = {
        "names": names,
        "schema_bytes": len(json.dumps(schemas[0].schema)),
        "make_ms": median_ms(lambda count: schema_of(count, draw), [names] * repeats),
        "prove_ms": median_ms(lambda one: SchemaChecker().prepare(one), map(fresh, schemas)),
        "prepare_ms": median_ms(checker.prepare, map(fresh, schemas)),
        "check_ms": median_ms(
            lambda pair: checker.violation(*pair), list(zip(schemas, answers, strict=True))
        ),
        "write_grammar_ms": median_ms(lambda one: grammar_of(one.schema), schemas),
        "grammar_chars": len(grammars[0]),
    }
    if compile_ms is not None:
        found["compile_ms"] = round(statistics.median(map(compile_ms, grammars)), 3)
    return found


def fresh(schema: OutputSchema) -> OutputSchema:
    """Return the schema without the fingerprint that it may have kept."""
    return OutputSchema(schema.name, schema.schema)


def compiler(model: Path) -> Callable[[str], float] | None:
    """Return what compiles a grammar and says in how many milliseconds, if this can be had."""
    try:
        import llama_cpp  # noqa: PLC0415 - an optional extra
    except ImportError:
        return None
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    loaded = llama_cpp.llama_model_load_from_file(str(model).encode(), params)
    vocab = llama_cpp.llama_model_get_vocab(loaded)

    def compile_ms(grammar: str) -> float:
        began = time.perf_counter()
        compiled = llama_cpp.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
        took = 1000 * (time.perf_counter() - began)
        if not compiled:
            raise ConfigError("llama.cpp refuses the grammar")
        llama_cpp.llama_sampler_free(compiled)
        return took

    return compile_ms


async def served(model: Path, sizes: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Return what schemas cost a llama-server, in milliseconds per answer of one token."""
    spec = ServerSpec(model, slots=1, ctx_per_slot=512, threads=1)
    rows = []
    async with ManagedServer(spec, log_path=model.with_suffix(".log")) as server:
        backend = LlamaServerBackend(server.base_url)
        await backend.start()
        for names in sizes:
            draw = Random(names)
            same = schema_of(names, draw)
            medians = await answered(
                backend,
                {
                    "without_ms": lambda: None,
                    "same_ms": lambda same=same: same,  # type: ignore[misc] # bound at once
                    "another_ms": lambda names=names, draw=draw: schema_of(names, draw),  # type: ignore[misc] # the same
                },
                repeats,
            )
            rows.append({"names": names, **medians})
        await backend.aclose()
    return rows


async def answered(
    backend: LlamaServerBackend, kinds: dict[str, Callable[[], OutputSchema | None]], repeats: int
) -> dict[str, float]:
    """Return the median milliseconds of an answer for each kind, the kinds taking turns."""
    samples: dict[str, list[float]] = {kind: [] for kind in kinds}
    one_token = Request("agent", PROMPT, sampling=Sampling(max_tokens=1))
    for number in range(repeats + 1):
        for kind, make in kinds.items():
            request = replace(one_token, schema=make())
            began = time.perf_counter()
            await backend.generate(request, seed=number, slot=0)
            samples[kind].append(1000 * (time.perf_counter() - began))
    return {kind: round(statistics.median(found[1:]), 2) for kind, found in samples.items()}


def lines_of(found: dict[str, Any]) -> Iterator[str]:
    """Yield the report as lines of text."""
    yield "{cores} cores, {machine}, Python {python}; medians of {repeats}".format(**found)
    for title in ("here", "server"):
        rows: list[dict[str, Any]] = found.get(title, [])
        if rows:
            yield f"\n{title}:"
            yield "  ".join(f"{column:>16}" for column in rows[0])
            yield from ("  ".join(f"{value:>16}" for value in row.values()) for row in rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", type=int, nargs="+", default=[0, 5, 10, 100, 500])
    parser.add_argument("--repeats", type=int, default=20, help="of which the median counts")
    parser.add_argument("--server", action="store_true", help="measure a llama-server too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.repeats < 1 or min(options.names) < 0:
        parser.error("--repeats must be 1 or more, --names 0 or more")
    found: dict[str, Any] = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "repeats": options.repeats,
    }
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "demo.gguf"
        write_model(model, "demo")
        compile_ms = compiler(model)
        found["here"] = [here(names, options.repeats, compile_ms) for names in options.names]
        if options.server:
            found["server"] = anyio.run(served, model, options.names, options.repeats)
    print(json.dumps(found, indent=2) if options.json else "\n".join(lines_of(found)))


if __name__ == "__main__":
    main()
