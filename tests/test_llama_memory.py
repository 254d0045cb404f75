"""How much memory can still be taken, as the system's files say."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from scheduler.backends.llama_memory import available_bytes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="asks as POSIX does")
KIB = 1024
MEMINFO = "MemTotal:       900 kB\nMemFree:        100 kB\nMemAvailable:   700 kB\n"


def system(
    root: Path,
    *,
    meminfo: str | None = MEMINFO,
    limit: str = "",
    used: str = "0",
    cached: int = 0,
) -> Path:
    """A folder with what Linux says of its memory, and of that of a container."""
    files = {"proc/meminfo": meminfo}
    if limit:
        files |= {"sys/fs/cgroup/memory.max": limit, "sys/fs/cgroup/memory.current": used}
        files |= {"sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {cached}\nactive_file 9"}
    for name, content in files.items():
        if content is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f"{content}\n", encoding="ascii")
    return root


def test_without_a_container_it_is_what_the_system_has_available(tmp_path: Path) -> None:
    assert available_bytes(system(tmp_path)) == 700 * KIB


@pytest.mark.parametrize(
    ("limit", "used", "available"),
    [
        (500 * KIB, 100 * KIB, 400 * KIB),
        (5000 * KIB, 100 * KIB, 700 * KIB),
        (500 * KIB, 600 * KIB, 0),
        ("max", 100 * KIB, 700 * KIB),
    ],
    ids=["less", "more", "used up", "no limit"],
)
def test_a_containers_limit_counts_where_less_is_left_of_it(
    limit: int | str, used: int, available: int, tmp_path: Path
) -> None:
    assert available_bytes(system(tmp_path, limit=str(limit), used=str(used))) == available


def test_what_a_container_keeps_of_files_can_be_taken(tmp_path: Path) -> None:
    root = system(tmp_path, limit=str(500 * KIB), used=str(450 * KIB), cached=300 * KIB)
    assert available_bytes(root) == 350 * KIB


@pytest.mark.parametrize("meminfo", [None, "MemTotal: 900 kB"], ids=["no file", "no line"])
def test_a_system_that_does_not_say_what_is_available_counts_with_all_that_it_has(
    meminfo: str | None, tmp_path: Path
) -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available_bytes(system(tmp_path, meminfo=meminfo)) == whole


def test_this_machine_has_not_more_than_all() -> None:
    found = available_bytes()
    assert found is not None
    assert 0 <= found <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
