"""An error as a person reads it: a line what happened, a line why, a line what to type.

Every message of this project says these in that order (see `scheduler.errors`): what happened,
after a colon why, after a full stop or a semicolon what to try. They are told apart here, so
that the errors themselves stay one sentence for logs and manifests.
"""

from __future__ import annotations

import re

from scheduler.backends.chat_answer import shown
from scheduler.errors import SchedulerError

_BREAK = re.compile(r"(?<=[^\s.])(?:[.;,:]) (?:or )?(?=\S)")
_ADVICE = re.compile(
    r"(?:add|ask|change|check|choose|convert|correct|create|download|export|free|get|give|go on|"
    r"install|let|lower|make room|make it|name|pass|pip|put|raise|read|remove|run|see|set|start|"
    r"stop|take|try|type|update|use|wait|write)\b(?! = )",
    re.IGNORECASE,
)
_IN_BRACKETS = re.compile(r"(.+) \(([^()]+)\)")


def complaint(error: BaseException, *, help_command: str = "") -> str:
    """Return the lines that are printed for an error.

    Args:
        error: What was raised.
        help_command: What to type where the error does not say.
    """
    if isinstance(error, OSError):
        what, why, advice, log = _of_system(error), error.strerror or str(error), "", ""
    else:
        first, _, log = (str(error) or type(error).__name__).partition("\n")
        head, advice = _split_advice(first)
        what, why = _split_reason(head, error, first)
    lines = [f"error: {what}"]
    if why:
        lines.append(f"  why:  {why}")
    if advice or help_command:
        lines.append(f"  type: {advice or help_command}")
    # It may quote a server, or a file from anywhere.
    return "\n".join(map(shown, [*lines, *log.splitlines()]))


def _of_system(error: OSError) -> str:
    return f"{error.filename} can't be used" if error.filename else "the system refused"


def _split_advice(message: str) -> tuple[str, str]:
    """Split off what to type: the first clause that begins as advice does, and all after it."""
    for match in _BREAK.finditer(message):
        rest = message[match.end() :]
        if _is_open(message[: match.start()]):
            continue
        if _ADVICE.match(rest):
            return message[: match.start()], rest[:1].lower() + rest[1:].rstrip(".")
    return message.rstrip("."), ""


def _is_open(text: str) -> bool:
    """Whether text ends within brackets, whose content stays where it is."""
    return any(text.count(begin) > text.count(end) for begin, end in ("()", "[]", "{}"))


def _split_reason(head: str, error: BaseException, message: str) -> tuple[str, str]:
    """Split off why: after a colon, in brackets at the end, or what the cause says."""
    for colon in re.finditer(": ", head):
        if not _is_open(head[: colon.start()]):
            return head[: colon.start()], head[colon.end() :]
    if match := _IN_BRACKETS.fullmatch(head):
        return match[1], match[2]
    return head, _cause(error, message)


def _cause(error: BaseException, message: str) -> str:
    """Return what the causes of an error say, unless its message says so already."""
    cause = error.__cause__
    while cause is not None:
        text = str(cause)
        if isinstance(cause, OSError):
            text = cause.strerror or text
        elif not isinstance(cause, SchedulerError):
            text = ""
        if text and "\n" not in text and text not in message:
            return text
        cause = cause.__cause__
    return ""
