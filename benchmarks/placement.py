"""Where requests are put, and what that costs: a server that is only reckoned, on real prompts.

    python benchmarks/placement.py [--agents 12] [--steps 8] [--slots N ...] [--json FILE]

The prompts of a real SWARM run go through the real lane (queue, plan, slots), which does not know
how long answers get. The server's time is reckoned: an iteration reads what prompts are new in
their slots, and writes one token for each answer under way, at the given prices. No clock and no
model, so the same numbers on every machine. A token of a prompt is a word or a mark. Prices: `cpu`,
as seen on two cores with a model of 100M parameters, and `gpu`, where reading costs next to
nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import anyio

from scheduler.backends.base import BackendInfo
from scheduler.backends.fake import FakeBackend
from scheduler.backends.llama_prefix import shared_length
from scheduler.config import SchedulerConfig
from scheduler.lane import Entry, Lane
from scheduler.step import Step
from scheduler.types import Request
from swarm_integration.bench.workload import MAX_TOKENS, Place, Question, place_of, record

BATCH = 2048
LINE = (
    "{price:5} {slots:5} {copies:>6} {seconds:8.1f} {computed_tokens:9} {prompt_tokens:9} "
    "{reused_share:7.1%}"
)
SLOTS = (1, 2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True, slots=True)
class Price:
    """Milliseconds of a server's work.

    Attributes:
        prefill: For a prompt token.
        step: For an iteration, once for each run of neighbouring slots that write.
        row: For each token that is written.
    """

    prefill: float
    step: float
    row: float


PRICES = {"cpu": Price(1.0, 3.0, 3.8), "gpu": Price(0.05, 12.0, 0.4)}


@dataclass(slots=True)
class Answer:
    """One answer under way: prompt tokens still to read, tokens still to write."""

    entry: Entry
    to_read: int
    to_write: int


@dataclass(slots=True)
class Server:
    """What is reckoned of a server: the time, and what its slots hold."""

    price: Price
    lengths: Mapping[Place, int]
    ms: float = 0.0
    computed: int = 0
    held: dict[int, tuple[int, ...]] = field(default_factory=dict)
    active: dict[int, Answer] = field(default_factory=dict)

    def begin(self, entry: Entry, slot: int) -> None:
        """Take a request on a slot; what the slot holds of its prompt is not read again."""
        tokens = tokens_of(entry.request)
        shared = min(shared_length(self.held.get(slot, ()), tokens), len(tokens) - 1)
        self.computed += len(tokens) - shared
        self.held[slot] = tokens
        length = self.lengths[place_of(entry.request)]
        self.active[slot] = Answer(entry, len(tokens) - shared, length)

    def iterate(self) -> list[Entry]:
        """Do one iteration, and return the requests whose answers end with it."""
        rows = {slot for slot, answer in self.active.items() if not answer.to_read}
        room, written = BATCH - len(rows), list(rows)
        for slot, answer in sorted(self.active.items()):
            read = min(room, answer.to_read)
            answer.to_read -= read
            room -= read
            if read and not answer.to_read:
                written.append(slot)
        runs = sum(slot - 1 not in rows for slot in rows)
        self.ms += self.price.prefill * (BATCH - len(rows) - room)
        self.ms += self.price.step * runs + self.price.row * len(rows)
        for slot in written:
            self.active[slot].to_write -= 1
        ended = [slot for slot in written if not self.active[slot].to_write]
        return [self.active.pop(slot).entry for slot in ended]


class Nobody:
    """Owns the entries and starts nothing."""

    def start(self, lane: Lane, entry: Entry) -> None:
        """Do nothing."""


def tokens_of(request: Request) -> tuple[int, ...]:
    """Return a prompt as numbers that stand for its words and marks."""
    text = "\n".join(message.content for message in request.messages)
    return tuple(crc32(word.encode()) for word in re.findall(r"\w+|\W", text))


async def play(
    rounds: Sequence[Sequence[Question]], price: Price, slots: int, copies: int
) -> dict[str, float]:
    """Put all rounds through a lane and return what the server would have done."""
    config = SchedulerConfig(slots=slots, max_batch=64, prefix_copies=copies)
    lane = Lane("reckoned", FakeBackend(slots), BackendInfo("fake", slots, None, ""), config)
    lengths = {question.place: question.output_tokens for one in rounds for question in one}
    server, tenant = Server(price, lengths), Nobody()
    reusable = prompt_tokens = 0
    seen: list[tuple[int, ...]] = []
    for requests in map(asked, rounds):
        step = Step(requests)
        for request in requests:
            lane.queue.put(Entry(request, step, tenant, 0.0))
            tokens = tokens_of(request)
            prompt_tokens += len(tokens)
            reusable += max((shared_length(one, tokens) for one in seen), default=0)
            seen.append(tokens)
        while not lane.idle:
            for entry in lane.assign():
                server.begin(entry, entry.last_slot)
            for entry in server.iterate():
                lane.release(entry)
    return {"seconds": server.ms / 1000, "prompt_tokens": prompt_tokens,
            "computed_tokens": server.computed,
            "reused_share": (prompt_tokens - server.computed) / reusable}  # fmt: skip


def asked(questions: Sequence[Question]) -> list[Request]:
    """Return questions as a run asks them, which does not know how long an answer gets."""
    return [
        each.request(backend="reckoned", model="", timeout_s=3600.0, max_tokens=MAX_TOKENS)
        for each in questions
    ]


async def measure(
    rounds: Sequence[Sequence[Question]], slots: Sequence[int]
) -> list[dict[str, Any]]:
    """Reckon all prices, numbers of slots and limits."""
    prefixes = len({request.group for one in rounds for request in asked(one)})
    rows: list[dict[str, Any]] = []
    for name, price in PRICES.items():
        for count in slots:
            for limit, copies in (("none", count), ("auto", max(1, count // prefixes))):
                found = await play(rounds, price, count, copies)
                rows.append({"price": name, "slots": count, "copies": limit, **found})
    return rows


def main() -> None:
    """Reckon and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, default=12, help="LLM agents of four personas")
    parser.add_argument("--steps", type=int, default=8, help="steps that are recorded")
    parser.add_argument("--slots", nargs="+", type=int, default=list(SLOTS), help="of the server")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workload = record(options.agents, options.steps, "upstream", Path(folder))
    rows = anyio.run(measure, workload.rounds, options.slots)
    print(f"{options.agents} agents, {options.steps} steps, {len(workload.questions)} requests")
    print("price slots copies  seconds  computed    prompt  reused of what any prompt before had")
    for row in rows:
        print(LINE.format(**row))
    if options.json:
        data = {"agents": options.agents, "steps": options.steps, "rows": rows}
        options.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
