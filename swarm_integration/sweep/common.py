"""What all runs of a sweep share: started, and checked against every point and begun run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from scheduler.errors import AttemptError, BackendUnavailable
from scheduler.observe import EventLog
from swarm_integration.errors import FitnessError
from swarm_integration.fitness import check_fitness
from swarm_integration.identity import answerers
from swarm_integration.scenario import Rehearsal
from swarm_integration.schemas import Instructions
from swarm_integration.services import muster
from swarm_integration.startup import Common, Parts, start_common
from swarm_integration.sweep.folder import Folder
from swarm_integration.sweep.plan import SweepPlan


@asynccontextmanager
async def common_of(plan: SweepPlan, folder: Folder, log: EventLog) -> AsyncIterator[Common]:
    """Start what all runs share, check that every point fits, and give all back at the end.

    Args:
        plan: The sweep.
        folder: Where it writes.
        log: The sweep's.

    Raises:
        FitnessError: A point does not fit, or a backend is not there.
        ConfigError: A run that has begun was answered by something else than this.
    """
    parts = Parts()
    common: Common | None = None
    try:
        rehearsals = list(plan.rehearsals.values())
        common = await start_common(plan.config.inference, rehearsals, folder.runs, log, parts)
        for name, rehearsal in plan.rehearsals.items():
            point = f"the point {name}" if len(plan.rehearsals) > 1 else ""
            answering = await _fitting(plan, point, rehearsal, common, log)
            for run in plan.runs:
                if run.point.name == name:
                    plan.check_answerers(run, folder, answering)
        yield common
    finally:
        if common is not None:
            parts.backends.extend(common.backends.values())
        await parts.aclose()


async def _fitting(
    plan: SweepPlan, name: str, rehearsal: Rehearsal, common: Common, log: EventLog
) -> dict[str, Any]:
    """Check that a point fits, and return what answers it."""
    inference = plan.config.inference
    instructions = Instructions(
        inference.prompt_layout,
        structured=inference.scheduler.structured_output,
        full_ids=inference.actions.full_ids,
    )
    slots = inference.scheduler.slots
    fleet = muster(
        rehearsal,
        inference.backend,
        managed_url=common.server.base_url if common.server else None,
        context=common.context,
        slots=slots,
        log=log,
        restarts=common.restarts,
        made=common.backends,
    )
    shared = common.backends.values()
    try:
        await check_fitness(
            rehearsal, fleet, instructions, slots, managed=inference.backend.managed
        )
        infos = {key: await backend.start() for key, backend in fleet.backends.items()}
    except (AttemptError, BackendUnavailable, FitnessError) as exc:
        raise FitnessError(f"{name} can't be served: {exc}" if name else str(exc)) from exc
    finally:
        for backend in fleet.backends.values():
            if backend not in shared:
                await backend.aclose()
    return answerers(inference, fleet.services, infos, common.server)
