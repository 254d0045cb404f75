"""What users do without this project, on a server: upstream's two ways, and plain `gather`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from swarm_integration.bench.servers import running, server_of
from swarm_integration.bench.turns import TIMEOUT_S, Served, Turn
from swarm_integration.bench.usage import cpu, peak_bytes
from swarm_integration.bench.workload import TEMPERATURE, Question, Workload
from swarm_integration.compat_bench import UpstreamCaller

_MODEL = "bench"


def serve_on_server(turn: Turn, workload: Workload) -> Served:
    """Serve the workload in way `a`, `b` or `c` on a server with plain flags."""
    server = server_of(turn, workload)
    serve = {"a": _one_by_one, "b": _upstream_concurrently, "c": _gathered}[turn.part]
    with running(server, Path(turn.folder)) as view:
        view.warm_up()
        before, used = view.counters(), cpu(server.pid)
        began = time.perf_counter()
        prompt_tokens = serve(server.base_url, workload)
        seconds = time.perf_counter() - began
        after, spent = view.counters(), cpu(server.pid)
        build = view.build()
        return Served(
            seconds=seconds,
            requests=len(workload.questions),
            prompt_tokens=prompt_tokens,
            computed_tokens=after[0] - before[0],
            output_tokens=after[1] - before[1],
            slots=server.spec.slots,
            cpu_s=used.until(spent),
            peak_bytes=peak_bytes(server.pid),
            build=build.name,
            instructions=build.instructions,
        )


def _caller(base_url: str, question: Question) -> UpstreamCaller:
    # One for each question: upstream reads `max_tokens` from its agent when it sends.
    return UpstreamCaller(
        question.agent_id,
        base_url=base_url,
        model=_MODEL,
        temperature=TEMPERATURE,
        max_tokens=question.output_tokens,
        timeout_s=TIMEOUT_S,
    )


def _pair(question: Question) -> tuple[str, str]:
    """Return the system and the user prompt, which is all that upstream's calls take."""
    system = [message.content for message in question.messages if message.role == "system"]
    others = [message.content for message in question.messages if message.role != "system"]
    return "\n\n".join(system), "\n\n".join(others)


def _one_by_one(base_url: str, workload: Workload) -> int:
    """Ask as `Orchestrator.run` does: one agent after the other, a client for each call."""
    return sum(_caller(base_url, question).ask(*_pair(question)) for question in workload.questions)


def _upstream_concurrently(base_url: str, workload: Workload) -> int:
    """Ask as `Orchestrator.run_async` does: all of a round at once, on asyncio's own threads."""

    async def serve() -> int:
        prompt_tokens = 0
        for one in workload.rounds:
            calls = [_caller(base_url, question).ask_async(*_pair(question)) for question in one]
            prompt_tokens += sum(await asyncio.gather(*calls))
        return prompt_tokens

    return asyncio.run(serve())


def _gathered(base_url: str, workload: Workload) -> int:
    """Ask all of a round at once with one asynchronous client."""
    import openai

    async def serve() -> int:
        prompt_tokens = 0
        async with openai.AsyncOpenAI(
            base_url=base_url, api_key="not-needed", max_retries=0, timeout=TIMEOUT_S
        ) as client:
            for one in workload.rounds:
                prompt_tokens += sum(await asyncio.gather(*_calls(client, one)))
        return prompt_tokens

    async def ask(client: openai.AsyncOpenAI, question: Question) -> int:
        system, user = _pair(question)
        answer = await client.chat.completions.create(
            model=_MODEL,
            messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
            temperature=TEMPERATURE,
            max_tokens=question.output_tokens,
        )
        return answer.usage.prompt_tokens if answer.usage else 0

    def _calls(client: openai.AsyncOpenAI, one: Sequence[Question]) -> list[asyncio.Task[int]]:
        return [asyncio.ensure_future(ask(client, question)) for question in one]

    return asyncio.run(serve())
