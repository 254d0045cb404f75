"""The llama-servers of a measurement: ours, and one as somebody starts it who has a manual.

Both end answers at `max_tokens` alone, so that every way writes the same number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio.from_thread
import httpx

from scheduler.server import ManagedServer, ServerSpec, find_server, server_flags
from swarm_integration.bench.builds import Build, server_build
from swarm_integration.bench.turns import TIMEOUT_S, WARM_UP, Turn
from swarm_integration.bench.workload import Workload
from swarm_integration.config import InferenceConfig
from swarm_integration.rundir import SERVER_LOG
from swarm_integration.scenario import Rehearsal, rehearse
from swarm_integration.startup import server_spec

IGNORE_EOS = "--ignore-eos"
_COUNTERS = ("prompt_tokens_total", "tokens_predicted_total")


def plain_flags(spec: ServerSpec) -> list[str]:
    """Return what is in every manual: model, address, slots, context and threads.

    Everything else is the server's default, but for the counters that are read afterwards.
    """
    return [
        *("--model", str(spec.model_path), "--host", spec.host, "--port", str(spec.port)),
        *("--parallel", str(spec.slots), "--ctx-size", str(spec.slots * spec.ctx_per_slot)),
        *("--threads", str(spec.threads), "--n-gpu-layers", str(spec.n_gpu_layers)),
        *("--jinja", "--metrics", IGNORE_EOS),
    ]


def our_flags(spec: ServerSpec) -> list[str]:
    """Return what a run's own server is started with."""
    return [*server_flags(spec), IGNORE_EOS]


def config_of(turn: Turn) -> InferenceConfig:
    """Return the configuration of a run as ours would be on this turn's way."""
    backend: dict[str, Any] = {"model_path": turn.model, "threads": turn.threads}
    match turn.part:
        case "f":
            backend |= {"kind": "llama_inproc", "engine": "locked"}
        case "g" | "rates-inproc":
            backend |= {"kind": "llama_inproc", "engine": "batched"}
        case _:
            backend |= {"kind": "llama_server", "managed": True}
    slots = "auto" if turn.part == "f" else turn.slots
    return InferenceConfig.model_validate({"backend": backend, "scheduler": {"slots": slots}})


def rehearsal_of(turn: Turn, workload: Workload) -> Rehearsal:
    """Return what a run of the workload's scenario knows before it starts."""
    scenario = Path(turn.folder) / "scenario.yaml"
    scenario.write_text(workload.scenario, encoding="utf-8")
    return rehearse(scenario, {})


def server_of(turn: Turn, workload: Workload) -> ManagedServer:
    """Return the server of a turn, not started; all have as many slots as ours."""
    ours = turn.part in {"e", "rates-server"}
    return ManagedServer(
        server_spec(config_of(turn), workload.context, rehearsal_of(turn, workload)),
        log_path=Path(turn.folder) / SERVER_LOG,
        flags=our_flags if ours else plain_flags,
    )


@contextmanager
def running(server: ManagedServer, folder: Path) -> Iterator[ServerView]:
    """Start a server from a thread without an event loop, and stop it afterwards."""
    with anyio.from_thread.start_blocking_portal() as portal:
        portal.call(server.start)
        try:
            with ServerView(server, folder / SERVER_LOG) as view:
                yield view
        finally:
            portal.call(server.stop)


class ServerView:
    """What a measurement asks a server for, beside its own requests.

    Args:
        server: A server that runs.
        log: What it has said.
    """

    def __init__(self, server: ManagedServer, log: Path) -> None:
        self._log = log
        root = server.base_url.removesuffix("/v1")
        self._client = httpx.Client(base_url=root, trust_env=False, timeout=TIMEOUT_S)

    def __enter__(self) -> ServerView:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def warm_up(self) -> None:
        """Let it write a little, so that all weights have been read once.

        Without the chat template, so that no slot holds the beginning of a prompt.
        """
        self.post("/completion", {"prompt": WARM_UP, "n_predict": 2, "cache_prompt": False})

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Post JSON and return the answer.

        Raises:
            httpx.HTTPStatusError: The server refuses it.
        """
        raw = self._client.post(path, json=body)
        raw.raise_for_status()
        answer: dict[str, Any] = raw.json()
        return answer

    def tokens(self, messages: list[dict[str, str]]) -> tuple[int, ...]:
        """Return a chat prompt as the tokens that the server reads."""
        prompt = self.post("/apply-template", {"messages": messages})["prompt"]
        body = {"content": prompt, "add_special": True, "parse_special": True}
        return tuple(self.post("/tokenize", body)["tokens"])

    def counters(self) -> tuple[int, int]:
        """Return how many prompt tokens it has evaluated, and how many it has written."""
        values = dict(
            line.removeprefix("llamacpp:").split()
            for line in self._client.get("/metrics").text.splitlines()
            if line.startswith("llamacpp:")
        )
        prompt, written = (int(float(values[name])) for name in _COUNTERS)
        return prompt, written

    def build(self) -> Build:
        """Return what compiled it."""
        props = self._client.get("/props").json()
        return server_build(find_server(), self._log, str(props.get("build_info", "")))
