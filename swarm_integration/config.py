"""The configuration of a SWARM run: the scheduler's sections and SWARM's own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scheduler.config import BackendConfig, LoggingConfig, SchedulerConfig, Section


class InferenceConfig(Section):
    """What a file given with `--inference-config` may say."""

    scheduler: SchedulerConfig = SchedulerConfig()
    backend: BackendConfig = BackendConfig()
    prompt_layout: Literal["upstream", "shared_first"] = Field(
        "upstream",
        description="shared_first moves the action format, which all agents share, "
        "before the persona, so that more of each prompt is already in the cache.",
    )
    logging: LoggingConfig = LoggingConfig()
