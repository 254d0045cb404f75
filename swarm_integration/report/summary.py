"""A run's record becomes the numbers that every output shows. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from swarm_integration.report import units
from swarm_integration.report.actions import Actions, actions_of
from swarm_integration.report.facts import (
    Group,
    Verdict,
    configuration_of,
    groups_of,
    verdict_of,
)
from swarm_integration.report.plain import amount, mapping, text
from swarm_integration.report.records import Asked, RunRecord, Try
from swarm_integration.report.statistics import Spread, spread_of

MOST_TROUBLES = 60

_NAMED = re.compile(r"^.{1,200}? \(epoch \d+, step \d+\) failed after")


@dataclass(frozen=True, slots=True)
class Row:
    """The requests of one agent, persona, kind or backend."""

    name: str
    requests: int
    queue: Spread | None
    service: Spread | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class SlotUse:
    """How long one slot was busy, of the time that the log covers."""

    backend: str
    slot: int
    tries: int
    busy: float


@dataclass(frozen=True, slots=True)
class TroubleRow:
    """Errors that read the same, counted.

    Attributes:
        what: `failed`, `retried`, `invalid` or `run`.
        error: The text.
        times: How often.
        first: Who met it first.
        first_ms: When.
    """

    what: str
    error: str
    times: int
    first: str
    first_ms: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of one run; times in milliseconds.

    Attributes:
        run: What they were made from.
        state: How the run ended.
        outcomes: Requests by outcome.
        groups: Rows by `backend`, `kind`, `persona` and `agent`.
        duration_ms: What the log covers.
        in_flight_ms: The time during which a slot was busy.
    """

    run: RunRecord
    state: str
    facts: tuple[Group, ...]
    verdict: Verdict
    configuration: Mapping[str, str]
    outcomes: Mapping[str, int]
    retries: int
    reasks: int
    queue: Spread | None
    service: Spread | None
    prefill: Spread | None
    decode: Spread | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    groups: Mapping[str, tuple[Row, ...]]
    slots: tuple[SlotUse, ...]
    troubles: tuple[TroubleRow, ...]
    more_troubles: int
    actions: Actions | None
    duration_ms: float

    @property
    def name(self) -> str:
        """How the run is called."""
        return self.run.name

    @property
    def requests(self) -> int:
        """How many requests the run made."""
        return sum(self.outcomes.values())

    @property
    def written_per_s(self) -> float:
        """Tokens written a second, over all that the log covers."""
        return 1000.0 * self.completion_tokens / self.duration_ms if self.duration_ms else 0.0

    @property
    def busy(self) -> float:
        """The share of all slots' time that was used."""
        return sum(slot.busy for slot in self.slots) / len(self.slots) if self.slots else 0.0


def summarise(run: RunRecord) -> Summary:
    """Return the numbers of a run."""
    log = run.log
    answered = [one for one in log.tries if one.answered]
    asked = list(log.asked.values())
    troubles = _troubles(run)
    return Summary(
        run=run,
        state=text(run.manifest.get("state"), "unknown"),
        facts=groups_of(run),
        verdict=verdict_of(run),
        configuration=configuration_of(run.manifest),
        outcomes=_outcomes(asked),
        retries=sum(one.what == "retried" for one in log.troubles),
        reasks=sum(one.reask > 0 for one in answered),
        queue=spread_of(waits_of(asked)),
        service=spread_of(one.service_ms for one in answered),
        prefill=_reported(one.prefill_ms for one in answered),
        decode=_reported(one.decode_ms for one in answered),
        prompt_tokens=sum(one.prompt_tokens for one in answered),
        cached_tokens=sum(one.cached_tokens for one in answered),
        completion_tokens=sum(one.completion_tokens for one in answered),
        groups=_groups(run, asked, answered),
        slots=_slots(run),
        troubles=troubles[:MOST_TROUBLES],
        more_troubles=len(troubles[MOST_TROUBLES:]),
        actions=actions_of(run.manifest),
        duration_ms=log.duration_ms or _manifest_ms(run),
    )


def waits_of(asked: Iterable[Asked]) -> list[float]:
    """Return how long each request waited for its first slot, where it had one."""
    return [one.queue_ms for one in asked if one.queue_ms is not None]


def _reported(times: Iterable[float | None]) -> Spread | None:
    """Return the spread of a phase; a backend that says 0 each time does not measure it."""
    spread = spread_of(time for time in times if time is not None)
    return spread if spread is not None and spread.largest > 0 else None


def _manifest_ms(run: RunRecord) -> float:
    return 1000.0 * amount(mapping(run.manifest.get("inference")).get("wall_s"))


def _outcomes(asked: Iterable[Asked]) -> dict[str, int]:
    counts = Counter(one.outcome for one in asked)
    order = ("ok", "invalid", "failed", "withdrawn", "open")
    return {name: counts[name] for name in order if counts[name]}


def _groups(run: RunRecord, asked: list[Asked], answered: list[Try]) -> dict[str, tuple[Row, ...]]:
    def persona(one: Asked | Try) -> str:
        return run.personas.get(one.key.agent_id, "")

    ways: dict[str, Callable[[Asked | Try], str]] = {
        "backend": lambda one: one.backend,
        "kind": lambda one: one.key.kind,
        "persona": persona,
        "agent": lambda one: one.key.agent_id,
    }
    return {way: _rows(name_of, asked, answered) for way, name_of in ways.items()}


def _rows(
    name_of: Callable[[Asked | Try], str], asked: list[Asked], answered: list[Try]
) -> tuple[Row, ...]:
    requests: dict[str, list[Asked]] = {}
    tries: dict[str, list[Try]] = {}
    for request in asked:
        requests.setdefault(name_of(request), []).append(request)
    for one in answered:
        tries.setdefault(name_of(one), []).append(one)
    return tuple(
        _row(name, requests[name], tries.get(name, []))
        for name in sorted(requests, key=units.natural)
        if name
    )


def _row(name: str, asked: list[Asked], answered: list[Try]) -> Row:
    return Row(
        name,
        len(asked),
        spread_of(waits_of(asked)),
        spread_of(one.service_ms for one in answered),
        sum(one.prompt_tokens for one in answered),
        sum(one.cached_tokens for one in answered),
        sum(one.completion_tokens for one in answered),
    )


def tracks_of(run: RunRecord) -> dict[tuple[str, int], list[Try]]:
    """Return the tries of each slot, idle slots included, in the order of the slots."""
    tracks: dict[tuple[str, int], list[Try]] = {}
    for backend, slots in run.log.slots.items():
        for slot in range(slots):
            tracks[backend, slot] = []
    for one in run.log.tries:
        tracks.setdefault((one.backend, one.slot), []).append(one)
    return dict(sorted(tracks.items(), key=lambda item: (units.natural(item[0][0]), item[0][1])))


def _slots(run: RunRecord) -> tuple[SlotUse, ...]:
    total = run.log.duration_ms
    return tuple(
        SlotUse(
            backend,
            slot,
            len(tries),
            min(1.0, sum(one.service_ms for one in tries) / total) if total else 0.0,
        )
        for (backend, slot), tries in tracks_of(run).items()
    )


def _troubles(run: RunRecord) -> tuple[TroubleRow, ...]:
    """Return the errors, those that read the same together, the gravest first."""
    rows: dict[tuple[str, str], TroubleRow] = {}
    for one in run.log.troubles:
        key = (one.what, _NAMED.sub("failed after", one.error))
        before = rows.get(key)
        if before is None:
            rows[key] = TroubleRow(*key, 1, one.who, one.at_ms)
        else:
            rows[key] = replace(before, times=before.times + 1)
    gravity = {"run": 0, "failed": 1, "invalid": 2, "retried": 3}
    ordered = sorted(rows.values(), key=lambda row: (gravity.get(row.what, 4), -row.times))
    return tuple(ordered)
