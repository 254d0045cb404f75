"""One examination: all checks in their order, and the repairs that were asked for."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import anyio

from scheduler.errors import ConfigError
from swarm_integration.doctor import packages, servers
from swarm_integration.doctor.case import Case, DoctorOptions, read_case
from swarm_integration.doctor.findings import Finding, Part, as_json, is_broken, repairs, text
from swarm_integration.doctor.machine import (
    check_disk,
    check_folders,
    check_memory,
    check_threads,
)
from swarm_integration.doctor.model import check_model
from swarm_integration.errors import CompatError
from swarm_integration.fitness import estimated_context
from swarm_integration.schemas import Instructions
from swarm_integration.services import muster, without_login


def doctor(options: DoctorOptions) -> int:
    """Examine, repair what `fix` allows, print; return 0 without errors and 1 with."""
    # What SWARM prints while a scenario is built is no part of the answer.
    with redirect_stdout(sys.stderr):
        parts = examine(options)
        fixed, failed = _repair(parts) if options.fix else ([], [])
        if fixed:
            parts = examine(options)
        if failed:
            parts = [*parts, ("Repairs", failed)]
    if options.as_json:
        print(json.dumps(as_json(parts, fixed)))
    else:
        for line in fixed:
            print(f"fixed: {line}")
        print(("\n" if fixed else "") + text(parts))
    return 1 if is_broken(parts) else 0


def examine(options: DoctorOptions) -> list[Part]:
    """Return the findings, by part."""
    case = read_case(options)
    needed = case.in_process
    installation = [
        *packages.check_versions(),
        packages.check_llama_cpp(needed=needed, tried=needed or case.chosen is None),
        packages.check_import_name(),
        *packages.check_script(),
    ]
    server = anyio.run(_servers, case)
    parts: list[Part] = [
        ("Installation", installation),
        ("This machine", _machine(case)),
        ("Configuration and scenario", _scenario(case)),
        ("Model files", [one for use in case.models() for one in check_model(use)]),
        ("Servers", server),
    ]
    return [(title, findings) for title, findings in parts if findings]


def _machine(case: Case) -> list[Finding]:
    base = Path.cwd()
    journal = case.config.journal.path
    place = base / "runs" if journal == "auto" else Path(journal).parent
    return [
        check_threads(*case.threads),
        check_memory(),
        *check_folders(base),
        check_disk(place, case.answers),
    ]


def _scenario(case: Case) -> list[Finding]:
    findings = [*case.findings, *case.key_findings()]
    chosen = case.chosen
    if chosen is None:
        return findings
    findings += _layout(case)
    if case.in_process and chosen.prompts:
        findings += _context_in_process(case, estimated_context(chosen, case.config.prompt_layout))
    return findings


def _layout(case: Case) -> list[Finding]:
    """Return an error where the configured layout can't be had of the installed SWARM."""
    try:
        Instructions(case.config.prompt_layout)
    except CompatError as exc:
        what, _, mend = str(exc).partition("; ")
        return [Finding("prompt_layout", "error", what, mend)]
    return []


def _context_in_process(case: Case, guess: int) -> list[Finding]:
    """Return a warning where a model in this process may get too little context."""
    held = [use.context for use in case.models() if use.context is not None]
    if not held or min(held) >= guess:
        return []
    says = (
        f"a prompt and its answer may take {guess:,} tokens, guessed from lengths, and n_ctx is "
        f"{min(held):,}; the run counts exactly, and refuses to start if it is too little"
    )
    key = "n_ctx of the agents' llm block"
    if case.config.backend.kind != "auto":
        key = "backend.context_per_slot"
    return [Finding("context in process", "warning", says, f"set {key} to {guess}")]


async def _servers(case: Case) -> list[Finding]:
    backend = case.backend
    if backend.managed:
        return [servers.check_program(needed=True)]
    if backend.kind in ("fake", "llama_inproc"):
        return []
    named = case.options.base_url is not None or backend.kind != "auto"
    if case.chosen is None and not named:
        found = [one async for one in servers.check_default_server(backend.base_urls[0])]
    else:
        found = await _fleet(case)
    if not any(one.facts.get("slots") for one in found):
        found.append(servers.check_program(needed=False))
    return found


async def _fleet(case: Case) -> list[Finding]:
    """Return what the servers say that a run would ask."""
    rehearsal = case.reachable
    keyless = any(one.level == "error" for one in case.key_findings())
    # With kind auto, agents without their key are left out and the others are looked at.
    if rehearsal is None or (keyless and case.config.backend.kind != "auto"):
        return []
    if _layout(case):
        return []  # that is told with the scenario
    layout, structured = case.config.prompt_layout, case.config.scheduler.structured_output
    slots = case.config.scheduler.slots
    try:
        fleet = muster(rehearsal, case.backend, managed_url=None, context=0, slots=slots)
    except ConfigError as exc:
        what, _, mend = str(exc).partition(". ")
        return [Finding("backend", "error", what, mend)]
    try:
        instructions = Instructions(layout, structured=structured)
        address = None
        if case.backend.kind != "auto":
            address = ", ".join(without_login(url) for url in case.backend.base_urls)
        found = servers.check_fleet(
            rehearsal, fleet, instructions, slots, address=address, fits=case.chosen is not None
        )
        return [one async for one in found]
    finally:
        for one in fleet.backends.values():
            await one.aclose()


def _repair(parts: list[Part]) -> tuple[list[str], list[Finding]]:
    done: list[str] = []
    failed: list[Finding] = []
    for repair in repairs(parts):
        try:
            done.append(repair.act())
        except OSError as exc:
            failed.append(Finding(repair.label, "error", f"could not be done: {exc}"))
    return done, failed
