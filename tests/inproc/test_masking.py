"""Masking by a grammar: the quick way allows and draws what asking about every token does."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scheduler.types import OutputSchema, Sampling
from tests.inproc.fixed_prompts import ACT

if importlib.util.find_spec("llama_cpp") is None and os.environ.get("REQUIRE_LLAMA_CPP") != "1":
    pytest.skip("llama-cpp-python is not installed", allow_module_level=True)

import llama_cpp

from scheduler.backends.llama_library import Context, LoadedModel
from scheduler.backends.llama_masking import Beginnings
from scheduler.backends.llama_sampling import TokenPicker
from scheduler.backends.native_model import NativeSpec

SCHEMAS = (
    ACT,
    OutputSchema("free", {"type": "object"}),
    OutputSchema("umlauts", {"enum": ["äöü", "日本", "x"]}),
    OutputSchema("numbers", {"type": "array", "items": {"type": "number"}, "maxItems": 5}),
)


@pytest.fixture(scope="module")
def model(models: dict[str, Path]) -> Iterator[LoadedModel]:
    model = LoadedModel(llama_cpp, NativeSpec(models["Q8_0"], 512, 1, 0))
    yield model
    model.close()


@pytest.fixture(scope="module")
def context(model: LoadedModel) -> Iterator[Context]:
    context = Context(model, sequences=1, n_ctx=512, most_rows=64)
    yield context
    context.close()


def allowed(model: LoadedModel, grammar: Any) -> set[int]:
    """Ask the grammar about every token."""
    kind = [("id", np.int32), ("logit", np.float32), ("p", np.float32)]
    entries = np.zeros(model.vocabulary_size, dtype=kind)
    entries["id"] = np.arange(model.vocabulary_size)
    array = llama_cpp.llama_token_data_array(
        data=entries.ctypes.data_as(llama_cpp.llama_token_data_p),
        size=len(entries),
        selected=-1,
        sorted=False,
    )
    llama_cpp.llama_sampler_apply(grammar, ctypes.byref(array))
    return set(np.flatnonzero(np.isfinite(entries["logit"])).tolist())


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.name)
def test_the_quick_way_draws_what_the_slow_one_does(
    model: LoadedModel, context: Context, schema: OutputSchema
) -> None:
    vocab = llama_cpp.llama_model_get_vocab(model.pointer)
    beginnings = Beginnings(llama_cpp, vocab, model.vocabulary_size)
    asked = steps = 0
    for seed in range(4):
        context.keep(0, 0)
        context.read([7 + seed] * 16, 0, 0)
        pickers = [
            TokenPicker(llama_cpp, model.scores, Sampling(1.0, 40), seed, grammar, [1])
            for grammar in (model.grammars.copy_of(schema), model.grammars.copy_of(schema))
        ]
        for position in range(16, 56):
            grammar = pickers[0]._grammar
            exact, found = allowed(model, grammar), beginnings.possible(grammar).tolist()
            assert exact <= set(found)
            assert found == sorted(set(found))
            asked, steps = asked + len(found), steps + 1
            slow, quick = pickers
            expected = model.scores.draw(context.pointer, -1, [slow._grammar, slow._chain])
            assert (
                model.scores.draw_held(context.pointer, -1, quick._grammar, quick._chain)
                == expected
            )
            for picker in pickers:
                llama_cpp.llama_sampler_accept(picker._grammar, expected)
                llama_cpp.llama_sampler_accept(picker._chain, expected)
            if model.ends(expected):
                break
            context.read([expected], position, 0)
        for picker in pickers:
            picker.close()
    if schema is ACT:
        assert asked < steps * model.vocabulary_size / 2


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_refused_draw_leaves_no_trace_but_its_random_number(
    model: LoadedModel, context: Context, temperature: float, penalty: float
) -> None:
    sampling = Sampling(temperature, 40, repeat_penalty=penalty)
    refused = 0
    for seed in range(4):
        context.keep(0, 0)
        context.read([7 + seed] * 16, 0, 0)
        picker, plain = (
            TokenPicker(llama_cpp, model.scores, sampling, seed, model.grammars.copy_of(ACT), [1])
            for _ in range(2)
        )
        for position in range(16, 56):
            first = model.scores.draw(context.pointer, -1, [plain._chain])
            if first not in allowed(model, plain._grammar):
                refused += 1
                both = [plain._grammar, plain._chain]
                first = model.scores.draw(context.pointer, -1, both)
            llama_cpp.llama_sampler_accept(plain._grammar, first)
            llama_cpp.llama_sampler_accept(plain._chain, first)
            assert picker.pick(context.pointer, -1, held=True) == first
            if model.ends(first):
                break
            context.read([first], position, 0)
        picker.close()
        plain.close()
    assert refused
