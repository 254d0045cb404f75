"""Upstream's own model calls, for measuring them: an LLM agent that is asked by itself."""

from __future__ import annotations

from typing import Any

from swarm_integration.compat import require_names


class UpstreamCaller:
    """One LLM agent of upstream's, on a llama-server.

    Args:
        agent_id: Its id.
        base_url: The server's OpenAI-compatible routes.
        model: The model's name.
        temperature: Sent with each call.
        max_tokens: Sent with each call.
        timeout_s: Upstream's deadline for a call.

    Raises:
        CompatError: This SWARM has no such calls.
    """

    def __init__(
        self,
        agent_id: str,
        *,
        base_url: str,
        model: str,
        temperature: float,
        max_tokens: int,
        timeout_s: float,
    ) -> None:
        from swarm.agents.llm_agent import LLMAgent
        from swarm.agents.llm_config import LLMConfig, LLMProvider

        config = LLMConfig(
            provider=LLMProvider.LLAMA_CPP,
            model=model,
            base_url=base_url,
            temperature=temperature,
            max_tokens=max_tokens,
            timeout=timeout_s,
        )
        self._agent: Any = LLMAgent(agent_id=agent_id, llm_config=config)
        require_names(self._agent, ("_call_llm_async", "_call_llm_sync"), "LLMAgent")

    def ask(self, system: str, user: str) -> int:
        """Ask as `Orchestrator.run` does; return the prompt's tokens as upstream counts them."""
        _, prompt_tokens, _ = self._agent._call_llm_sync(system, user)
        return int(prompt_tokens)

    async def ask_async(self, system: str, user: str) -> int:
        """Ask as `Orchestrator.run_async` does."""
        _, prompt_tokens, _ = await self._agent._call_llm_async(system, user)
        return int(prompt_tokens)
