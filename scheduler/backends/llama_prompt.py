"""Messages as the tokens that a model reads, through the chat template in its file.

The rendering is that of llama-cpp-python's `create_chat_completion`, except that a template that
prints today's date prints a fixed one, and that a BOS token is added where the model wants one
and the template wrote none, as llama-server does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from scheduler.backends.llama_prefix import shared_length
from scheduler.errors import ConfigError, RequestRejected
from scheduler.types import Message

THOUGHT_BEGIN, THOUGHT_END = "<think>", "</think>"

BEGINNINGS = 32
"""How many beginnings of prompts are remembered as tokens."""

_TEMPLATE_DATE = datetime(2024, 7, 26)  # noqa: DTZ001 - a date to print, not a moment


@dataclass(frozen=True, slots=True)
class Prompt:
    """Messages as the model reads them.

    Attributes:
        tokens: The whole prompt.
        system_tokens: How many at its start belong to the system message.
        shared: Where other beginnings end that prompts may share, in tokens from its start, as
            far as the messages say so (`Message.shared_chars`).
        thinks: Whether it ends inside the model's thoughts.
    """

    tokens: tuple[int, ...]
    system_tokens: int = 0
    shared: tuple[int, ...] = ()
    thinks: bool = False


class PromptReader:
    """Renders messages and cuts them into tokens.

    Args:
        lib: The module `llama_cpp`.
        model: The loaded model.
        vocab: Its vocabulary.

    Raises:
        ConfigError: The model has no chat template, or one that is no Jinja template.
    """

    def __init__(self, lib: Any, model: Any, vocab: Any) -> None:
        self._lib = lib
        self._vocab = vocab
        self._formatter = _formatter(lib, model, vocab)
        # Many prompts begin alike, and in a step they come one after the other.
        self._beginning = lru_cache(BEGINNINGS)(self._tokenize)

    def read(self, messages: Sequence[Message], thinking: bool | None) -> Prompt:
        """Return `messages` as tokens.

        Raises:
            RequestRejected: The model's chat template refuses them.
        """
        plain = [{"role": message.role, "content": message.content} for message in messages]
        extra = {} if thinking is None else {"enable_thinking": thinking}
        try:
            text = self._formatter(messages=plain, **extra).prompt
        except Exception as exc:  # a template may raise whatever Jinja can
            raise RequestRejected(
                f"the model's chat template refuses the messages: {exc}; "
                "give it the roles and the order that it knows"
            ) from exc
        tokens = self._tokenize(text)
        system_end, *ends = _shared_ends(messages, text)
        return Prompt(
            tokens,
            self._shared_tokens(text[:system_end], tokens),
            tuple(self._shared_tokens(text[:end], tokens) for end in ends),
            thinks=text.rstrip().endswith(THOUGHT_BEGIN),
        )

    def _tokenize(self, text: str) -> tuple[int, ...]:
        # As llama-server does: a BOS token where the model wants one and the template wrote none.
        bos = self._formatter.bos_token
        add_bos = self._lib.llama_vocab_get_add_bos(self._vocab) and not (
            bos and text.startswith(bos)
        )
        data = text.encode()
        size = len(data) + 8
        tokens = (self._lib.llama_token * size)()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), tokens, size, add_bos, True)
        if count < 0:
            raise RequestRejected("the prompt can't be turned into tokens; is it enormous?")
        return tuple(tokens[:count])

    def _shared_tokens(self, beginning: str, tokens: Sequence[int]) -> int:
        """Return how many leading tokens follow from the prompt's beginning alone."""
        return shared_length(self._beginning(beginning), tokens) if beginning else 0


def _shared_ends(messages: Sequence[Message], text: str) -> list[int]:
    """Return where in a rendered prompt the beginnings end that other prompts may share.

    Returns:
        Where the system message ends, 0 without one, and then what the messages say.
    """
    system_end = rendered = 0
    ends = []
    for message in messages:
        content = message.content.strip()  # as most templates do
        start = text.find(content, rendered) if content else -1
        if start < 0:
            break  # the template writes it otherwise
        rendered = start + len(content)
        if message.shared_chars:
            leading = len(message.content) - len(message.content.lstrip())
            ends.append(start + max(0, min(message.shared_chars - leading, len(content))))
        if message is messages[0] and message.role == "system":
            system_end = rendered
    return [system_end, *ends]


def split_thought(text: str) -> tuple[str, str]:
    """Return what a thinking model wrote before its answer, and the answer."""
    if not text.lstrip().startswith(THOUGHT_BEGIN):
        return "", text
    thought, _, answer = text.lstrip().removeprefix(THOUGHT_BEGIN).partition(THOUGHT_END)
    return thought.strip(), answer.lstrip()


def _formatter(lib: Any, model: Any, vocab: Any) -> Any:
    """Return what turns messages into a prompt, as `create_chat_completion` would."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter  # noqa: PLC0415 - an optional extra

    template = lib.llama_model_chat_template(model, None)
    if not template:
        raise ConfigError("has no chat template; use an instruct model")
    bos, eos = lib.llama_vocab_bos(vocab), lib.llama_vocab_eos(vocab)
    formatter = Jinja2ChatFormatter(
        template=template.decode(),
        eos_token=lib.llama_vocab_get_text(vocab, eos).decode() if eos >= 0 else "",
        bos_token=lib.llama_vocab_get_text(vocab, bos).decode() if bos >= 0 else "",
    )
    # Llama 3's template writes the date into each prompt, and a run must not depend on its day.
    formatter.strftime_now = _TEMPLATE_DATE.strftime
    return formatter
