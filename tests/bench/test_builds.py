"""What compiled the arithmetic of a way, and what it took of the machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from scheduler.server_command import ServerBinary
from swarm_integration.bench.builds import Build, inproc_build, server_build
from swarm_integration.bench.usage import Cpu, cpu, peak_bytes

NATIVE = ServerBinary("llama-server", ("llama-server",))
LINE = "system_info: n_threads = 3 | CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | AVX512 = 0 | AVX2 = 1 |"
NOBODY = 2**22 + 1
"""A process that no Linux has: its numbers end one below."""

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def test_a_native_servers_instructions_are_those_that_its_log_says_it_has(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(b"\xff\xfe no text\nOTHER = 1\n" + LINE.encode() + b"\nTHREADS = 1\n")
    found = server_build(NATIVE, log, "b1234-abc")
    assert found == Build("llama-server b1234-abc", ("SSE3", "AVX", "AVX2"))


def test_a_native_server_that_says_nothing_has_none(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("AVX2 = 1 on another line\n", encoding="utf-8")
    assert server_build(NATIVE, log, "b1") == Build("llama-server b1", ())


def test_the_librarys_build_has_its_version_and_its_instructions() -> None:
    lib = SimpleNamespace(__version__="0.3.9", llama_print_system_info=LINE.encode)
    assert inproc_build(lib) == Build("llama-cpp-python 0.3.9", ("SSE3", "AVX", "AVX2"))


# What it took


def test_cpu_seconds_are_those_of_all_processes_together() -> None:
    assert Cpu(1.0, 10.0).until(Cpu(1.5, 12.0)) == 2.5
    assert Cpu(1.0, None).until(Cpu(1.5, 12.0)) is None
    assert Cpu(1.0, 10.0).until(Cpu(1.5, None)) is None


def test_without_a_server_this_process_counts_alone() -> None:
    before = cpu(None)
    sum(n * n for n in range(10_000))
    spent = before.until(cpu(None))
    assert before.server_s == 0.0
    assert spent is not None
    assert spent > 0


@linux
def test_a_servers_share_is_read_from_the_system() -> None:
    found = cpu(os.getpid())
    assert found.server_s is not None
    # Of this very process: the system counts in ticks of a hundredth.
    assert abs(found.own_s - found.server_s) < 0.1
    own = peak_bytes(None)
    both = peak_bytes(os.getpid())
    assert own is not None
    assert both is not None
    assert both > own > 2**20


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is told of memory there")
def test_of_a_server_that_is_gone_nothing_can_be_told() -> None:
    assert cpu(NOBODY).server_s is None
    assert cpu(None).until(cpu(NOBODY)) is None
    assert peak_bytes(NOBODY) is None
    assert peak_bytes(None) is not None
