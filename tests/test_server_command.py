"""What a managed server is asked for, without starting one."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from scheduler.errors import ConfigError, ServerError
from scheduler.gguf_models import ModelShape, write_model
from scheduler.server import (
    Profile,
    ServerSpec,
    check_spec,
    find_server,
    server_environment,
    server_flags,
)
from scheduler.server_command import CHILD, ServerBinary
from scheduler.xllamacpp_server import apply_flags

SPEC = ServerSpec(Path("m.gguf"), slots=4, ctx_per_slot=512)

needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="makes executables by mode bits")


def value_of(flag: str, flags: list[str]) -> str:
    return flags[flags.index(flag) + 1]


@pytest.fixture
def program_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory on PATH, with LLAMA_SERVER unset."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_SERVER", raising=False)
    return tmp_path


def put_program(directory: Path, name: str, content: bytes = b"\x7fELF") -> str:
    path = directory / name
    path.write_bytes(content)
    path.chmod(0o755)
    return str(path)


def test_flags_give_every_slot_its_own_context() -> None:
    flags = server_flags(SPEC)
    assert value_of("--parallel", flags) == "4"
    assert value_of("--ctx-size", flags) == "2048"
    assert "--no-kv-unified" in flags


def test_flags_switch_off_what_moves_or_corrupts_slots() -> None:
    flags = server_flags(SPEC)
    assert value_of("--cache-ram", flags) == "0"
    assert "--no-cache-idle-slots" in flags


def test_flags_leave_threads_and_alias_to_the_server_unless_given() -> None:
    assert not {"--threads", "--alias"} & set(server_flags(SPEC))
    flags = server_flags(replace(SPEC, threads=3, alias="demo", n_gpu_layers=7))
    assert [value_of(it, flags) for it in ("--threads", "--alias", "--n-gpu-layers")] == [
        "3",
        "demo",
        "7",
    ]


@pytest.mark.parametrize("profile", ["fast", "invariant"])
def test_no_profile_shares_one_kv_cache_among_the_slots(profile: Profile) -> None:
    flags = server_flags(replace(SPEC, profile=profile))
    assert "--no-kv-unified" in flags
    assert not {"--kv-unified", "-kvu"} & set(flags)


def test_invariant_profile_adds_flags_and_environment_that_fast_does_not_have() -> None:
    invariant = replace(SPEC, profile="invariant")
    added = server_flags(invariant)[len(server_flags(SPEC)) :]
    on_gpu = ["--no-repack", "--cache-type-k", "bf16", "--cache-type-v", "bf16"]
    assert added == [*on_gpu, "--no-op-offload"]
    offloaded = server_flags(replace(invariant, n_gpu_layers=7))
    assert offloaded[len(server_flags(replace(SPEC, n_gpu_layers=7))) :] == on_gpu


def test_all_rows_take_the_tiled_kernels_where_the_build_can_be_told_so(tmp_path: Path) -> None:
    invariant = replace(SPEC, profile="invariant")
    folder = tmp_path / "bin"
    folder.mkdir()
    binary = ServerBinary("llama-server", (put_program(folder, "llama-server"),))
    none = {"GGML_CPU_TILED_MM": "0"}
    assert server_environment(invariant, binary) == none
    put_program(folder, "libggml-cpu-haswell.so", b"")
    assert server_environment(invariant, binary) == none
    (tmp_path / "lib" / "libggml-cpu").mkdir(parents=True)
    (tmp_path / "lib" / "libggml-cpu.so").symlink_to("libggml-cpu.so.gone")
    put_program(tmp_path / "lib", "libggml-cpu-zen4.so.0", b"...GGML_CPU_TILED_MM\0...")
    assert server_environment(invariant, binary) == none
    put_program(tmp_path / "lib", "libggml-cpu-zen4.so.0", b"..GGML_CPU_TILED_MM_FORCE\0..")
    os.utime(
        tmp_path / "lib" / "libggml-cpu-zen4.so.0", ns=(1, 1)
    )  # a coarse clock changes nothing
    assert server_environment(invariant, binary) == {"GGML_CPU_TILED_MM_FORCE": "1"}
    assert server_environment(SPEC, binary) == {}
    put_program(folder, "libggml-cpu-old.so", b"..GGML_CPU_TILED_MM\0..")
    assert server_environment(invariant, binary) == none


def test_the_wheels_library_is_looked_at_too() -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    [library] = Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")
    known = b"GGML_CPU_TILED_MM_FORCE" in library.read_bytes()
    found = server_environment(replace(SPEC, profile="invariant"), ServerBinary("xllamacpp", CHILD))
    assert found == ({"GGML_CPU_TILED_MM_FORCE": "1"} if known else {"GGML_CPU_TILED_MM": "0"})


@pytest.mark.parametrize(
    ("quantization", "processor", "layers", "expected"),
    [
        ("Q4_K_M", "flags : avx2 avx512f avx512_vnni", 0, True),
        ("Q4_K_S", "flags : avx2 avx512f avx512_vnni", 0, True),
        ("Q4_K_M", "flags : avx2", 0, False),
        ("Q4_K_M", "flags : avx2 avx512f", 0, False),
        ("Q4_K_M", "flags : avx512_vnni amx_int8", 0, False),
        ("Q4_K_M", "", 0, False),
        ("Q8_0", "flags : avx2 avx512f avx512_vnni", 0, False),
        ("Q4_K_M", "flags : avx2 avx512f avx512_vnni", 4, False),
    ],
)
def test_weights_are_left_as_they_are_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch,
    quantization: str,
    processor: str,
    layers: int,
    expected: bool,
) -> None:
    header = SimpleNamespace(quantization=quantization)
    monkeypatch.setattr("scheduler.server_command.read_gguf_header", lambda _: header)
    monkeypatch.setattr("scheduler.server_command._cpuinfo", lambda: processor)
    assert ("--no-repack" in server_flags(replace(SPEC, n_gpu_layers=layers))) is expected


def test_the_wheels_parameters_take_every_flag_that_is_emitted() -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    spec = replace(SPEC, profile="invariant", threads=3, alias="-demo", n_gpu_layers=7, port=81)
    params = xllamacpp.CommonParams()
    apply_flags(params, server_flags(spec))
    assert params.model.path == "m.gguf"
    assert (params.hostnames, params.port) == (["127.0.0.1"], 81)
    assert (params.n_parallel, params.n_ctx, params.n_gpu_layers) == (4, 2048, 7)
    assert (params.kv_unified, params.cache_ram_mib, params.cache_idle_slots) == (False, 0, False)
    assert (params.endpoint_slots, params.endpoint_metrics, params.use_jinja) == (True, True, True)
    assert params.flash_attn_type.name == "LLAMA_FLASH_ATTN_TYPE_ENABLED"
    assert {params.cache_type_k.name, params.cache_type_v.name} == {"GGML_TYPE_BF16"}
    assert (params.no_extra_bufts, params.no_op_offload) == (True, False)
    apply_flags(params, server_flags(replace(spec, n_gpu_layers=0)))
    assert params.no_op_offload is True
    assert (params.cpuparams.n_threads, params.cpuparams_batch.n_threads) == (3, 3)
    assert params.model_alias == {"-demo"}
    assert params.sampling.ignore_eos is False


def test_the_wheels_server_can_be_told_to_write_on_to_the_limit() -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    apply_flags(params, ["--ignore-eos", "--parallel", "2"])
    assert (params.sampling.ignore_eos, params.n_parallel) == (True, 2)
    assert params.ctx_shift is False


def test_the_wheels_server_can_be_told_to_write_on_past_its_context() -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    apply_flags(params, ["--context-shift"])
    assert params.ctx_shift is True


def test_the_wheels_parameters_take_what_a_measurement_adds_and_the_last_flag_wins() -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    added = "--threads-batch 5 --poll 0 --prio 2 --batch-size 256 --ubatch-size 128 --kv-unified "
    added += "--cache-reuse 64 --no-cont-batching --cache-idle-slots --flash-attn off"
    apply_flags(params, [*server_flags(replace(SPEC, threads=3)), *added.split()])
    assert (params.cpuparams.n_threads, params.cpuparams_batch.n_threads) == (3, 5)
    assert (params.cpuparams.poll, params.cpuparams_batch.priority) == (0, 2)
    assert (params.n_batch, params.n_ubatch, params.n_cache_reuse) == (256, 128, 64)
    assert (params.kv_unified, params.cont_batching, params.cache_idle_slots) == (True, False, True)
    assert params.flash_attn_type.name == "LLAMA_FLASH_ATTN_TYPE_DISABLED"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port"], "expected a value after --port"),
        (["--port", "x"], "--port cannot be 'x'"),
        (["--mlock"], "invalid argument: --mlock"),
    ],
)
def test_the_wheels_server_refuses_flags_as_llama_server_does(
    flags: list[str], message: str
) -> None:
    xllamacpp = pytest.importorskip("xllamacpp")
    with pytest.raises(ValueError, match=message):
        apply_flags(xllamacpp.CommonParams(), flags)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": 0}, "slots is 0"),
        ({"ctx_per_slot": 0}, "ctx_per_slot is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"host": "0.0.0.0"}, "host is '0.0.0.0'"),
        ({"host": "example.org"}, "host is 'example.org'"),
    ],
)
def test_impossible_numbers_and_open_hosts_are_refused(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_spec(replace(SPEC, **change))  # type: ignore[arg-type]  # parametrized by key


def test_model_file_must_exist_and_be_gguf(tmp_path: Path) -> None:
    text = tmp_path / "model.gguf"
    text.write_text("<!DOCTYPE html>")
    for path, message in (
        (tmp_path / "missing.gguf", "No such file"),
        (tmp_path, "can't be read"),
        (text, "not a GGUF file"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_spec(replace(SPEC, model_path=path))
    whole = write_model(tmp_path / "tiny.gguf", ModelShape("tiny", 1, 32, 2, 1, 32)).path
    check_spec(replace(SPEC, model_path=whole))
    text.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(ConfigError, match="download it again"):
        check_spec(replace(SPEC, model_path=text))


@needs_posix
def test_find_prefers_named_then_environment_then_path(
    program_dir: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    on_path = put_program(program_dir, "llama-server")
    put_program(program_dir, "llama")
    assert find_server().argv == (on_path,)
    from_environment = put_program(elsewhere, "llama-server")
    monkeypatch.setenv("LLAMA_SERVER", from_environment)
    assert find_server().argv == (from_environment,)
    named = put_program(elsewhere, "my-build")
    assert find_server(named).argv == (named,)
    assert find_server(named).kind == "llama-server"


@needs_posix
def test_find_takes_llama_with_its_serve_subcommand_but_not_a_script_of_that_name(
    program_dir: Path,
) -> None:
    llama = put_program(program_dir, "llama")
    assert find_server().argv == (llama, "serve")
    assert find_server().kind == "llama serve"
    put_program(program_dir, "llama", b"#!/usr/bin/env python\n")
    pytest.importorskip("xllamacpp")
    assert find_server().kind == "xllamacpp"


@pytest.mark.usefixtures("program_dir")
def test_find_falls_back_to_the_wheel() -> None:
    pytest.importorskip("xllamacpp")
    assert find_server().kind == "xllamacpp"
    assert find_server("xllamacpp").argv[0] == sys.executable


@pytest.mark.usefixtures("program_dir")
def test_a_named_program_that_cannot_run_is_an_error_and_nothing_else_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ServerError, match="'/nowhere/llama-server' can't be run"):
        find_server("/nowhere/llama-server")
    monkeypatch.setenv("LLAMA_SERVER", "nowhere")
    with pytest.raises(ServerError, match="LLAMA_SERVER names 'nowhere'"):
        find_server()


def test_invariant_profile_refuses_a_mixture_of_experts(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.mixture import write_mixture

    path = write_mixture(tmp_path / "m.gguf")
    check_spec(replace(SPEC, model_path=path))
    with pytest.raises(ConfigError, match="not to hold for mixtures of experts, which"):
        check_spec(replace(SPEC, model_path=path, profile="invariant"))


@pytest.mark.parametrize("weights", ["F16", "Q8_0"])
def test_invariant_refuses_weights_for_which_it_does_not_hold(
    weights: Literal["F16", "Q8_0"], tmp_path: Path
) -> None:
    shape = ModelShape("tiny", 1, 32, 2, 1, 32, weight_type=weights)
    path = write_model(tmp_path / "tiny.gguf", shape).path
    check_spec(ServerSpec(path, 1, 256, profile="fast"))
    if weights == "Q8_0":
        check_spec(ServerSpec(path, 1, 256, profile="invariant"))
        return
    with pytest.raises(ConfigError, match=r"invariant .* F16 weights, .*Q8_0.*slower"):
        check_spec(ServerSpec(path, 1, 256, profile="invariant"))
