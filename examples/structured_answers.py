"""Answers that hold a JSON schema, on the fake backend: no server, no model.

python examples/structured_answers.py
"""

import json

import anyio

from scheduler import FakeBackend, Message, OutputSchema, Request, Scheduler, SchedulerConfig

VOTE = OutputSchema(
    "vote",
    {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}, "why": {"type": "string", "maxLength": 80}},
        "required": ["yes", "why"],
        "additionalProperties": False,
    },
)


async def main() -> None:
    """Let five agents vote, twice over, and count."""
    config = SchedulerConfig(max_batch=8, slots=2, on_failure="noop")
    async with Scheduler(FakeBackend(slots=4), config) as scheduler:
        for step in range(2):
            completions = await scheduler.run_step(
                [
                    Request(
                        agent_id=f"agent_{number}",
                        step=step,
                        messages=(Message("user", "Shall we meet on Friday?"),),
                        schema=VOTE,
                    )
                    for number in range(5)
                ]
            )
            votes = [json.loads(one.text)["yes"] for one in completions if one.ok]
            print(f"step {step}: {sum(votes)} of {len(votes)} say yes")


anyio.run(main)
