"""Whether an OpenAI-compatible server can be reached, asked at the least cost.

Such servers have no common `/health`; `GET /models` is the one route that nearly all have
and that runs no model. What it lists is not read: aliases are often missing there.
"""

from __future__ import annotations

import anyio
import openai

from scheduler.backends.openai_chat import ChatClient
from scheduler.errors import (
    AttemptError,
    AttemptTimeout,
    AuthenticationFailed,
    BackendUnavailable,
    ConfigError,
    ConnectionFailed,
    MalformedAnswer,
    RequestRejected,
    ServerBusy,
)

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_PROBE_TIMEOUT_S = 10.0
_MOST_MALFORMED = 3


async def reach(
    client: ChatClient, *, timeout_s: float, unreachable_s: float, key_advice: str
) -> None:
    """Ask until the server answers.

    Args:
        client: Speaks to the server.
        timeout_s: How long it may fail, in seconds.
        unreachable_s: How long of that it may be unreachable.
        key_advice: What to say when it refuses the API key.

    Raises:
        BackendUnavailable: It did not answer in time.
        ConfigError: It refuses the API key, or speaks no JSON.
    """
    started = last_reached = anyio.current_time()
    pause_s = _FIRST_PAUSE_S
    malformed = 0
    trouble: AttemptError | None = None
    while (now := anyio.current_time()) - started < timeout_s:
        if now - last_reached > unreachable_s:
            break
        trouble = await _trouble(client, min(_PROBE_TIMEOUT_S, timeout_s - (now - started)))
        if trouble is None:
            return
        if isinstance(trouble, AuthenticationFailed):
            raise ConfigError(f"{client.address} {key_advice}") from trouble
        malformed += isinstance(trouble, MalformedAnswer)
        if malformed >= _MOST_MALFORMED:
            raise ConfigError(
                f"{client.address} is no OpenAI-compatible server: {trouble}"
            ) from trouble
        if not isinstance(trouble, ConnectionFailed):
            last_reached = anyio.current_time()
        await anyio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    waited = f"{anyio.current_time() - started:.1f} s"
    if isinstance(trouble, ConnectionFailed):
        raise BackendUnavailable(
            f"no server could be reached at {client.address} within {waited}: start it (for "
            "example `vllm serve MODEL` or `ollama serve`), or correct base_url"
        ) from trouble
    raise BackendUnavailable(
        f"the server at {client.address} was not ready after {waited}: {trouble}. "
        "Wait until it has loaded its model, or raise backend.ready_timeout_s"
    ) from trouble


async def _trouble(client: ChatClient, within_s: float) -> AttemptError | None:
    """Ask once; None where somebody is there who can be asked for an answer."""
    try:
        with anyio.fail_after(within_s):
            await client.fetch(f"{client.base_url}/models")
    except TimeoutError:
        return AttemptTimeout(f"no answer from {client.address} within {within_s:.1f} s")
    except AuthenticationFailed as exc:
        # 403: a key that may ask for answers, but not for the list of models.
        return exc if _status(exc) == 401 else None
    except (RequestRejected, ServerBusy):
        return None
    except AttemptError as exc:
        return exc
    return None


def _status(error: AttemptError) -> int:
    cause = error.__cause__
    return cause.status_code if isinstance(cause, openai.APIStatusError) else 0
