"""Messages as the tokens that a model reads, through the chat template in its file.

The rendering is that of llama-cpp-python's `create_chat_completion`, except that a template that
prints today's date prints a fixed one, and that a BOS token is added where the model wants one
and the template wrote none, as llama-server does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from scheduler.backends.llama_prefix import shared_length
from scheduler.errors import ConfigError, RequestRejected
from scheduler.types import Message

THOUGHT_BEGIN, THOUGHT_END = "<think>", "</think>"

_TEMPLATE_DATE = datetime(2024, 7, 26)  # noqa: DTZ001 - a date to print, not a moment


@dataclass(frozen=True, slots=True)
class Prompt:
    """Messages as the model reads them.

    Attributes:
        tokens: The whole prompt.
        system_tokens: How many at its start belong to the system message.
        thinks: Whether it ends inside the model's thoughts.
    """

    tokens: tuple[int, ...]
    system_tokens: int = 0
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
        return Prompt(
            tokens,
            self._system_tokens(messages[0], text, tokens),
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

    def _system_tokens(self, first: Message, text: str, tokens: Sequence[int]) -> int:
        """Return how many leading tokens follow from the system message alone."""
        content = first.content.strip()
        at = text.find(content) if first.role == "system" and content else -1
        return 0 if at < 0 else shared_length(self._tokenize(text[: at + len(content)]), tokens)


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
