"""Whether an OpenAI-compatible server can be reached, asked at the least cost.

Such servers have no common `/health`; `GET /models` is the one route that nearly all have
and that runs no model. What it lists is not read: aliases are often missing there.
"""

from __future__ import annotations

import anyio
import openai

from scheduler.backends.openai_chat import ChatClient
from scheduler.backends.patience import ask_until_ready
from scheduler.errors import (
    AttemptError,
    AttemptTimeout,
    AuthenticationFailed,
    ConfigError,
    MalformedAnswer,
    RequestRejected,
    ServerBusy,
)

_LONGEST_PAUSE_S = 2.0
_PROBE_TIMEOUT_S = 10.0
_START_HINT = "start it (for example `vllm serve MODEL` or `ollama serve`), or correct base_url"


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
    try:
        await ask_until_ready(
            lambda within_s: _ask(client, within_s),
            address=client.address,
            unreachable=("server", _START_HINT),
            timeout_s=timeout_s,
            unreachable_s=unreachable_s,
            probe_timeout_s=_PROBE_TIMEOUT_S,
            longest_pause_s=_LONGEST_PAUSE_S,
        )
    except AuthenticationFailed as exc:
        raise ConfigError(f"{client.address} {key_advice}") from exc
    except MalformedAnswer as exc:
        raise ConfigError(f"{client.address} is no OpenAI-compatible server: {exc}") from exc


async def _ask(client: ChatClient, within_s: float) -> None:
    """Ask once; return where somebody is there who can be asked for an answer."""
    try:
        with anyio.fail_after(within_s):
            await client.fetch(f"{client.base_url}/models")
    except TimeoutError as exc:
        raise AttemptTimeout(f"no answer from {client.address} within {within_s:.1f} s") from exc
    except AuthenticationFailed as exc:
        # 403: a key that may ask for answers, but not for the list of models.
        if _status(exc) == 401:
            raise
    except (RequestRejected, ServerBusy):
        pass


def _status(error: AttemptError) -> int:
    cause = error.__cause__
    return cause.status_code if isinstance(cause, openai.APIStatusError) else 0
