"""The configuration of a SWARM run: the scheduler's sections and SWARM's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from scheduler.config import BackendConfig, LoggingConfig, SchedulerConfig, Seconds, Section


class DeterminismConfig(Section):
    """What is done so that the same seed gives the same bytes."""

    repair_simulation: bool = Field(
        True,
        description="Draw SWARM's ids, times and unseeded random numbers from the run's seed.",
    )
    server_profile: Literal["fast", "invariant"] = Field(
        "fast",
        description="How a managed server is started; invariant: with the settings under which "
        "an answer did not depend on what shared its batch, which are slower.",
    )
    trust_certificate: bool = Field(
        False,
        description="Quote a certificate of a server that somebody else has started: you say that "
        "it is started now as it was when it was certified, which nobody can check.",
    )
    seconds_per_step: Seconds = Field(
        60.0,
        le=604_800,
        description="Simulated seconds per step, which SWARM's ages and rates follow; a week at "
        "most.",
    )


class ActionsConfig(Section):
    """What LLM agents can do and name."""

    full_ids: bool = Field(
        True,
        description="List in each answer's schema the actions, posts, tasks and agents that the "
        "prompt shows, and map the ids that a model wrote back to whole ones. false: any id, as "
        "it was written, with which SWARM finds no post and no task.",
    )


class JournalConfig(Section):
    """Where answers are kept, so that a broken run can be resumed."""

    path: Literal["auto"] | Annotated[Path, Field(strict=False)] = Field(
        "auto", description="auto: journal.sqlite3 in the run's directory."
    )
    synchronous: Literal["normal", "full"] = Field(
        "normal", description="full also survives a power cut, and is slower."
    )
    on_error: Literal["abort", "continue"] = Field(
        "abort", description="End the run when the journal can't be written, or go on without."
    )


class MetricsConfig(Section):
    """Whether a run can be watched by Prometheus."""

    port: Annotated[int, Field(ge=0, le=65535, strict=True)] | None = Field(
        None,
        description="Port on 127.0.0.1 where Prometheus finds the run's metrics; 0 picks a free "
        "one, null shows none. See docs/metrics.md.",
    )


class InferenceConfig(Section):
    """What a file given with `--inference-config` may say."""

    scheduler: SchedulerConfig = SchedulerConfig()
    backend: BackendConfig = BackendConfig()
    prompt_layout: Literal["upstream", "shared_first"] = Field(
        "upstream",
        description="shared_first moves what all agents' prompts of a step share to the front: the "
        "action format before the persona, posts, tasks, agents and figures before the agent's own "
        "lines. Less is computed, and models read another order. See docs/prompt-layout.md.",
    )
    determinism: DeterminismConfig = DeterminismConfig()
    actions: ActionsConfig = ActionsConfig()
    journal: JournalConfig = JournalConfig()
    logging: LoggingConfig = LoggingConfig()
    metrics: MetricsConfig = MetricsConfig()
