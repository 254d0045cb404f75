"""The child process of a managed server: `python -m scheduler.xllamacpp_server ARGS`.

Runs the server embedded in the xllamacpp wheel with llama-server's own flags, or, with
`--exec BINARY`, becomes a native llama-server. With `--stop-with-stdin` it dies when its stdin
ends, which the kernel does for a parent that was killed. A process of its own, because the wheel
holds the GIL while it loads a model, installs signal handlers and can take the process down.
Run by path, so it imports nothing of this package.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

STOP_WITH_STDIN = "--stop-with-stdin"
EXEC = "--exec"

_WATCH_INTERVAL_S = 0.5


def die_with_stdin() -> None:
    """Make this process die when its stdin ends; it survives a following `exec`.

    POSIX: a forked watcher, because the wheel holds the GIL while it loads a model, where a thread
    could not run, and because PR_SET_PDEATHSIG is tied to the parent's *thread* and to Linux.
    The watcher asks for its parent's id before it kills, so a reused id is never hit.
    Windows: a thread, so a parent that dies during loading takes the child with it afterwards.
    """
    if sys.platform == "win32":
        threading.Thread(target=_exit_at_eof, daemon=True).start()
        return
    server_pid = os.getpid()
    if os.fork() == 0:
        _watch(server_pid)
    with Path(os.devnull).open("rb") as devnull:
        os.dup2(devnull.fileno(), 0)


def _exit_at_eof() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def _watch(server_pid: int) -> None:
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        while os.getppid() == server_pid:
            readable, _, _ = select.select([0], [], [], _WATCH_INTERVAL_S)
            if not readable or os.read(0, 4096):
                continue
            if os.getppid() == server_pid:
                os.kill(server_pid, signal.SIGKILL)
            break
    finally:
        os._exit(0)


def _set_threads(params: Any, value: str) -> None:
    params.cpuparams.n_threads = int(value)
    params.cpuparams_batch.n_threads = int(value)


def _set_cache_type(side: str) -> Callable[[Any, str], None]:
    def apply(params: Any, value: str) -> None:
        types = import_module("xllamacpp").ggml_type
        setattr(params, f"cache_type_{side}", types[f"GGML_TYPE_{value.upper()}"])

    return apply


def _set_flash_attention(params: Any, value: str) -> None:
    states = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}
    types = import_module("xllamacpp").llama_flash_attn_type
    params.flash_attn_type = types[f"LLAMA_FLASH_ATTN_TYPE_{states[value]}"]


def _ignore_eos(params: Any) -> None:
    params.sampling.ignore_eos = True


def _set_model(params: Any, value: str) -> None:
    params.model.path = value


def _set_batch_threads(params: Any, value: str) -> None:
    params.cpuparams_batch.n_threads = int(value)


def _set_of_threads(name: str) -> Callable[[Any, str], None]:
    def apply(params: Any, value: str) -> None:
        setattr(params.cpuparams, name, int(value))
        setattr(params.cpuparams_batch, name, int(value))

    return apply


def _number(name: str) -> Callable[[Any, str], None]:
    return lambda params, value: setattr(params, name, int(value))


# The wheel has no parser of its own for llama-server's flags; these are the ones that
# `scheduler.server_command.server_flags` emits or a measurement or a test adds. Any other one is
# refused, as llama-server does.
_WITH_VALUE: dict[str, Callable[[Any, str], None]] = {
    "--model": _set_model,
    "--alias": lambda params, value: setattr(params, "model_alias", [value]),
    "--host": lambda params, value: setattr(params, "hostnames", [value]),
    "--port": _number("port"),
    "--parallel": _number("n_parallel"),
    "--ctx-size": _number("n_ctx"),
    "--threads": _set_threads,
    "--threads-batch": _set_batch_threads,
    "--poll": _set_of_threads("poll"),
    "--prio": _set_of_threads("priority"),
    "--batch-size": _number("n_batch"),
    "--ubatch-size": _number("n_ubatch"),
    "--cache-reuse": _number("n_cache_reuse"),
    "--n-gpu-layers": _number("n_gpu_layers"),
    "--cache-ram": _number("cache_ram_mib"),
    "--flash-attn": _set_flash_attention,
    "--cache-type-k": _set_cache_type("k"),
    "--cache-type-v": _set_cache_type("v"),
}
# Beside them what a measurement adds: answers that end at `max_tokens` alone.
_ACTIONS: dict[str, Callable[[Any], None]] = {"--ignore-eos": _ignore_eos}
_SWITCHES: dict[str, tuple[str, bool]] = {
    "--no-kv-unified": ("kv_unified", False),
    "--kv-unified": ("kv_unified", True),
    "--context-shift": ("ctx_shift", True),
    "--cont-batching": ("cont_batching", True),
    "--no-cont-batching": ("cont_batching", False),
    "--no-cache-idle-slots": ("cache_idle_slots", False),
    "--cache-idle-slots": ("cache_idle_slots", True),
    "--slots": ("endpoint_slots", True),
    "--metrics": ("endpoint_metrics", True),
    "--jinja": ("use_jinja", True),
    "--no-repack": ("no_extra_bufts", True),
    "--repack": ("no_extra_bufts", False),
    "--no-op-offload": ("no_op_offload", True),
}


def apply_flags(params: Any, flags: Sequence[str]) -> None:
    """Translate llama-server flags into the fields of an `xllamacpp.CommonParams`.

    Raises:
        ValueError: a flag that is not known here, has no value, or has one that does not fit.
    """
    rest = iter(flags)
    for flag in rest:
        if flag in _SWITCHES:
            setattr(params, *_SWITCHES[flag])
        elif flag in _ACTIONS:
            _ACTIONS[flag](params)
        elif flag in _WITH_VALUE:
            value = next(rest, None)
            if value is None:
                raise ValueError(f"expected a value after {flag}")
            try:
                _WITH_VALUE[flag](params, value)
            except (KeyError, ValueError) as exc:
                raise ValueError(f"{flag} cannot be {value!r}") from exc
        else:
            raise ValueError(f"invalid argument: {flag}")


def serve(flags: Sequence[str]) -> int:
    """Run the embedded server until SIGTERM or SIGINT; returns the process's exit status."""
    xllamacpp = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    try:
        apply_flags(params, flags)
    except ValueError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 2
    stop = threading.Event()
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 1
    # After the constructor: it installs handlers of its own, which would end the server's loop
    # but not this process. While it loads, the default action ends the process at once.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # With a timeout, because a signal may be delivered to one of the server's threads.
    while not stop.wait(_WATCH_INTERVAL_S):
        pass
    del server
    return 0


def main(argv: Sequence[str]) -> int:
    """Run as asked for on the command line; see the module's docstring."""
    args = list(argv)
    if args[:1] == [STOP_WITH_STDIN]:
        del args[0]
        die_with_stdin()
    if args[:1] == [EXEC]:
        try:
            os.execv(args[1], args[1:])  # noqa: S606  # no shell is what is wanted
        except (IndexError, OSError) as exc:
            sys.stderr.write(f"error: cannot run {args[1:2]}: {exc}\n")
            return 127
    return serve(args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
