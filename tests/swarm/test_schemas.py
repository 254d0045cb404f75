"""The answers that models may give, and what SWARM makes of them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from swarm.agents import llm_prompts
from swarm.agents.base import ActionType
from swarm.agents.llm_agent import LLMAgent
from swarm.agents.llm_config import LLMConfig, LLMProvider, PersonaType

from scheduler.backends.fake import example_of
from scheduler.structured import SchemaChecker
from scheduler.types import OutputSchema, Request
from swarm_integration.schemas import Instructions, accept_schema, act_schema, kernel_schema
from tests.swarm.simulations import NOOP, ReplyingBackend, llm, simulate, write_scenario

SCHEMAS = [act_schema(), kernel_schema(), accept_schema()]
BLOCKS = {
    "act": llm_prompts.ACTION_SCHEMA,
    "kernel": llm_prompts.KERNEL_ACTION_SCHEMA,
    "accept": llm_prompts.ACCEPT_INTERACTION_SCHEMA,
}
ACTIONS = [act_schema(), kernel_schema()]
each = pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.name)
each_action = pytest.mark.parametrize("schema", ACTIONS, ids=lambda schema: schema.name)


def branches(schema: OutputSchema) -> dict[str, Any]:
    return {
        branch["properties"]["action_type"]["const"]: branch for branch in schema.schema["anyOf"]
    }


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


def agent() -> LLMAgent:
    return LLMAgent("llm_1", LLMConfig(provider=LLMProvider.LLAMA_CPP))


@each_action
def test_every_action_that_the_instructions_name_has_a_branch(schema: OutputSchema) -> None:
    named = set(re.findall(r'"action_type": "([A-Z_]+)"', BLOCKS[schema.name]))
    assert named == set(branches(schema))
    assert named <= set(ActionType.__members__)


@each_action
def test_branch_takes_the_parameters_that_the_instructions_show(schema: OutputSchema) -> None:
    examples = re.findall(r"```json\n(.*?)```", BLOCKS[schema.name], re.DOTALL)
    shown = [json.loads(text) for text in examples if "..." not in text.split("params")[-1]]
    assert {example["action_type"] for example in shown} >= set(branches(schema)) - {"NOOP"}
    for example in shown:
        assert SchemaChecker().violation(schema, json.dumps(example)) == ""


@each_action
def test_answer_of_each_branch_becomes_that_action(schema: OutputSchema) -> None:
    for name, branch in branches(schema).items():
        answer = example_of(branch, random.Random(1))
        parsed = agent()._parse_action_response(json.dumps(answer))
        action = agent()._action_dict_to_action(parsed)
        assert action.action_type is ActionType[name]
        params = answer.get("params", {})
        carried = {action.target_id, action.content, action.counterparty_id}
        carried |= {action.interaction_type.value if action.interaction_type else None}
        carried |= {action.vote_direction}
        assert set(params.values()) <= carried, name


def test_interaction_types_and_directions_are_upstreams() -> None:
    proposal = branches(act_schema())["PROPOSE_INTERACTION"]["properties"]["params"]["properties"]
    named = set(
        re.findall(r'"(\w+)"', llm_prompts.ACTION_SCHEMA.split("(interaction_type:")[1][:80])
    )
    assert set(proposal["interaction_type"]["enum"]) == named
    vote = branches(act_schema())["VOTE"]["properties"]["params"]["properties"]
    assert sorted(vote["direction"]["enum"]) == [-1, 1]


@each
def test_schema_is_valid_and_its_strings_are_bounded_well_under_2000(schema: OutputSchema) -> None:
    Draft202012Validator.check_schema(schema.schema)
    strings = [node for node in nodes(schema.schema) if node.get("type") == "string"]
    assert strings
    assert all(node["maxLength"] <= 1500 for node in strings)


@each
def test_objects_are_closed_and_complete(schema: OutputSchema) -> None:
    objects = [node for node in nodes(schema.schema) if node.get("type") == "object"]
    assert objects
    for node in objects:
        assert node["additionalProperties"] is False
        assert sorted(node["required"]) == sorted(node["properties"])


@pytest.mark.parametrize(
    "answer",
    [
        '{"action_type": "EXPLODE", "reasoning": ""}',
        '{"action_type": "POST", "reasoning": ""}',
        '{"action_type": "POST", "reasoning": "", "params": {"content": ""}}',
        '{"action_type": "VOTE", "reasoning": "", "params": {"post_id": "a", "direction": 2}}',
        '{"action_type": "NOOP", "reasoning": "", "params": {"post_id": "a"}}',
        json.dumps({"action_type": "NOOP", "reasoning": "x" * 201}),
        "NOOP",
        '{"accept": true, "reasoning": ""}',
    ],
)
def test_wrong_actions_break_the_schema(answer: str) -> None:
    assert SchemaChecker().violation(act_schema(), answer)


def test_instructions_tell_which_schema_a_prompt_gets() -> None:
    instructions = Instructions()
    for persona in PersonaType:
        for name, block in BLOCKS.items():
            found = instructions.schema_of(llm_prompts.PERSONA_PROMPTS[persona] + "\n\n" + block)
            assert found is not None
            assert found.name == name
    assert instructions.schema_of("You are a council of AI agents.") is None
    assert instructions.schema_of(llm_prompts.ACTION_SCHEMA + "\nand more") is None


@pytest.mark.parametrize("layout", ["upstream", "shared_first"])
def test_schema_is_sent_beside_the_prompt_and_never_in_it(layout: Any, tmp_path: Path) -> None:
    backend = ReplyingBackend(lambda request, put: NOOP)
    scenario = write_scenario(tmp_path / "s.yaml", [llm(2)])
    simulate(scenario, backend, instructions=Instructions(layout))
    for request in backend.requests:
        assert request.schema is not None
        assert request.schema.name == "act"
        text = " ".join(message.content for message in request.messages)
        for word in ("maxLength", "additionalProperties", "anyOf", "const"):
            assert word not in text


def test_upstream_layout_changes_nothing() -> None:
    pair = Instructions("upstream").messages("persona\n\n" + llm_prompts.ACTION_SCHEMA, "user")
    assert [(message.role, message.content) for message in pair] == [
        ("system", "persona\n\n" + llm_prompts.ACTION_SCHEMA),
        ("user", "user"),
    ]


def words(text: str) -> list[str]:
    return sorted(text.split())


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_shared_first_keeps_all_text_and_gives_personas_a_long_common_prefix(block: str) -> None:
    instructions = Instructions("shared_first")
    systems = [llm_prompts.PERSONA_PROMPTS[persona] + "\n\n" + block for persona in PersonaType]
    moved = [instructions.messages(system, "user")[0].content for system in systems]
    assert [words(text) for text in moved] == [words(system) for system in systems]
    assert len(set(moved)) == len(systems)
    prefix = block.strip()
    assert all(text.startswith(prefix) for text in moved)


def test_shared_first_leaves_other_prompts_alone() -> None:
    [system, _] = Instructions("shared_first").messages("You are a council.", "user")
    assert system.content == "You are a council."


def test_structured_output_off_checks_nothing(tmp_path: Path) -> None:
    def reply(request: Request, put: int) -> str:
        return 'Well: {"action_type": "POST", "params": {"content": "free", "mood": "good"}}'

    scenario = write_scenario(tmp_path / "s.yaml", [llm()])
    free = ReplyingBackend(reply)
    off = Instructions(structured=False)
    run = simulate(scenario, free, instructions=off)
    assert len(free.requests) == 1
    assert [post.content for post in run.posts] == ["free"]
    held = ReplyingBackend(reply)
    assert simulate(scenario, held).posts == []
    assert len(held.requests) == 3


def test_structured_output_off_gives_no_request_a_schema() -> None:
    off = Instructions(structured=False)
    assert [off.schema_of(block) for block in BLOCKS.values()] == [None] * 3
