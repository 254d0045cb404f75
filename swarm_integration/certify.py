"""`swarm-inference certify`: what a backend's arithmetic promises, measured and written down.

The backend is configured and made as a run makes it; the measuring itself is the
scheduler's (`scheduler/certification.py`) and knows nothing of SWARM. With `--run` a whole
run is repeated instead, see `matrix.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import anyio

from scheduler.backends.base import Backend
from scheduler.certification import Certification, certify
from scheduler.config import load_config
from scheduler.errors import BackendUnavailable, ConfigError, ServerError
from scheduler.server import ManagedServer
from swarm_integration.certificates import (
    NOT_OURS,
    Certificate,
    certificate_of,
    conditions_of,
    keep,
    write,
)
from swarm_integration.certify_options import CertifyOptions
from swarm_integration.config import InferenceConfig
from swarm_integration.errors import FitnessError
from swarm_integration.scenario import LlmBlock, Rehearsal
from swarm_integration.services import muster
from swarm_integration.startup import server_spec

DEFAULT_CONTEXT = 2048
"""Tokens per slot where nothing says how many; room for the longest prompt that is asked."""


def effective_config(options: CertifyOptions, *, slots: int | None) -> InferenceConfig:
    """Return the configuration that file and command line make together.

    Raises:
        ConfigError: They contradict each other.
    """
    if options.base_url is not None and options.model is not None:
        raise ConfigError("--base-url and --model name two backends; give one of them")
    model = None if options.model is None else str(options.model)
    given = load_config(InferenceConfig, options.config_file, {"backend.model_path": model}).backend
    kind, managed = given.kind, given.managed
    if options.model is not None and not managed:
        kind = "llama_inproc"
    elif options.base_url is not None:
        kind, managed = ("openai" if kind == "openai" else "llama_server"), False
    overrides = {
        "scheduler.slots": slots,
        "backend.kind": kind,
        "backend.managed": managed,
        "backend.base_url": options.base_url,
        "backend.model_path": model,
        "backend.context_per_slot": options.context,
        "backend.threads": options.threads,
    }
    return load_config(InferenceConfig, options.config_file, overrides)


def certify_backend(options: CertifyOptions) -> int:
    """Measure the backend, keep its certificate, print both; return the exit code."""
    if len(options.slots) > 1:
        raise ConfigError("several numbers of slots are for --run; a certificate is for one")
    config = effective_config(options, slots=options.slots[0] if options.slots else None)
    if config.backend.kind == "auto":
        # No scenario says where its agents' models are: the usual place, then.
        backend = config.backend.model_copy(update={"kind": "llama_server"})
        config = config.model_copy(update={"backend": backend})
    certificate = anyio.run(_measure, config, options)
    path, is_kept = keep(certificate)
    if options.output is not None:
        write(certificate, options.output)
    if options.as_json:
        data = certificate.model_dump(mode="json")
        print(json.dumps({**data, "cache_file": str(path), "kept": is_kept}))
    else:
        print("\n".join(_text(certificate)))
        earlier = "" if is_kept else "not kept: an earlier, longer measurement stays in "
        print(f"Kept in:  {earlier}{path}")
    return 0


async def _measure(config: InferenceConfig, options: CertifyOptions) -> Certificate:
    progress = _Progress(in_place=sys.stderr.isatty())
    try:
        async with _opened(config) as (backend, server):
            found: Certification = await certify(
                backend,
                slots=config.scheduler.slots,
                trials=options.trials,
                quick=options.quick,
                progress=progress.show,
            )
            return certificate_of(found, conditions_of(found.info, server))
    except (BackendUnavailable, ServerError) as exc:
        raise FitnessError(str(exc)) from exc
    finally:
        progress.end()


@asynccontextmanager
async def _opened(
    config: InferenceConfig,
) -> AsyncIterator[tuple[Backend, ManagedServer | None]]:
    """Make the backend as a run does, with a server of its own where so configured."""
    given = config.backend.context_per_slot
    context = DEFAULT_CONTEXT if given == "auto" else given
    with TemporaryDirectory(prefix="certify-") as folder:
        server = None
        if config.backend.managed:
            server = ManagedServer(
                server_spec(config, context),
                log_path=Path(folder) / "server.log",
                start_timeout_s=config.backend.ready_timeout_s,
            )
            await server.start()
        try:
            fleet = muster(
                _one_agent(config),
                config.backend,
                managed_url=None if server is None else server.base_url,
                context=context,
                slots=config.scheduler.slots,
            )
            [backend] = fleet.backends.values()
            try:
                yield backend, server
            finally:
                await backend.aclose()
        finally:
            if server is not None:
                await server.stop()


def _one_agent(config: InferenceConfig) -> Rehearsal:
    """Return what stands for a scenario, whose agents take what the configuration names."""
    if config.backend.kind == "openai" and config.backend.openai.model is None:
        raise ConfigError(
            "backend.openai.model is not set, and there is no agent here to name a model; set it"
        )
    settings = SimpleNamespace(
        llama_seed=-1, timeout=600.0, model="", temperature=0.0, max_tokens=64, max_retries=3
    )
    block = LlmBlock(SimpleNamespace(llm_config=settings), seed=0, limit_s=None)
    return Rehearsal({"certify": block}, prompts=(), seed=0)


class _Progress:
    """Counts answers on standard error: in place on a terminal, else in ten lines.

    Args:
        in_place: Whether it is a terminal.
    """

    def __init__(self, *, in_place: bool) -> None:
        self._in_place = in_place
        self._open = False
        self._told = 0

    def show(self, done: int, total: int) -> None:
        """Show how far it is."""
        if self._in_place:
            self._open = True
            print(f"\r{done} of {total} answers", end="", file=sys.stderr, flush=True)
        elif 10 * done // total > self._told:
            self._told = 10 * done // total
            print(f"{done} of {total} answers", file=sys.stderr, flush=True)

    def end(self) -> None:
        """End the line that was begun."""
        if self._open:
            print(file=sys.stderr)


def _text(certificate: Certificate) -> Iterator[str]:
    backend, server = certificate.backend, certificate.conditions["server"]
    build = f", {backend['build']}" if backend["build"] else ""
    yield f"Backend:  {backend['kind']} {backend['model']}{build}"
    yield f"Started:  {_started(server)}"
    yield (
        f"Asked:    {certificate.answers} answers in {certificate.trials} trials, "
        f"{certificate.most_in_flight} of {certificate.slots} slots busy at most, prompts of up "
        f"to {certificate.longest_prompt_tokens} tokens"
    )
    yield f"Compared: {', '.join(['text', *certificate.compared])}"
    yield ""
    yield from _table(certificate.evidence)
    yield ""
    yield f"Verdict:  {certificate.level.value}: {certificate.reason}"
    if server == NOT_OURS:
        yield (
            "A run quotes it only with determinism.trust_certificate: true, since it can't tell "
            "whether the server is still started in this way"
        )


def _started(server: Any) -> str:
    if isinstance(server, dict):
        return f"by this command, server_profile {server['profile']}: {' '.join(server['flags'])}"
    return "in this process" if server is None else str(server)


def _table(evidence: tuple[dict[str, Any], ...]) -> Iterator[str]:
    yield (
        f"{'question':16} {'temperature':>11} {'prompts':>8} {'answers':>8} {'cached':>7} "
        f"{'fresh':>6} {'most unique per prompt':>24} {'repeated':>9}"
    )
    yield f"{'':61} {'text / ids / log-probs':>24}"
    repeated = {True: "the same", False: "NO", None: "not tried"}
    for one in evidence:
        counts = [one["most_texts"], one["most_token_ids"], one["most_logprobs"]]
        unique = " / ".join(str(count) if count else "-" for count in counts)
        yield (
            f"{one['question']:16} {one['temperature']:11g} {one['prompts']:8} "
            f"{one['answers']:8} {one['cached']:7} {one['fresh']:6} {unique:>24} "
            f"{repeated[one['repeated']]:>9}"
        )
