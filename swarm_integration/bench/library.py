"""llama-cpp-python as measurements use it: its own `Llama` in a loop, and two small changes.

The changes are put into the module of this process alone, which does nothing else: answers end at
their length only (`endless`), and time inside the library is counted (`NativeClock`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from scheduler.backends.native_model import import_llama_cpp
from swarm_integration.bench.builds import inproc_build
from swarm_integration.bench.turns import WARM_UP, Served, Turn
from swarm_integration.bench.usage import cpu, peak_bytes
from swarm_integration.bench.workload import TEMPERATURE, Question, Workload


class NativeClock:
    """Counts the seconds that this process spends in functions of llama.cpp's library.

    What ctypes needs for a call counts as well; what Python does between calls does not.

    Args:
        lib: The module `llama_cpp`, whose functions are replaced by ones that count.
    """

    def __init__(self, lib: Any) -> None:
        self.seconds = 0.0
        for name in dir(lib):
            function = getattr(lib, name)
            # ctypes' functions alone have `argtypes`; types and helpers in Python do not.
            if name.startswith("llama_") and hasattr(function, "argtypes"):
                setattr(lib, name, self._counting(function))

    def _counting(self, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - began

        return call


def endless(lib: Any) -> None:
    """Let no token end an answer, in this process, so that `max_tokens` alone does.

    Args:
        lib: The module `llama_cpp`.
    """
    for module in (lib, lib.llama_cpp):
        for name in ("llama_vocab_is_eog", "llama_token_is_eog"):
            if hasattr(module, name):
                setattr(module, name, lambda *_: False)


def serve_in_loop(turn: Turn, workload: Workload) -> Served:
    """Serve the workload by calling `Llama` again and again, as its documentation shows."""
    lib = import_llama_cpp()
    endless(lib)
    llama = _counting_llama(lib, turn, workload.context)
    llama.create_completion(WARM_UP, max_tokens=2)
    before, used = llama.evaluated, cpu(None)
    began = time.perf_counter()
    prompt_tokens = output_tokens = 0
    for question in workload.questions:
        usage = _ask(llama, messages_of(question), question.output_tokens)
        prompt_tokens += usage["prompt_tokens"]
        output_tokens += usage["completion_tokens"]
    seconds = time.perf_counter() - began
    spent, requests = cpu(None), len(workload.questions)
    build = inproc_build(lib)
    return Served(
        seconds=seconds,
        requests=requests,
        prompt_tokens=prompt_tokens,
        # Of each answer all tokens but the last are evaluated too.
        computed_tokens=llama.evaluated - before - (output_tokens - requests),
        output_tokens=output_tokens,
        slots=1,
        cpu_s=used.until(spent),
        peak_bytes=peak_bytes(None),
        build=build.name,
        instructions=build.instructions,
    )


def messages_of(question: Question) -> list[dict[str, str]]:
    """Return a question's messages as chat interfaces take them."""
    return [{"role": one.role, "content": one.content} for one in question.messages]


def _ask(llama: Any, messages: list[dict[str, str]], max_tokens: int) -> dict[str, int]:
    answer = llama.create_chat_completion(messages, max_tokens=max_tokens, temperature=TEMPERATURE)
    usage: dict[str, int] = answer["usage"]
    return usage


def _counting_llama(lib: Any, turn: Turn, context: int) -> Any:
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    class CountingLlama(lib.Llama):  # type: ignore[misc]  # a class without types
        evaluated = 0

        def eval(self, tokens: list[int]) -> None:
            self.evaluated += len(tokens)
            super().eval(tokens)

    llama = CountingLlama(
        str(Path(turn.model)),
        n_ctx=context,
        n_threads=turn.threads,
        n_threads_batch=turn.threads,
        n_gpu_layers=0,
        verbose=False,
    )
    begin, end = (
        llama.detokenize([token], special=True).decode() if token >= 0 else ""
        for token in (llama.token_bos(), llama.token_eos())
    )
    # Its own formatter for the model's template, but without the tokens that end an answer.
    template = llama.metadata["tokenizer.chat_template"]
    llama.chat_handler = Jinja2ChatFormatter(template, end, begin).to_chat_handler()
    return llama
