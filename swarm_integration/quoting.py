"""What a run says of its backends' arithmetic: the certificate, or what to type for one.

An engine's own calibration is quoted where nobody has certified it, and marked as that:
it compares row counts at load, and asks no prompts.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scheduler.backends.base import BackendInfo
from scheduler.server import ManagedServer
from scheduler.verdict import Level
from swarm_integration.certificates import NOT_CERTIFIED, conditions_of, matching
from swarm_integration.config import InferenceConfig
from swarm_integration.rundir import CONFIGURATION

Quote = dict[str, Any]


def quotes(
    infos: Mapping[str, BackendInfo],
    server: ManagedServer | None,
    config: InferenceConfig,
    run_dir: Path,
) -> dict[str, Quote]:
    """Return what the manifest says of each backend.

    Args:
        infos: What the backends said at their start, by name.
        server: The server that the run has started, or None.
        config: The effective configuration.
        run_dir: The run's directory, where its configuration is copied.
    """
    return {name: _quote(name, info, server, config, run_dir) for name, info in infos.items()}


def line(quoted: Mapping[str, Quote]) -> str:
    """Return one line on all backends for the summary."""
    if not quoted:
        return "no backend, so nothing to certify"
    summaries = dict.fromkeys(str(quote["summary"]) for quote in quoted.values())
    if len(summaries) == 1:
        return next(iter(summaries))
    return "; ".join(f"{name}: {quote['level']}" for name, quote in quoted.items())


def _quote(
    name: str,
    info: BackendInfo,
    server: ManagedServer | None,
    config: InferenceConfig,
    run_dir: Path,
) -> Quote:
    slots = config.scheduler.slots
    at_once = info.slots if isinstance(slots, str) or info.serial else slots
    certificate, why_not = matching(
        info,
        at_once,
        lambda: conditions_of(info, server),
        trusted=config.determinism.trust_certificate,
    )
    if certificate is not None:
        return {
            "level": certificate.level.value,
            "source": "certificate",
            "summary": certificate.summary,
            "date": certificate.date,
            "slots": certificate.slots,
            "trials": certificate.trials,
            "answers": certificate.answers,
            "reason": certificate.reason,
            "conditions": certificate.conditions,
        }
    command = _command(name, info, at_once, config, run_dir)
    level = _calibrated(info)
    if level is not None:
        return {
            "level": level.value,
            "source": "calibration",
            "summary": f"{level.value}: the engine's own calibration, not certified",
            "command": command,
        }
    to_type = f"measure it with: {command}" if command else "it can't be measured"
    return {
        "level": NOT_CERTIFIED,
        "source": None,
        "summary": f"{NOT_CERTIFIED}; {why_not or to_type}",
        "command": command,
    }


def _calibrated(info: BackendInfo) -> Level | None:
    calibration = info.facts.get("calibration")
    level = calibration.get("level") if isinstance(calibration, Mapping) else None
    return Level(level) if level in set(Level) else None


def _command(
    name: str, info: BackendInfo, slots: int, config: InferenceConfig, run_dir: Path
) -> str | None:
    """Return what to type to certify a backend; None for one that takes no seed."""
    words = ["swarm-inference", "certify"]
    if config.backend.kind != "auto":
        words += ["--inference-config", str(run_dir / CONFIGURATION)]
    elif info.kind == "llama_server":
        words += ["--base-url", name]
    elif info.kind == "llama_inproc":
        words += ["--model", name.rpartition(" (n_ctx")[0]]
    else:
        return None
    if info.kind == "llama_inproc":
        words += ["--context", str(info.context_per_slot)]
        words += ["--threads", str(info.facts["n_threads"])]
    return shlex.join([*words, "--slots", str(slots)])
