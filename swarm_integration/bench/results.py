"""What the turns brought, put together: medians of each way, and ratios between ways.

Pure. Ratios are medians of the ratios in each round, since what slows a machine down for a
while slows the ways of one round alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from swarm_integration.bench.turns import Measured, Served

WAYS: Mapping[str, str] = {
    "a": "upstream's run, one at a time, server",
    "b": "upstream's run_async, server",
    "c": "asyncio.gather, one client, server",
    "d": "llama_cpp.Llama in a loop",
    "e": "this project, managed server",
    "f": "this project, in process, locked",
    "g": "this project, in process, batched",
}
OURS = ("e", "f", "g")
RATES_OF: Mapping[str, str] = {"e": "rates-server", "f": "rates-inproc", "g": "rates-inproc"}


@dataclass(frozen=True)
class Case:
    """One workload, and what its turns brought.

    Attributes:
        agents: How many LLM agents asked.
        steps: How many steps were recorded.
        layout: How the prompts are laid out.
        sha256: Of the workload.
        rounds: How many questions each round of the simulation has, by kind.
        output_tokens: How many tokens all answers have together.
        context: Tokens per slot.
        served: What each way brought, turn after turn.
        measured: What each measurement of rates brought, turn after turn.
    """

    agents: int
    steps: int
    layout: str
    sha256: str
    rounds: tuple[tuple[str, int], ...]
    output_tokens: int
    context: int
    served: dict[str, list[Served]] = field(default_factory=dict)
    measured: dict[str, list[Measured]] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        """How many questions there are."""
        return sum(count for _, count in self.rounds)


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of one way.

    Attributes:
        way: Its letter.
        slots: Answers at once.
        requests_min: Requests per minute.
        tokens_s: Tokens of answers per second.
        oracle_share: The oracle's time over its own.
        prompt_tokens: Tokens of all prompts.
        computed_tokens: How many of them it evaluated.
        fewest_tokens: The fewest that this way allows.
        reuse: The part that it reused of what could have been.
        cpu_s: CPU seconds.
        peak_bytes: The most memory.
        python_share: The part of the time outside llama.cpp's library.
        build: The build.
        instructions: Its instruction sets.
    """

    way: str
    slots: int
    requests_min: float
    tokens_s: float
    oracle_share: float | None
    prompt_tokens: int
    computed_tokens: int
    fewest_tokens: int | None
    reuse: float | None
    cpu_s: float | None
    peak_bytes: int | None
    python_share: float | None
    build: str
    instructions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster one of our ways is than another way.

    Attributes:
        way: Ours.
        layout: The layout of its prompts.
        other: The way that it is compared with.
        other_layout: The layout of that one's prompts.
        times: The median of the rounds' ratios of requests per minute.
        least: The lowest of them.
        most: The highest of them.
        same_build: Whether both have the same build and instruction sets.
    """

    way: str
    layout: str
    other: str
    other_layout: str
    times: float
    least: float
    most: float
    same_build: bool


def rows(case: Case) -> list[Row]:
    """Return the medians of each way that was served."""
    return [_row(case, way) for way in WAYS if case.served.get(way)]


def _row(case: Case, way: str) -> Row:
    turns = case.served[way]
    last = turns[-1]
    oracles = [one.oracles[way] for one in case.measured.get(RATES_OF.get(way, ""), [])]
    computed = round(statistics.median(turn.computed_tokens for turn in turns))
    fewest = oracles[-1].fewest_tokens if oracles else None
    shares = [oracle.seconds / turn.seconds for oracle, turn in zip(oracles, turns, strict=False)]
    reusable = last.prompt_tokens - (fewest or 0)
    return Row(
        way=way,
        slots=last.slots,
        requests_min=statistics.median(60 * turn.requests / turn.seconds for turn in turns),
        tokens_s=statistics.median(turn.output_tokens / turn.seconds for turn in turns),
        oracle_share=statistics.median(shares) if shares else None,
        prompt_tokens=last.prompt_tokens,
        computed_tokens=computed,
        fewest_tokens=fewest,
        reuse=(last.prompt_tokens - computed) / reusable if fewest and reusable else None,
        cpu_s=_median(turns, lambda turn: turn.cpu_s),
        peak_bytes=_most(turn.peak_bytes for turn in turns),
        python_share=_median(turns, _python_share),
        build=last.build,
        instructions=last.instructions,
    )


def _python_share(turn: Served) -> float | None:
    return None if turn.native_s is None else 1 - turn.native_s / turn.seconds


def _median(turns: Sequence[Served], of: Callable[[Served], float | None]) -> float | None:
    values = [value for turn in turns if (value := of(turn)) is not None]
    return statistics.median(values) if len(values) == len(turns) else None


def _most(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return max((value for value in known if value is not None), default=None)


def ratios(cases: Sequence[Case]) -> list[Ratio]:
    """Return how our ways compare, for one number of agents.

    Each is compared with what can be used without this project, with our ways before it in the
    same layout, and with itself in upstream's layout.

    Args:
        cases: The workloads of one number of agents, one for each layout.
    """
    found = []
    for ours in cases:
        for way in OURS:
            for theirs in cases:
                for other in WAYS:
                    same_layout = theirs.layout == ours.layout
                    earlier = other in OURS and other < way and same_layout
                    itself = other == way and theirs.layout == "upstream" and not same_layout
                    if other in OURS and not earlier and not itself:
                        continue
                    turns = ours.served.get(way, []), theirs.served.get(other, [])
                    if all(turns):
                        found.append(_ratio(way, ours.layout, other, theirs.layout, *turns))
    return found


def _ratio(
    way: str, layout: str, other: str, other_layout: str,
    ours: Sequence[Served], theirs: Sequence[Served],
) -> Ratio:  # fmt: skip
    times = [
        (one.requests / one.seconds) / (two.requests / two.seconds)
        for one, two in zip(ours, theirs, strict=False)
    ]
    builds = {(turn.build, turn.instructions) for turn in (*ours, *theirs)}
    return Ratio(
        way, layout, other, other_layout,
        statistics.median(times), min(times), max(times), len(builds) == 1,
    )  # fmt: skip
