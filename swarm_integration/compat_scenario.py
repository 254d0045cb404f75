"""What a scenario of SWARM does outside the process that runs it.

Most scenarios do nothing there. An AWM section in live mode starts the program that it
names, and Letta agents start or call a server: who runs such a scenario runs its author's
commands.
"""

from __future__ import annotations

from typing import Any

from swarm_integration.compat import require_names


def outside_effects(scenario: Any) -> list[str]:
    """Return what a scenario starts or calls, a sentence each; nothing for most.

    Args:
        scenario: Upstream's `ScenarioConfig`.

    Raises:
        CompatError: This SWARM has other names.
    """
    config = scenario.orchestrator_config
    require_names(config, ("awm_config", "letta_config"), "the scenario's configuration")
    found = []
    if config.awm_config is not None:
        require_names(config.awm_config, ("live_mode",), "the AWM configuration")
        if config.awm_config.live_mode:
            found.append("awm.live_mode starts the program in awm.server_command_template")
    if config.letta_config is not None or any(
        isinstance(spec, dict) and spec.get("type") == "letta" for spec in scenario.agent_specs
    ):
        found.append("its letta agents start or call a Letta server")
    return found
