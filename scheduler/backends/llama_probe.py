"""What a llama-server is, and waiting until it is ready to say so.

Apart from the backend, because it is another conversation: it runs before the first
prompt and after a failed connection, has deadlines of its own and sends no prompt.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from typing import Any

import anyio

from scheduler.backends.base import BackendInfo
from scheduler.backends.chat_answer import JsonObject, count_of, encodable, shown
from scheduler.backends.openai_chat import ChatClient
from scheduler.backends.patience import ask_until_ready
from scheduler.errors import (
    AttemptTimeout,
    AuthenticationFailed,
    ConfigError,
    MalformedAnswer,
    RequestRejected,
)

START_HINT = (
    "start one with `swarm-inference serve --model FILE`, or with "
    "`llama-server -m FILE --parallel 4 --ctx-size 16384 --port 8080`"
)

FIXED_SAMPLING: Mapping[str, Any] = {
    "samplers": [
        "penalties",
        "dry",
        "top_n_sigma",
        "top_k",
        "typ_p",
        "top_p",
        "min_p",
        "xtc",
        "temperature",
    ],
    "min_keep": 0,
    "repeat_last_n": 64,
    "typical_p": 1.0,
    "top_n_sigma": -1.0,
    "xtc_probability": 0.0,
    "dynatemp_range": 0.0,
    "dry_multiplier": 0.0,
    "mirostat": 0,
    "ignore_eos": False,
    "backend_sampling": False,
}
"""Sampling that `Sampling` has no name for, sent as llama.cpp's own defaults.

A server's flags and a model file's metadata (`general.sampling.*`) set other
defaults, and nothing that decides an answer is left to them. From
`tools/server/server-task.cpp`, `params_from_json_cmpl`.
"""

_PAUSE_S = 0.1
_PROBE_TIMEOUT_S = 5.0


async def become_ready(
    client: ChatClient,
    *,
    timeout_s: float,
    unreachable_s: float,
    revive: Callable[[bool], Awaitable[bool]] | None = None,
) -> BackendInfo:
    """Ask until the server is healthy, then return what it is.

    Args:
        client: Speaks to the server.
        timeout_s: How long it may load its model or fail, in seconds.
        unreachable_s: How long of that it may be unreachable.
        revive: Starts a server of our own again if it has died, or is told that it hangs, and
            says whether it did; the times above then count anew. What it raises is raised.

    Raises:
        BackendUnavailable: It did not get ready in time.
        ConfigError: It is no llama-server, or refuses the API key.
    """
    try:
        return await ask_until_ready(
            lambda within_s: _identify_healthy(client, within_s),
            address=client.address,
            unreachable=("llama-server", START_HINT),
            timeout_s=timeout_s,
            unreachable_s=unreachable_s,
            probe_timeout_s=_PROBE_TIMEOUT_S,
            longest_pause_s=_PAUSE_S,
            revive=revive,
        )
    except RequestRejected as exc:
        raise ConfigError(_refusal(client, exc)) from exc
    except MalformedAnswer as exc:
        raise ConfigError(_not_llama_server(client, str(exc))) from exc


def difference(before: BackendInfo, after: BackendInfo) -> str:
    """Name what changed from `before` to `after`, each with both values."""
    names = ("slots", "context_per_slot", "model", "build")
    pairs = [(name, getattr(before, name), getattr(after, name)) for name in names]
    pairs += [(name, before.facts[name], after.facts.get(name)) for name in before.facts]
    return ", ".join(f"{name}: {old!r}, now {new!r}" for name, old, new in pairs if old != new)


async def identify(client: ChatClient, within_s: float = _PROBE_TIMEOUT_S) -> BackendInfo:
    """Read once what the server is.

    Raises:
        AttemptError: It does not say so within the time.
        ConfigError: It is no llama-server.
    """
    try:
        with anyio.fail_after(within_s):
            props = await client.fetch(f"{client.root}/props")
            model = await _model_name(client, props)
    except TimeoutError as exc:
        raise AttemptTimeout(f"no answer to a health check within {within_s:.1f} s") from exc
    slots = count_of(props.get("total_slots"))
    if slots < 1:
        raise ConfigError(_not_llama_server(client, "its /props name no total_slots"))
    settings = props.get("default_generation_settings")
    context = count_of(settings.get("n_ctx")) if isinstance(settings, dict) else 0
    return BackendInfo(
        kind="llama_server",
        slots=slots,
        context_per_slot=context or None,
        model=model,
        build=shown(_text(props, "build_info")),
        facts=_facts(props),
    )


async def _identify_healthy(client: ChatClient, within_s: float) -> BackendInfo:
    """Read once what the server is; an `AttemptError` if it is not healthy."""
    began = anyio.current_time()
    try:
        with anyio.fail_after(within_s):
            await client.fetch(f"{client.root}/health")
    except TimeoutError as exc:
        raise AttemptTimeout(f"no answer to a health check within {within_s:.1f} s") from exc
    return await identify(client, max(0.1, within_s - (anyio.current_time() - began)))


async def _model_name(client: ChatClient, props: JsonObject) -> str:
    if name := _text(props, "model_alias") or _text(props, "model_path"):
        return _base_name(name)
    try:
        models = (await client.fetch(f"{client.root}/v1/models")).get("data")
    except RequestRejected:
        return ""
    first = models[0] if isinstance(models, list) and models else None
    return _base_name(_text(first, "id")) if isinstance(first, dict) else ""


def _facts(props: JsonObject) -> dict[str, Any]:
    template = _text(props, "chat_template")
    return {
        "model_file": _base_name(_text(props, "model_path")),
        "model_ftype": shown(_text(props, "model_ftype")),
        "chat_template_sha256": sha256(template.encode()).hexdigest() if template else "",
        "fixed_sampling": dict(FIXED_SAMPLING),
    }


def _refusal(client: ChatClient, error: RequestRejected) -> str:
    if isinstance(error, AuthenticationFailed):
        return f"{client.address}: {error}"
    return _not_llama_server(client, str(error))


def _not_llama_server(client: ChatClient, reason: str) -> str:
    return (
        f"{client.address} does not answer as a llama-server does: {reason}. Give the address of "
        f"a llama-server as backend.base_url; {START_HINT}"
    )


def _text(data: JsonObject, key: str) -> str:
    value = data.get(key)
    return encodable(value) if isinstance(value, str) else ""


def _base_name(path: str) -> str:
    return shown(path).replace("\\", "/").rpartition("/")[2]
