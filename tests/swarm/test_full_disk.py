"""Files of a run that can't be written: what is said, and what is left to go on from."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scheduler.errors import ConfigError, JournalError
from swarm_integration.errors import RunFilesError
from swarm_integration.files import room_for
from swarm_integration.rundir import RunDirectory, recorded_end
from tests.swarm.simulations import llm, manifest, swarm, write_config, write_scenario
from tests.swarm.test_resume import check_is_like, check_nothing_was_asked_twice, command
from tests.swarm.test_rundir import answer, completion
from tests.unmeasured import unmeasured

pytestmark = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="this system has no device that is always full"
)

RUN, FRESH = Path("the-run"), Path("fresh")
LIMITED = """
import resource, sys
from swarm_integration import cli
most = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def on_full_disk(name: str) -> None:
    (RUN / name).symlink_to("/dev/full")


def write_transcript(directory: RunDirectory, length: int = 100_000) -> None:
    on_full_disk("transcript.jsonl")
    directory.begin()
    directory.record([completion(answer("x" * length))])


def write_a_line(directory: RunDirectory) -> None:
    """It fits a buffer, so that the disk is found to be full when that is flushed."""
    write_transcript(directory, 1)


def write_metrics(directory: RunDirectory) -> None:
    on_full_disk("metrics.json")
    directory.write_metrics([{"a": 1}])


def write_manifest(directory: RunDirectory) -> None:
    on_full_disk(".manifest.json.part")
    directory.update_manifest(a=1)


def write_copies(directory: RunDirectory) -> None:
    on_full_disk("scenario.yaml")
    scenario = Path("s.yaml")
    scenario.write_text("agents: []")
    directory.copy_inputs(scenario, {})


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_transcript, "transcript.jsonl"),
        (write_a_line, "transcript.jsonl"),
        (write_metrics, "metrics.json"),
        (write_manifest, "manifest.json"),
        (write_copies, "the-run"),
    ],
)
def test_the_file_is_named_with_what_to_do(
    write: Callable[[RunDirectory], None], name: str
) -> None:
    says = rf"{name} can't be written: No space left on device\. Make room.*--resume"
    with pytest.raises(RunFilesError, match=says), RunDirectory(RUN) as directory:
        write(directory)


def test_a_directory_without_room_for_its_manifest_is_not_made() -> None:
    draft = Path(f".{RUN}.part")
    draft.mkdir()
    (draft / ".manifest.json.part").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"can't be made: .*No space left on device"):
        RunDirectory(RUN)
    assert not RUN.exists()


def end_with(error: BaseException) -> None:
    with RunDirectory(RUN) as directory, recorded_end(directory):
        on_full_disk(".manifest.json.part")
        raise error


@pytest.mark.parametrize("error", [JournalError("disk full"), KeyboardInterrupt(), KeyError("x")])
def test_what_went_wrong_first_is_told(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        end_with(error)
    assert raised.value is error


def end_well() -> None:
    with RunDirectory(RUN) as directory, recorded_end(directory):
        on_full_disk(".manifest.json.part")


def test_a_run_whose_end_can_not_be_recorded_has_not_ended_well() -> None:
    with pytest.raises(RunFilesError, match=r"manifest\.json can't be written"):
        end_well()


@pytest.mark.parametrize("most", [1_000, 6_000, 12_000, 20_000, 60_000])
def test_a_run_whose_files_can_not_grow_says_so_and_is_resumed_to_the_same_end(most: int) -> None:
    write_scenario(Path("s.yaml"), [llm(6)], epochs=2, steps=4)
    config = write_config(Path("c.yaml"), backend={"kind": "fake"})
    assert swarm(*command(FRESH, config)) == 0
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(most), *map(str, command(RUN, config))],
        env=unmeasured(PYTHONPATH=os.pathsep.join(sys.path), PYTHONHASHSEED="0"),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "can't be written" in done.stderr
    assert "make room or choose another disk, then go on with --resume" in done.stderr
    assert "Traceback" not in done.stderr
    more = ["--resume"] if (RUN / "transcript.jsonl").exists() else []
    assert swarm(*command(RUN, config, *more)) == 0
    check_is_like(RUN, FRESH)
    check_nothing_was_asked_twice(RUN)
    assert manifest(RUN)["state"] == "completed"


def test_no_room_for_a_file_that_swarm_writes_is_told_as_such(tmp_path: Path) -> None:
    told = r"a file of SWARM's in .* can't be written: File too"
    with pytest.raises(RunFilesError, match=told), room_for(tmp_path):
        raise OSError(errno.EFBIG, "File too large")
    with pytest.raises(ConnectionResetError), room_for(tmp_path):
        raise ConnectionResetError
