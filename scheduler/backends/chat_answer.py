"""What the bytes of a chat completion say: an answer, or the error that they stand for.

Pure, so that a test can try any bytes. Whatever a server sends, the result is a
`RawAnswer` or an `AttemptError`: shapes are checked where they are read, and
numbers that make no sense count as not given. Nothing of a prompt is quoted.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from scheduler.backends.base import RawAnswer
from scheduler.backends.rate_limit import limit_reset_s
from scheduler.errors import (
    AttemptError,
    AuthenticationFailed,
    ContextExceeded,
    MalformedAnswer,
    RequestRejected,
    ServerBusy,
    ServerFault,
    ServerLoading,
)
from scheduler.types import FinishReason, Usage

JsonObject = Mapping[str, Any]

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_THOUGHT = re.compile(r"\s*<think>(.*?)(?:</think>\s*|\Z)", re.DOTALL)
_CONTEXT_CODES = ("exceed_context_size_error", "context_length_exceeded")
_CONTEXT_PHRASES = ("context size has been exceeded", "exceeds the available context size")
_LONGEST_QUOTE = 300
_MOST_TOKENS = 2**31


def encodable(text: str) -> str:
    """Return `text` with each lone surrogate replaced, so that UTF-8 can hold it."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def shown(text: str) -> str:
    """Return `text` with each character replaced that would act on a terminal."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else "\ufffd" for c in text)


def json_object(content: bytes, content_type: str) -> JsonObject:
    """Return the JSON object that a response's body is.

    Raises:
        MalformedAnswer: The body is not one.
    """
    if "json" not in content_type.lower():
        raise MalformedAnswer(
            f"the server answered with {content_type[:80] or 'no content type'!r} instead of JSON; "
            "check that base_url names an OpenAI-compatible server and ends in /v1"
        )
    body = _loads(content)
    if not isinstance(body, dict):
        raise MalformedAnswer(
            f"the answer's {len(content)} bytes are not a JSON object; if this happens again, "
            "look into the server's log"
        )
    return body


def parse_answer(content: bytes, content_type: str) -> RawAnswer:
    """Return the answer in the body of a 200 response to a chat completion.

    Raises:
        MalformedAnswer: The body does not hold one.
    """
    body = json_object(content, content_type)
    if body.get("error") is not None:
        raise MalformedAnswer(
            f"the server answered 200 with an error in it: {_complaint(body) or 'no message'}"
        )
    choices = body.get("choices")
    choice = _mapping(choices[0]) if isinstance(choices, list) and choices else {}
    message = _mapping(choice.get("message"))
    text, reasoning = message.get("content"), _reasoning(message)
    if text is None and reasoning:
        # A model whose tokens ran out while it was thinking has written no answer.
        text = ""
    if not isinstance(text, str):
        raise MalformedAnswer(
            "the answer has no text (choices[0].message.content); if this happens again, "
            "look into the server's log"
        )
    if thought := _THOUGHT.match(text):
        reasoning, text = reasoning + thought[1].strip(), text[thought.end() :]
    timings = _mapping(body.get("timings"))
    token_ids, logprobs = _tokens(choice)
    return RawAnswer(
        text=encodable(text),
        finish_reason=_finish_reason(choice.get("finish_reason")),
        usage=_usage(body, timings),
        prefill_ms=_milliseconds(timings.get("prompt_ms")),
        decode_ms=_milliseconds(timings.get("predicted_ms")),
        reasoning=encodable(reasoning),
        token_ids=token_ids,
        logprobs=logprobs,
        served_by=f"{body.get('model')} {body.get('system_fingerprint')}"[:_LONGEST_QUOTE],
    )


def error_of(
    status: int, headers: Mapping[str, str], content: bytes, *, agent_id: str
) -> AttemptError:
    """Return the error that a response with a status other than 200 stands for.

    Args:
        status: The HTTP status.
        headers: The response's headers, found by lower-case name.
        content: The response's body.
        agent_id: Who asked, for the errors that only its own prompt can mend.
    """
    body = _loads(content)
    answer: JsonObject = body if isinstance(body, dict) else {}
    error = _mapping(answer.get("error"))
    says = _complaint(answer)
    if _is_context_error(error, says):
        return ContextExceeded(_context_message(agent_id, error))
    quoted = f" ({says})" if says else ""
    if status == 429 and error.get("code") == "insufficient_quota":
        return RequestRejected(f"the account has no credit left (429){quoted}; add some, resume")
    if status == 429:
        wait_s = retry_after_s(headers)
        wait_s = limit_reset_s(headers) if wait_s is None else wait_s
        return ServerBusy(f"the server asked for patience (429){quoted}", wait_s)
    if status >= 500 and status != 501:
        is_loading = status == 503 and "unavailable_error" in (error.get("type"), error.get("code"))
        return _server_error(status, quoted, is_loading, retry_after_s(headers))
    return _client_error(status, quoted)


def _server_error(status: int, quoted: str, is_loading: bool, wait_s: float | None) -> AttemptError:
    if is_loading:
        return ServerLoading(f"the server still loads its model (503){quoted}")
    if wait_s is not None:
        return ServerBusy(f"the server is out of service for now ({status}){quoted}", wait_s)
    return ServerFault(
        f"the server failed with status {status}{quoted}; "
        "if this happens again, look into the server's log"
    )


def _client_error(status: int, quoted: str) -> AttemptError:
    if status in (401, 403):
        return AuthenticationFailed(
            f"the server did not accept the API key ({status}); set backend.api_key_env to the "
            "name of the environment variable that holds it"
        )
    if 300 <= status < 400:
        return RequestRejected(
            f"the server redirects ({status}), which is not followed; set base_url to the address "
            "where it really is"
        )
    if status in (404, 501):
        return RequestRejected(
            f"the server does not know the route or the model ({status}){quoted}; check that "
            "base_url ends in /v1"
        )
    if status >= 400:
        return RequestRejected(
            f"the server refused the request with status {status}{quoted}; "
            "check the sampling settings, the schema and the server's version"
        )
    return MalformedAnswer(f"the server answered with status {status} instead of 200")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a Retry-After header asks for; None if absent or invalid.

    A date counts from the response's own Date header, so that the two machines'
    clocks need not agree.
    """
    given = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", given):
        return float(given)
    until = _http_date(given)
    if until is None:
        return None
    now = _http_date(headers.get("date", "")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def count_of(value: object) -> int:
    """Return `value` as a number of tokens, 0 if it can't be one."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_TOKENS:
        return value
    return 0


def _loads(content: bytes) -> object:
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError):
        return None


def _mapping(value: object) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _reasoning(message: JsonObject) -> str:
    for key in ("reasoning_content", "reasoning"):
        if isinstance(value := message.get(key), str):
            return value
    return ""


def _tokens(choice: JsonObject) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the ids and log-probabilities of the answer's tokens, those that all have."""
    content = _mapping(choice.get("logprobs")).get("content")
    tokens = [_mapping(token) for token in content] if isinstance(content, list) else []
    ids = tuple(one for token in tokens if type(one := token.get("id")) is int)
    given = (_finite(token.get("logprob")) for token in tokens)
    logprobs = tuple(one for one in given if one is not None)
    return (
        ids if len(ids) == len(tokens) else (),
        logprobs if len(logprobs) == len(tokens) else (),
    )


def _finish_reason(value: object) -> FinishReason:
    known = {reason.value: reason for reason in FinishReason}
    return known.get(value, FinishReason.OTHER) if isinstance(value, str) else FinishReason.OTHER


def _usage(body: JsonObject, timings: JsonObject) -> Usage:
    usage = _mapping(body.get("usage"))
    details = _mapping(usage.get("prompt_tokens_details"))
    cached = count_of(details.get("cached_tokens")) or count_of(timings.get("cache_n"))
    return Usage(
        prompt_tokens=count_of(usage.get("prompt_tokens"))
        or count_of(timings.get("prompt_n")) + count_of(timings.get("cache_n")),
        completion_tokens=count_of(usage.get("completion_tokens"))
        or count_of(timings.get("predicted_n")),
        cached_tokens=cached,
    )


def _milliseconds(value: object) -> float | None:
    number = _finite(value)
    return number if number is not None and number >= 0 else None


def _finite(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    # An integer of hundreds of digits is valid JSON, and no float.
    return float(value) if -1e12 < value < 1e12 and math.isfinite(value) else None


def _complaint(body: JsonObject) -> str:
    error = body.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return shown(message[:_LONGEST_QUOTE]) if isinstance(message, str) else ""


def _is_context_error(error: JsonObject, says: str) -> bool:
    if error.get("type") in _CONTEXT_CODES or error.get("code") in _CONTEXT_CODES:
        return True
    return any(phrase in says.lower() for phrase in _CONTEXT_PHRASES)


def _context_message(agent_id: str, error: JsonObject) -> str:
    advice = (
        "start the server with a larger --ctx-size (the slots share it), or give the agent a "
        "shorter prompt or a smaller max_tokens"
    )
    prompt_tokens = count_of(error.get("n_prompt_tokens"))
    slot_tokens = count_of(error.get("n_ctx"))
    if prompt_tokens and slot_tokens:
        return (
            f"{agent_id}'s prompt has {prompt_tokens} tokens, a slot of the server holds "
            f"{slot_tokens}; {advice}"
        )
    return f"{agent_id}'s prompt and answer did not fit the server's context; {advice}"


def _http_date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
