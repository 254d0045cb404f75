"""Ctrl-C or SIGTERM, once and twice, sent to a run in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.swarm.children import Child
from tests.swarm.simulations import llm, manifest, swarm, write_config, write_scenario
from tests.swarm.test_resume import check_is_like, check_nothing_was_asked_twice, command, events
from tests.wire.chaos import chaos

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="SIGINT can't be sent to one process there"
)

RUN = Path("the-run")
FRESH = Path("fresh")
SAYS = "waiting for 4 requests in flight"


SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def serve(base_url: str) -> Path:
    return write_config(Path("c.yaml"), backend={"kind": "llama_server", "base_url": base_url})


def scenario(**block: object) -> None:
    write_scenario(Path("s.yaml"), [llm(8, timeout=600, **block)], epochs=1, steps=3)


def wait_for_text(child: Child, text: str) -> None:
    deadline = time.monotonic() + 100
    while text not in child.text():
        assert child.running, child.text()
        assert time.monotonic() < deadline, child.text()
        time.sleep(0.005)


@SIGNALS
def test_once_finishes_what_is_in_flight_and_says_how_to_go_on(
    number: signal.Signals, tmp_path: Path
) -> None:
    scenario()
    with chaos(tmp_path / "record", delay_s=0.8) as server:
        config = serve(server.base_url)
        child = Child(*command(RUN, config))
        assert child.wait_for(RUN.absolute(), "request.answered", 9)
        os.kill(child.pid, number)
        assert child.wait() == 130, child.text()
        seen = Counter(event["event"] for event in events(RUN))
        said = "terminated" if number == signal.SIGTERM else "interrupted"
        assert f"{said}: waiting for" in child.text()
        assert "To go on: add --resume --run-dir the-run" in child.text()
        assert manifest(RUN)["state"] == "interrupted"
        assert seen["request.dispatched"] == seen["request.answered"]
        assert len(server.record()) == seen["request.answered"]
        assert all(line["served"] for line in server.record())
        assert swarm(*command(RUN, config, "--resume")) == 0
        questions = manifest(RUN)["transcript_lines"]
        assert seen["request.answered"] < questions == len(server.record())
        assert swarm(*command(FRESH, config)) == 0
    check_is_like(RUN, FRESH)
    check_nothing_was_asked_twice(RUN)


@SIGNALS
def test_twice_ends_at_once(number: signal.Signals, tmp_path: Path) -> None:
    scenario()
    script = {"\\n": ["hang"] * 8}
    with chaos(tmp_path / "record", script=script) as server:
        child = Child(*command(RUN, serve(server.base_url)))
        assert child.wait_for(RUN.absolute(), "request.dispatched", 4)
        os.kill(child.pid, number)
        wait_for_text(child, SAYS)
        assert child.running
        os.kill(child.pid, number)
        assert child.wait() == 130, child.text()
        assert manifest(RUN)["state"] == "interrupted"
    # As many as had arrived by then; none was answered, none waited out.
    assert not any(line["served"] for line in server.record())


IN_THE_BACKGROUND = """
import signal, sys
from swarm_integration import cli
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.exit(cli.main(sys.argv[1:]))
"""


def test_sigterm_ends_a_job_that_ignores_ctrl_c(tmp_path: Path) -> None:
    """A shell without job control lets what it starts with `&` ignore SIGINT."""
    scenario()
    with chaos(tmp_path / "record", script={"\\n": ["hang"] * 8}) as server:
        words = [str(word) for word in command(RUN, serve(server.base_url))]
        with subprocess.Popen(
            [sys.executable, "-c", IN_THE_BACKGROUND, *words],
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
        ) as child:
            assert child.stderr is not None
            log = RUN / "inference.jsonl"
            deadline = time.monotonic() + 60
            while not log.exists() or log.read_bytes().count(b'"request.dispatched"') < 4:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            child.send_signal(signal.SIGINT)
            child.send_signal(signal.SIGTERM)
            said = ""
            while SAYS not in said:
                said += child.stderr.readline()
            child.send_signal(signal.SIGTERM)
            assert child.wait(60) == 130
    assert manifest(RUN)["state"] == "interrupted"
