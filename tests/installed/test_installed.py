"""The installed package from outside the checkout: its commands and the files it brings."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from hashlib import sha256
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
import yaml

from scheduler.errors import ConfigError
from swarm_integration.files import project_file

SCENARIOS = ["scenarios/llm_batch_12.yaml", "scenarios/llm_llama_cpp.yaml"]
CONFIGS = ["configs/fake.yaml", "configs/llama_server.yaml", "configs/managed_server.yaml"]


def command(name: str) -> str:
    """The script that belongs to this interpreter, wherever PATH points."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    assert found is not None, f"{name} is not installed beside {sys.executable}"
    return found


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("name", [*SCENARIOS, *CONFIGS])
def test_files_come_with_the_package(name: str) -> None:
    assert isinstance(yaml.safe_load(project_file(name).read_text(encoding="utf-8")), dict)


def test_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"scenarios/none\.yaml is not part"):
        project_file("scenarios/none.yaml")


def test_swarm_is_our_command() -> None:
    # SWARM itself installs a script of this name; ours must be the one that is called.
    ours = [
        e for e in entry_points(group="console_scripts") if e.value == "swarm_integration.cli:main"
    ]
    assert [entry.name for entry in ours] == ["swarm"]


def test_swarm_runs_the_packaged_scenario_without_a_model(tmp_path: Path) -> None:
    done = run(
        command("swarm"),
        *("run", project_file(SCENARIOS[0]), "--seed", 42, "--inference-scheduler", "batch"),
        *("--inference-config", project_file(CONFIGS[0]), "--run-dir", "run"),
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    digest = sha256((tmp_path / "run/transcript.jsonl").read_bytes()).hexdigest()
    assert f"Trace hash:    {digest}" in done.stdout
    manifest = json.loads((tmp_path / "run/manifest.json").read_text(encoding="utf-8"))
    assert manifest["state"] == "completed"
    assert manifest["inference"]["requests"] >= 72
    assert manifest["versions"]["swarm-inference-scheduler"] == version("swarm-inference-scheduler")


def test_refusals_say_what_to_type_and_exit_with_2(tmp_path: Path) -> None:
    done = run(command("swarm"), "run", "none.yaml", "--inference-scheduler", "batch", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: scenario none.yaml is not a file",
        "  type: give the path of a scenario's YAML",
    ]
    assert list(tmp_path.iterdir()) == []


def test_swarm_inference_says_its_version_and_commands(tmp_path: Path) -> None:
    done = run(command("swarm-inference"), "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, version("swarm-inference-scheduler"))
    shown = run(command("swarm-inference"), "--help", cwd=tmp_path)
    for name in ("demo", "serve", "make-model"):
        assert name in shown.stdout


def test_scheduler_does_not_need_swarm(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['swarm'] = None; import scheduler; "
        "assert 'swarm_integration' not in sys.modules; print(len(scheduler.__all__))"
    )
    done = run(sys.executable, "-c", code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) <= 15
