"""What one run of a sweep brought: the numbers of its row.

The columns are named as in upstream's `swarm.analysis.sweep`, where it has them; what
does not apply to a run (a payoff of agents that it has not) is left empty and not 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scheduler.errors import ConfigError
from swarm_integration.rundir import METRICS, read_manifest
from swarm_integration.sweep.folder import OUTCOME, write_whole

_TYPES = ("honest", "opportunistic", "deceptive", "adversarial")
_CONTRACTS = ("separation_quality", "infiltration_rate", "welfare_delta", "attack_displacement")

METRIC_COLUMNS = (
    "total_interactions",
    "accepted_interactions",
    "toxicity_rate",
    "quality_gap",
    "welfare",
    "welfare_per_epoch",
    "net_social_welfare",
    "n_agents",
    "n_frozen",
    "avg_reputation",
    "avg_payoff",
    "min_payoff",
    "max_payoff",
    *(f"{kind}_payoff" for kind in _TYPES),
    *_CONTRACTS,
)
"""Means over epochs for the rates, sums for counts and welfare, and the agents at the end."""

COUNT_COLUMNS = ("questions", "invalid_answers", "failed_requests")


def outcome_of(orchestrator: Any) -> dict[str, float | None]:
    """Return the metrics of a simulation that has ended."""
    epochs = orchestrator.get_metrics_history()
    agents = orchestrator.get_all_agents()
    states = [(agent, orchestrator.state.get_agent(agent.agent_id)) for agent in agents]
    payoffs = [state.total_payoff for _, state in states if state]
    found: dict[str, float | None] = {
        "total_interactions": sum(one.total_interactions for one in epochs),
        "accepted_interactions": sum(one.accepted_interactions for one in epochs),
        "toxicity_rate": _mean(one.toxicity_rate for one in epochs),
        "quality_gap": _mean(one.quality_gap for one in epochs),
        "welfare": sum(one.total_welfare for one in epochs),
        "welfare_per_epoch": _mean(one.total_welfare for one in epochs),
        "net_social_welfare": sum(one.net_social_welfare for one in epochs),
        "n_agents": len(agents),
        "n_frozen": len(orchestrator.state.frozen_agents),
        "avg_reputation": _mean(state.reputation for _, state in states if state),
        "avg_payoff": _mean(payoffs),
        "min_payoff": min(payoffs, default=None),
        "max_payoff": max(payoffs, default=None),
    }
    for kind in _TYPES:
        of_kind = (s.total_payoff for agent, s in states if s and agent.agent_type.value == kind)
        found[f"{kind}_payoff"] = _mean(of_kind)
    contracts = (epochs[-1].contract_metrics if epochs else None) or {}
    return {**found, **{name: contracts.get(name) for name in _CONTRACTS}}


def _mean(values: Iterable[float]) -> float | None:
    samples = list(values)
    return sum(samples) / len(samples) if samples else None


def write_outcome(directory: Path, outcome: Mapping[str, Any]) -> None:
    """Keep what a run brought in its directory."""
    text = json.dumps(outcome, indent=1, sort_keys=True)
    write_whole(directory / OUTCOME, f"{text}\n".encode())


def read_run(directory: Path) -> dict[str, Any]:
    """Return what a run's directory says: `state`, `reason`, `trace_hash`, metrics and counts.

    A run without a directory is `not started`; one that is said to be completed without all
    its files, or whose manifest can't be read, is `incomplete`.
    """
    if not directory.exists():
        return {"state": "not started"}
    try:
        manifest = read_manifest(directory)
    except ConfigError as exc:
        return {"state": "incomplete", "reason": str(exc)}
    found = {name: manifest.get(name) for name in ("state", "reason", "trace_hash", "identity")}
    if found["state"] != "completed":
        # Killed while it ran: nothing could say so.
        state = "interrupted" if found["state"] in ("starting", "running") else found["state"]
        return {**found, "state": state, "trace_hash": None}
    try:
        metrics = json.loads((directory / OUTCOME).read_text(encoding="utf-8"))
        counts = manifest["inference"]
        found |= {name: metrics.get(name) for name in METRIC_COLUMNS}
        found |= {
            "questions": manifest["transcript_lines"],
            "invalid_answers": counts["invalid"],
            "failed_requests": counts["failures"],
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {**found, "state": "incomplete", "trace_hash": None}
    return found if (directory / METRICS).is_file() else {**found, "state": "incomplete"}
