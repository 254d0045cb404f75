"""What the manifest says of a run, as labelled lines for a reader.

Every value is taken as it is found: manifests of other releases have more, fewer or
other entries, and a stranger's may have anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from swarm_integration.report import units
from swarm_integration.report.plain import TEXT_CHARS, count, mapping, number, sequence, text
from swarm_integration.report.records import RunRecord

MOST_LINES = 200
_DEEPEST = 6

Line = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Group:
    """Labelled lines under a title; `more` are for who looks closer."""

    title: str
    lines: tuple[Line, ...]
    more: tuple[Line, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of a run's determinism.

    Attributes:
        backend: The backends' levels in a few words.
        lines: Each layer, and what held.
        transcript: Whether the transcript is the one of the trace hash.
        sound: False if it is not, True if it is, None if that can't be said.
    """

    backend: str
    lines: tuple[Line, ...]
    transcript: str
    sound: bool | None


def groups_of(run: RunRecord) -> tuple[Group, ...]:
    """Return the facts of run, models and versions."""
    manifest = run.manifest
    found = [
        Group("Run", tuple(_run_lines(run))),
        *_model_groups(manifest),
        Group("Versions", tuple(_version_lines(manifest))),
    ]
    return tuple(group for group in found if group.lines)


def _run_lines(run: RunRecord) -> Iterator[Line]:
    manifest, log = run.manifest, run.log
    scenario = mapping(manifest.get("scenario"))
    state, reason = text(manifest.get("state")), text(manifest.get("reason"), limit=TEXT_CHARS)
    yield "state", f"{state}: {reason}" if reason else state
    yield "scenario", _joined(text(scenario.get("id")), text(scenario.get("file")))
    epochs, steps = count(scenario.get("epochs")), count(scenario.get("steps_per_epoch"))
    yield "length", f"{units.plural(epochs, 'epoch')} of {units.plural(steps, 'step')}"
    yield "seed", text(manifest.get("seed"), "none")
    yield "mode", text(manifest.get("mode"))
    yield "agents with a model", text(len(mapping(manifest.get("served_by"))))
    if log.began:
        yield "began", log.began
    if log.parts_ms:
        resumed = len(log.parts_ms) - 1
        times = "never" if not resumed else "once" if resumed == 1 else f"{resumed} times"
        yield "resumed", times
    command = " ".join(text(word) for word in sequence(manifest.get("command"))[:40])
    if command:
        yield "command", text(f"swarm {command}", limit=TEXT_CHARS)
    yield "trace hash", text(manifest.get("trace_hash"), "none")


def _joined(first: str, second: str) -> str:
    return f"{first} ({second})" if second and second != first else first


def _model_groups(manifest: Mapping[str, Any]) -> Iterator[Group]:
    for name, entry in list(mapping(manifest.get("backends")).items())[:20]:
        facts = mapping(entry)
        lines = [
            ("kind", text(facts.get("kind"))),
            ("model", text(facts.get("model"))),
            ("build", text(facts.get("build"))),
            ("slots of the backend", text(facts.get("slots"))),
            ("context per slot", _tokens(facts.get("context_per_slot"))),
            ("fingerprint", text(facts.get("fingerprint"))),
        ]
        more = tuple(list(flat(facts.get("facts")))[:MOST_LINES])
        yield Group(f"Backend {text(name)}", tuple(line for line in lines if line[1]), more)


def _tokens(value: object) -> str:
    tokens = number(value)
    return "" if tokens is None else f"{units.whole(tokens)} tokens"


def _version_lines(manifest: Mapping[str, Any]) -> Iterator[Line]:
    yield from flat(manifest.get("versions"))
    machine = mapping(manifest.get("platform"))
    if machine:
        yield "machine", " ".join(text(value) for value in list(machine.values())[:6])
    flags = sequence(mapping(manifest.get("server")).get("flags"))
    if flags:
        words = " ".join(text(word) for word in flags[:80])
        yield "server flags", text(words, limit=TEXT_CHARS)


def configuration_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the effective configuration, one dotted key a line."""
    return dict(list(flat(manifest.get("configuration")))[:MOST_LINES])


def flat(value: object, prefix: str = "", depth: int = 0) -> Iterator[Line]:
    """Yield the leaves of nested objects under dotted names; lists become one line."""
    if isinstance(value, dict) and depth < _DEEPEST:
        for name, inner in list(value.items())[:MOST_LINES]:
            dotted = text(f"{prefix}.{name}" if prefix else str(name))
            yield from flat(inner, dotted, depth + 1)
    elif isinstance(value, list):
        leaves = [line for item in value[:20] for line in flat(item, "", depth + 1)]
        shown = "; ".join(f"{name}: {leaf}" if name else leaf for name, leaf in leaves)
        yield prefix, text(shown, limit=TEXT_CHARS)
    elif not isinstance(value, dict):
        yield prefix, text(value, "none", limit=TEXT_CHARS)


def verdict_of(run: RunRecord) -> Verdict:
    """Return what the manifest says of determinism, and check the trace hash."""
    determinism = run.manifest.get("determinism")
    told = list(flat(determinism))[:MOST_LINES]
    lines = tuple((name or "determinism", value) for name, value in told)
    backend = mapping(determinism).get("backend")
    sound, transcript = _transcript_check(run)
    return Verdict(_levels(backend), lines, transcript, sound)


def _levels(backend: object) -> str:
    if isinstance(backend, str):
        return text(backend)
    leaves = list(flat(mapping(backend)))[:MOST_LINES]
    named = [value for name, value in leaves if name.rsplit(".", 1)[-1] in {"verdict", "level"}]
    plain = [value for name, value in leaves if "." not in name]
    levels = list(dict.fromkeys(named or plain))
    return text(", ".join(levels)) or "not said"


def _transcript_check(run: RunRecord) -> tuple[bool | None, str]:
    wanted, found = run.manifest.get("trace_hash"), run.transcript_sha256
    if found is None:
        return None, "there is no transcript to check"
    if not isinstance(wanted, str):
        return None, "the manifest has no trace hash to check the transcript against"
    if found == wanted:
        return True, "the transcript's sha256 is the trace hash of the manifest"
    return False, "the transcript's sha256 is not the trace hash of the manifest"
