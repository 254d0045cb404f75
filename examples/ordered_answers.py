"""Send a list of prompts to a llama-server and get the answers back in order.

python examples/ordered_answers.py http://127.0.0.1:8080/v1
"""

import sys

import anyio

from scheduler import LlamaServerBackend, Message, Request, Sampling, Scheduler

TOPICS = ["rain", "bread", "tides", "maps", "salt", "wool", "ice", "clocks"]


async def main(base_url: str) -> None:
    """Ask about every topic at once; as many run at a time as the server has slots."""
    requests = [
        Request(
            agent_id=topic,
            messages=(Message("system", "Be brief."), Message("user", f"What about {topic}?")),
            sampling=Sampling(temperature=0.7, max_tokens=48),
            base_seed=42,
        )
        for topic in TOPICS
    ]
    backend = LlamaServerBackend(base_url)
    try:
        async with Scheduler(backend) as scheduler:
            for completion in await scheduler.run_step(requests):
                print(f"{completion.request.agent_id}: {completion.text!r}")
    finally:
        await backend.aclose()


anyio.run(main, sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080/v1")
