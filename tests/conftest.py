"""Which event loop a test runs on.

Tests marked `virtual_time` run on asyncio and on trio, with a clock that jumps;
all others run on asyncio in real time, since they use sockets or processes.
"""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import settings

from tests import virtual_time

# A busy machine is slow, and that is no failure.
settings.register_profile("any machine", deadline=None, max_examples=50, print_blob=True)
settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "virtual_time: run on asyncio and trio with a clock that jumps"
    )
    # A shell without job control lets what it starts with `&` ignore Ctrl-C, and so do all
    # processes that the tests start.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marked = metafunc.definition.get_closest_marker("virtual_time") is not None
    if marked and "anyio_backend" in metafunc.fixturenames:
        metafunc.parametrize("anyio_backend", virtual_time.BACKENDS, indirect=True)


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    name = getattr(request, "param", None)
    if name is None:
        return "asyncio", {}
    return name, virtual_time.options(name)
