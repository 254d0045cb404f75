"""What a managed llama-server is asked for: which program, which flags, which environment.

Pure but for a look at PATH, at the model file and at the program. `scheduler.server` runs what
is decided here, and `scheduler.xllamacpp_server` understands the same flags; no other module
picks one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from ipaddress import ip_address
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Literal

from scheduler.errors import ConfigError, ServerError
from scheduler.gguf_file import GgufHeader, read_gguf_header

Profile = Literal["fast", "invariant"]

# By path, because `-m` would first import all of `scheduler`, half a second at each start; with
# -P, because this directory's `types` and `queue` would hide the standard ones.
CHILD = (sys.executable, "-P", str(Path(__file__).with_name("xllamacpp_server.py")))

_UNPROVEN_WEIGHTS = ("F32", "F16", "BF16")
"""Weights whose answers changed with what shared the batch under the `invariant` flags."""


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """What a server is to run.

    Attributes:
        ctx_per_slot: Tokens of context per slot; the server rounds it up to a multiple of 256.
        host: A loopback address: a managed server has no key and serves one run.
        port: 0 picks a free one.
        threads: None leaves the number to the server.
        profile: `fast`, or `invariant` for bits that do not depend on what shares a batch.
        alias: The model name that the server reports.
    """

    model_path: Path
    slots: int
    ctx_per_slot: int
    host: str = "127.0.0.1"
    port: int = 0
    threads: int | None = None
    n_gpu_layers: int = 0
    profile: Profile = "fast"
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A server program and the words that start it."""

    kind: Literal["llama-server", "llama serve", "xllamacpp"]
    argv: tuple[str, ...]


class ServerMissingError(ServerError, ConfigError):
    """There is no server program, or not the one that was named; nothing has been started."""


def find_server(explicit: str | None = None) -> ServerBinary:
    """Find a server: `explicit`, LLAMA_SERVER, `llama-server`, `llama`, the xllamacpp wheel.

    Args:
        explicit: A path, a command on PATH, or `xllamacpp` for the wheel.

    Raises:
        ServerMissingError: There is none, or not the one that was named.
    """
    named = explicit or os.environ.get("LLAMA_SERVER")
    wheel = ServerBinary("xllamacpp", CHILD) if find_spec("xllamacpp") else None
    if named:
        found = wheel if named == "xllamacpp" else _native(named)
        if found is None:
            what = f"{named!r} can't be run" if explicit else ""
            what = what or f"LLAMA_SERVER names {named!r}, which can't be run"
            raise ServerMissingError(f"{what}. Give the path of a llama-server, or `xllamacpp`.")
        return found
    native = _native("llama-server") or _native("llama", scripts=False)
    if found := native or wheel:
        return found
    raise ServerMissingError(
        "no llama-server was found. Get one with `brew install llama.cpp`, `winget install "
        "llama.cpp`, https://github.com/ggml-org/llama.cpp/releases, or `pip install "
        '"swarm-inference-scheduler[server]"`; or name one with LLAMA_SERVER.'
    )


def _native(name: str, *, scripts: bool = True) -> ServerBinary | None:
    # Not Path.expanduser: Path drops the `./` that tells a file from a command on PATH.
    found = shutil.which(os.path.expanduser(name))  # noqa: PTH111  # see above
    if found is None:
        return None
    path = Path(found).absolute()
    # Other tools install a `llama` too, as a Python script; llama.cpp's is a binary.
    if not scripts and path.read_bytes()[:2] == b"#!":
        return None
    if path.stem == "llama":
        return ServerBinary("llama serve", (str(path), "serve"))
    return ServerBinary("llama-server", (str(path),))


_FEW_CORES = 4


def default_threads() -> int:
    """Return how many threads a model on a CPU gets: one per physical core, beyond 4 one less.

    llama.cpp's threads wait for each other by spinning, so one that shares its core holds all
    others up; the second thread of a core adds little. A simulation computes while no model
    does, so it needs a core of its own only where one more or less hardly counts. Where the
    cores can't be told apart from their threads, half the CPUs count.
    """
    cores = physical_cores()
    return cores if cores <= _FEW_CORES else cores - 1


def physical_cores() -> int:
    """Return how many physical cores this process may use, as far as the system tells."""
    usable = _usable_cpus()
    return max(1, min(_cores_of_linux() or _cores_of_macos() or usable // 2, usable))


def _usable_cpus() -> int:
    """Return the CPUs that this process may run on, which a container may limit."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 2


def _cpuinfo() -> str:
    """Return what Linux says about the processors, nothing on other systems."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cores_of_linux() -> int:
    """Return the cores that the processors have, 0 where they can't be told from threads."""
    cores = set()
    for block in _cpuinfo().split("\n\n"):
        lines = (line.partition(":") for line in block.splitlines())
        fields = {name.strip(): value.strip() for name, _, value in lines}
        if "core id" in fields:
            cores.add((fields.get("physical id", ""), fields["core id"]))
    return len(cores)


def _cores_of_macos() -> int:
    """Return the fast cores of a Mac, 0 on other systems."""
    for name in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
        try:
            said = subprocess.run(  # noqa: S603  # our own words, and no shell
                ["/usr/sbin/sysctl", "-n", name], capture_output=True, timeout=5, check=True
            )
            return int(said.stdout)
        except (OSError, ValueError, subprocess.SubprocessError):
            continue
    return 0


def server_flags(spec: ServerSpec) -> list[str]:
    """The flags for `spec`, in llama-server's own spelling, whichever program runs it."""
    flags = ["--model", str(spec.model_path), "--host", spec.host, "--port", str(spec.port)]
    # The server divides the context among its slots.
    flags += ["--parallel", str(spec.slots), "--ctx-size", str(spec.slots * spec.ctx_per_slot)]
    # Always given: by default the server offloads what fits, which changes the arithmetic.
    flags += ["--n-gpu-layers", str(spec.n_gpu_layers)]
    # A stream per slot: a unified one that overflows fails every active request.
    flags += ["--no-kv-unified"]
    # With a prompt cache in RAM, pinning a request to a busy slot corrupts what runs there.
    flags += ["--cache-ram", "0"]
    # Idle slots keep their prefix where it is, instead of copying whole slots about.
    flags += ["--no-cache-idle-slots"]
    flags += ["--flash-attn", "on"]
    # What is asked of a server under load: how many slots are busy, how many tokens it has done.
    flags += ["--slots", "--metrics"]
    # The model's own chat template; older builds guess one without it.
    flags += ["--jinja"]
    if spec.threads is not None:
        flags += ["--threads", str(spec.threads)]
    if spec.alias is not None:
        flags += ["--alias", spec.alias]
    if spec.profile == "invariant":
        # Measured, with quantized weights, to give the same bits whatever shares a batch. Repacked
        # matrices pick their kernel by groups of 4 rows.
        flags += ["--no-repack", "--cache-type-k", "bf16", "--cache-type-v", "bf16"]
        if spec.n_gpu_layers == 0:
            # A build for GPUs would hand batches of many rows, and no others, to the GPU.
            flags += ["--no-op-offload"]
    elif spec.n_gpu_layers == 0 and _reads_faster_unpacked(spec.model_path):
        flags += ["--no-repack"]
    return flags


def _reads_faster_unpacked(model: Path) -> bool:
    """Return whether prompts are read faster if weights stay as they are in the file.

    Measured for Q4_K on a processor with AVX-512 (docs/performance-server.md): llama.cpp's tiled
    kernels, which take only weights that were not repacked, are faster there.
    """
    try:
        quantization = read_gguf_header(model).quantization
    except ConfigError:
        return False  # what is wrong with the file is told by `check_spec`
    words = _cpuinfo().split()
    # AMX, which takes repacked weights alone, has not been measured.
    return quantization.startswith("Q4_K") and "avx512_vnni" in words and "amx_int8" not in words


def server_environment(spec: ServerSpec, binary: ServerBinary) -> dict[str, str]:
    """The variables that `spec` adds to the server's environment.

    Tiled K-quant kernels, which no flag turns off, take over from 8 rows up with other bits than
    those for fewer. The `invariant` profile has them for all rows, which is faster where several
    answer at once, or for none where the build can't be told so.
    """
    if spec.profile != "invariant":
        return {}
    tiled = [path for path in _libraries(binary) if _names(path, _TILES)]
    # All of them: which one the server loads is not known, and only one way is right for all.
    if tiled and all(_names(path, FORCED_TILES) for path in tiled):
        return {FORCED_TILES.decode(): "1"}
    return {"GGML_CPU_TILED_MM": "0"}


_TILES = b"GGML_CPU_TILED_MM"
FORCED_TILES = b"GGML_CPU_TILED_MM_FORCE"
"""The variable that puts all rows through llama.cpp's tiled kernels; ggml-cpu/tiled/tiled.cpp."""


def _libraries(binary: ServerBinary) -> list[Path]:
    """Return the files in which the server's CPU kernels may be."""
    if binary.kind == "xllamacpp":
        spec = find_spec("xllamacpp")
        places = list(spec.submodule_search_locations or ()) if spec else []
        return [each for place in places for each in sorted(Path(place).glob("xllamacpp*.*"))]
    program = Path(binary.argv[0]).resolve()
    folders = [program.parent, program.parent.parent / "lib"]
    return [program, *(each for folder in folders for each in sorted(folder.glob("*ggml-cpu*")))]


def _names(path: Path, variable: bytes) -> bool:
    """Return whether a file holds a variable's name."""
    try:
        return path.is_file() and _holds(path, variable, path.stat().st_mtime_ns)
    except (OSError, ValueError):  # unreadable, or empty
        return False


@lru_cache(maxsize=32)
def _holds(path: Path, text: bytes, _mtime_ns: int) -> bool:
    """Return whether a file holds `text`; read once as long as it stays the same."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        return content.find(text) >= 0


def check_spec(spec: ServerSpec) -> None:
    """Refuse what no server could run.

    Raises:
        ConfigError: what is wrong, with which key, and what to do.
    """
    for key, number in (("slots", spec.slots), ("ctx_per_slot", spec.ctx_per_slot)):
        if number < 1:
            raise ConfigError(f"{key} is {number}, but a server needs 1 or more.")
    if spec.threads is not None and spec.threads < 1:
        raise ConfigError(f"threads is {spec.threads}; give 1 or more, or leave it out.")
    try:
        loopback = ip_address(spec.host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigError(f"host is {spec.host!r}; a managed server listens on 127.0.0.1 or ::1.")
    try:
        with spec.model_path.open("rb") as file:
            magic = file.read(4)
    except OSError as exc:
        raise ConfigError(
            f"model_path {spec.model_path.absolute()} can't be read ({exc.strerror}); give a GGUF "
            "file. A relative path starts from the working directory."
        ) from exc
    if magic != b"GGUF":
        raise ConfigError(
            f"model_path {spec.model_path} is not a GGUF file (it begins with {magic!r}); "
            "download it again, or convert it with llama.cpp."
        )
    header = read_gguf_header(spec.model_path)  # a file that is cut off is refused
    if spec.profile == "invariant":
        found = unproven(header)
        if found:
            raise ConfigError(
                f"server_profile invariant was measured not to hold for {found}, which "
                f"{spec.model_path} has. Use a quantized model without experts (Q8_0, Q4_K_M), "
                "which is then slower (docs/performance-server.md), or server_profile fast."
            )


def unproven(header: GgufHeader) -> str:
    """Return why the `invariant` profile does not hold for a model, in words; empty if it does."""
    if header.has_experts:
        # The router's weights stay in F32, and an expert's rows depend on who else asks it.
        return "mixtures of experts"
    weights = header.quantization
    return f"{weights} weights" if weights in _UNPROVEN_WEIGHTS else ""
