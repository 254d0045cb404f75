"""The doctor on healthy machines and on broken ones; what is broken really is."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from scheduler.gguf_models import ModelShape, write_model
from swarm_integration.clash import find_clash
from swarm_integration.commands import main
from swarm_integration.config import InferenceConfig
from swarm_integration.doctor.case import Case, DoctorOptions
from swarm_integration.doctor.findings import Finding, Repair, as_json, text
from swarm_integration.doctor.machine import check_disk, check_threads
from swarm_integration.doctor.packages import OURS, check_script, owner_of
from tests.swarm.environments import ROOT, Environment, make_environment
from tests.swarm.simulations import awm, llm, write_config, write_scenario
from tests.wire.scripted_server import (
    PROPS,
    TOKENIZE,
    Reply,
    ScriptedServer,
    props_body,
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="scripts and modes of POSIX")
TINY = ModelShape("tiny", layers=1, width=64, heads=2, kv_heads=1, ff_width=96, context_length=2048)
NOBODY = 65534


class Diagnosis:
    """What `doctor --json` said."""

    def __init__(self, code: int, output: str) -> None:
        self.code = code
        self.data: dict[str, Any] = json.loads(output)

    def of(self, check: str) -> list[dict[str, Any]]:
        return [one for one in self.data["checks"] if one["check"].startswith(check)]

    def one(self, check: str) -> dict[str, Any]:
        [found] = self.of(check)
        return found

    def errors(self) -> list[str]:
        """The names of what is wrong, less what this machine's own `swarm` script is."""
        broken = [one["check"] for one in self.data["checks"] if one["level"] == "error"]
        return [name for name in broken if name != "`swarm` script"]


@pytest.fixture
def doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Run the doctor in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*words: object) -> Diagnosis:
        code = main(["doctor", "--json", *(str(word) for word in words)])
        return Diagnosis(code, capsys.readouterr().out)

    return run


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        yield scripted


@pytest.fixture
def foreign() -> Iterator[int]:
    """The port of a web server that is no llama-server."""
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        yield web.server_address[1]
        web.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    root = tmp_path_factory.mktemp("environment")
    return make_environment(root / "venv", without=("llama_cpp", "llama-cpp"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scenario_on(path: Path, url: str, **block: Any) -> Path:
    return write_scenario(path / "s.yaml", [llm(2, base_url=url, model="demo", **block)])


# Healthy


def test_healthy_server_and_scenario_have_no_errors(
    doctor: Any, server: ScriptedServer, tmp_path: Path
) -> None:
    server.on(PROPS, Reply(props_body(default_generation_settings={"n_ctx": 4096})))
    found = doctor(scenario_on(tmp_path, server.base_url))
    assert found.errors() == []
    running = found.one(f"server {server.base_url}")
    assert running["facts"]["slots"] == 4
    assert running["facts"]["context_per_slot"] == 4096
    assert found.one(f"scenario on {server.base_url}")["level"] == "ok"
    assert "2 LLM agents" in found.one("scenario /")["says"]


def test_nothing_is_changed_and_no_prompt_is_sent(
    doctor: Any, server: ScriptedServer, tmp_path: Path
) -> None:
    doctor(scenario_on(tmp_path, server.base_url))
    assert list(Path.cwd().iterdir()) == []
    assert server.requests() == []


def test_every_line_that_is_not_ok_says_what_mends_it(doctor: Any, tmp_path: Path) -> None:
    scenario = scenario_on(tmp_path, f"http://127.0.0.1:{free_port()}/v1")
    found = doctor(scenario, "--model", tmp_path / "none.gguf")
    bad = [one for one in found.data["checks"] if one["level"] != "ok"]
    assert len(bad) >= 2
    assert all(one["mend"] for one in bad)


def test_versions_of_all_that_matters_are_named(doctor: Any) -> None:
    found = doctor()
    for name in ("python", OURS, "swarm-safety", "openai", "anyio"):
        assert any(one["facts"].get("version") for one in found.of(name)), name
    for name in ("llama-cpp-python", "xllamacpp"):
        assert found.one(name)["says"]


def test_output_for_people_has_a_line_for_each_check(
    doctor: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert "Installation" in lines
    assert any(line.startswith("ok       python: ") for line in lines)


# Servers


def test_no_server_is_named_with_its_address_and_how_to_start_one(
    doctor: Any, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    found = doctor(scenario_on(tmp_path, url))
    assert found.code == 1
    assert found.errors() == [f"server {url}"]
    assert "no server can be reached" in found.one("server")["says"]
    assert found.one("server")["mend"].startswith("swarm-inference serve")


def test_without_a_scenario_no_server_need_run(
    doctor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    config = write_config(tmp_path / "c.yaml", backend={"base_url": f"http://127.0.0.1:{port}/v1"})
    found = doctor("--inference-config", config)
    assert found.errors() == []
    assert found.one(f"port {port}")["facts"]["free"] is True


def test_taken_port_is_named(doctor: Any, tmp_path: Path, foreign: int) -> None:
    config = write_config(
        tmp_path / "c.yaml", backend={"base_url": f"http://127.0.0.1:{foreign}/v1"}
    )
    found = doctor("--inference-config", config).one(f"port {foreign}")
    assert found["level"] == "warning"
    assert found["facts"]["free"] is False
    assert f"--port {foreign + 1}" in found["mend"]


def test_other_program_in_place_of_the_server_is_an_error(
    doctor: Any, tmp_path: Path, foreign: int
) -> None:
    found = doctor(scenario_on(tmp_path, f"http://127.0.0.1:{foreign}/v1"))
    assert found.code == 1
    assert "another program listens there" in found.one("server")["says"]


def test_too_small_a_context_is_named_with_what_is_needed(
    doctor: Any, server: ScriptedServer, tmp_path: Path
) -> None:
    server.on(PROPS, Reply(props_body(default_generation_settings={"n_ctx": 1024})))
    server.on(TOKENIZE, Reply({"tokens": [7] * 900}))
    found = doctor(scenario_on(tmp_path, server.base_url, max_tokens=128))
    assert found.errors() == [f"scenario on {server.base_url}"]
    one = found.one("scenario on")
    assert "holds 1024 tokens" in one["says"]
    assert "--ctx-size" in one["mend"]


def test_wrong_model_name_is_named_with_both(
    doctor: Any, server: ScriptedServer, tmp_path: Path
) -> None:
    server.on(PROPS, Reply(props_body(model_alias="another-model")))
    found = doctor(scenario_on(tmp_path, server.base_url)).one("scenario on")
    assert found["level"] == "error"
    assert "'demo'" in found["says"]
    assert "'another-model'" in found["says"]
    assert "model: another-model" in found["mend"]


def test_too_few_slots_are_named(doctor: Any, server: ScriptedServer, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", scheduler={"slots": 9})
    found = doctor(scenario_on(tmp_path, server.base_url), "--inference-config", config)
    assert "scheduler.slots is 9" in found.one("scenario on")["says"]


def test_base_url_beats_the_scenario(doctor: Any, server: ScriptedServer, tmp_path: Path) -> None:
    server.on(PROPS, Reply(props_body(default_generation_settings={"n_ctx": 8192})))
    scenario = scenario_on(tmp_path, f"http://127.0.0.1:{free_port()}/v1")
    found = doctor(scenario, "--base-url", server.base_url)
    assert found.errors() == []
    assert found.one(f"server {server.base_url}")["facts"]["context_per_slot"] == 8192


def test_missing_api_keys_are_named_and_values_never_shown(
    doctor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-very-secret")
    agents = [llm(4, provider="openai"), llm(1, provider="anthropic")]
    found = doctor(write_scenario(tmp_path / "s.yaml", agents))
    missing = found.one("API key OPENAI_API_KEY")
    assert missing["level"] == "error"
    assert "llm_1, llm_2, llm_3 and 1 more" in missing["says"]
    assert missing["mend"] == "export OPENAI_API_KEY=..."
    assert found.one("API key ANTHROPIC_API_KEY")["level"] == "ok"
    assert "very-secret" not in json.dumps(found.data)


def test_server_of_one_agent_is_looked_at_though_the_key_of_another_is_missing(
    doctor: Any, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    agents = [llm(1, provider="openai"), llm(1, base_url=server.base_url, model="demo")]
    found = doctor(write_scenario(tmp_path / "s.yaml", agents))
    assert found.errors() == ["API key OPENAI_API_KEY"]
    assert found.one(f"server {server.base_url}")["level"] == "ok"


def test_missing_key_of_the_server_of_all_is_named_before_it_is_asked(
    doctor: Any, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    backend = {"kind": "llama_server", "base_url": server.base_url, "api_key_env": "MY_KEY"}
    found = doctor("--inference-config", write_config(tmp_path / "c.yaml", backend=backend))
    assert found.errors() == ["API key MY_KEY"]
    assert server.connections == 0


def test_equal_servers_that_share_the_work_are_looked_at_together(
    doctor: Any, server: ScriptedServer, tmp_path: Path
) -> None:
    with ScriptedServer() as other:
        urls = [server.base_url, other.base_url]
        config = write_config(
            tmp_path / "c.yaml", backend={"kind": "llama_server", "base_url": urls}
        )
        found = doctor("--inference-config", config)
    assert found.errors() == []
    assert found.one(f"server {', '.join(urls)}")["facts"]["slots"] == 8


@posix
def test_missing_server_program_is_an_error_where_one_is_to_be_started(
    doctor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_SERVER", "/nowhere/llama-server")
    write_model(tmp_path / "m.gguf", TINY)
    backend = {"kind": "llama_server", "managed": True, "model_path": str(tmp_path / "m.gguf")}
    config = write_config(tmp_path / "c.yaml", backend=backend)
    found = doctor("--inference-config", config).one("llama-server program")
    assert found["level"] == "error"
    assert "/nowhere/llama-server" in found["says"]
    assert "LLAMA_SERVER" in found["mend"]


@posix
def test_version_of_a_native_server_is_asked_for(
    doctor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho 'version: 1234 (abc)' >&2\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("LLAMA_SERVER", str(program))
    backend = {"base_url": f"http://127.0.0.1:{free_port()}/v1"}
    config = write_config(tmp_path / "c.yaml", backend=backend)
    assert "version 1234 (abc)" in doctor("--inference-config", config).one("llama-server")["says"]


# Models


def test_model_facts_are_told(doctor: Any, tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", TINY)
    about, memory = doctor("--model", tmp_path / "m.gguf").of("model ")[:2]
    assert about["facts"]["architecture"] == "llama"
    assert about["facts"]["quantization"] == "Q8_0"
    assert about["facts"]["trained_context"] == 2048
    assert about["facts"]["chat_template"] is True
    assert memory["level"] == "warning"
    assert "was trained for 2,048 tokens" in memory["says"]


def test_truncated_model_is_named_with_both_sizes(doctor: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    whole = write_model(path, TINY).bytes
    path.write_bytes(path.read_bytes()[: whole - 1000])
    found = doctor("--model", path)
    assert found.errors() == [f"model {path}"]
    says = found.one("model ")["says"]
    assert "cut off" in says
    assert f"{whole - 1000:,}" in says


def test_model_without_a_chat_template_is_an_error(doctor: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_model(path, TINY)
    key = b"tokenizer.chat_template"
    content = path.read_bytes()
    assert content.count(key) == 1
    path.write_bytes(content.replace(key, b"tokenizer.chat_nothing_"))
    says = [one["says"] for one in doctor("--model", path).of("model ") if one["level"] == "error"]
    assert ["no chat template" in one for one in says] == [True]


def test_model_that_does_not_fit_the_memory_is_an_error(doctor: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_model(path, TINY)
    config = write_config(tmp_path / "c.yaml", backend={"context_per_slot": 2**40})
    found = doctor("--inference-config", config, "--model", path)
    assert "MiB are free" in found.of("model ")[-1]["says"]
    assert found.of("model ")[-1]["level"] == "error"


@pytest.mark.parametrize(
    ("engine", "slots", "sequences"),
    [
        ("auto", "auto", 1),
        ("locked", 12, 1),
        ("batched", "auto", 8),
        ("auto", 1, 8),
        ("batched", 12, 16),
        ("auto", 16, 20),
    ],
)
def test_every_sequence_of_a_model_in_process_counts(
    engine: str, slots: int | str, sequences: int
) -> None:
    backend = {"kind": "llama_inproc", "model_path": "m.gguf", "engine": engine}
    config = {"backend": backend, "scheduler": {"slots": slots}}
    [use] = Case(DoctorOptions(), InferenceConfig.model_validate(config)).models()
    assert use.sequences == sequences


def test_model_of_an_agent_in_process_is_looked_at(doctor: Any, tmp_path: Path) -> None:
    missing = tmp_path / "none.gguf"
    scenario = write_scenario(tmp_path / "s.yaml", [llm(1, model_path=str(missing))])
    found = doctor(scenario)
    assert "does not exist" in found.one(f"model {missing}")["says"]
    assert found.of("server ") == []


# This machine


def test_runs_that_is_no_folder_is_an_error(doctor: Any) -> None:
    Path("runs").write_text("in the way", encoding="utf-8")
    found = doctor("--fix")
    assert found.errors() == ["folder runs"]
    assert Path("runs").read_text(encoding="utf-8") == "in the way"


@posix
def test_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    # Root may write everywhere, so the child becomes another user once it has read its modules.
    code = (
        "import os; from pathlib import Path\n"
        "from swarm_integration.doctor.machine import check_folders\n"
        f"os.geteuid() or os.setuid({NOBODY})\n"
        "print([(one.check, one.level, one.mend) for one in check_folders(Path('.'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "('folder runs', 'error', 'chmod u+rwx runs; or --run-dir" in done.stdout


def test_fix_makes_folders_and_says_so(doctor: Any) -> None:
    found = doctor("--fix")
    assert Path("runs").is_dir()
    assert Path("models").is_dir()
    assert [line.split()[0] for line in found.data["fixed"]] == ["made", "made"]
    assert "can be written" in found.one("folder runs")["says"]


def test_more_threads_than_cores_are_a_warning() -> None:
    found = check_threads(100_000, "backend.threads")
    assert found.level == "warning"
    assert "set backend.threads to" in found.mend
    assert check_threads(None, "backend.threads").level == "ok"


def test_disk_without_room_for_the_journal_is_an_error(tmp_path: Path) -> None:
    assert check_disk(tmp_path / "runs/a", 100).level == "ok"
    full = check_disk(tmp_path / "runs/a", 10**12)
    assert full.level == "error"
    assert "--run-dir" in full.mend


# Configuration and scenario


def test_one_mistake_does_not_hide_the_others(doctor: Any, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", scheduler={"slotz": 4})
    scenario = tmp_path / "s.yaml"
    scenario.write_text("agents: [\n", encoding="utf-8")
    found = doctor(scenario, "--inference-config", config, "--model", tmp_path / "none.gguf")
    assert found.code == 1
    checks = " ".join(found.errors())
    for name in ("configuration", "scenario", "model"):
        assert name in checks
    assert "slotz" in found.one("configuration")["says"]


def test_delegates_and_members_count_as_llm_agents(
    doctor: Any, server: ScriptedServer, tmp_path: Path
) -> None:
    scenario = write_scenario(tmp_path / "s.yaml", [awm(2)])
    found = doctor(scenario, "--base-url", server.base_url)
    assert found.one("scenario /")["facts"]["llm_agents"] == 2


# Installation


@posix
def test_script_of_upstream_is_an_error_and_fix_puts_ours_back(
    environment: Environment, tmp_path: Path
) -> None:
    script = environment.put_script("swarm", "swarm.__main__")
    before = environment.run("swarm", "run", "--help", cwd=tmp_path)
    assert "--inference-scheduler" not in before.stdout
    found = environment.run("swarm-inference", "doctor", "--json", cwd=tmp_path)
    broken = Diagnosis(found.returncode, found.stdout)
    assert broken.code == 1
    assert broken.one("`swarm` script")["facts"]["owner"] == "swarm-safety"
    assert broken.one("`swarm` script")["mend"] == "swarm-inference doctor --fix"
    assert owner_of(script) == "swarm-safety"

    fixed = environment.run("swarm-inference", "doctor", "--fix", cwd=tmp_path)
    assert f"fixed: {script} is the script of {OURS} again" in fixed.stdout
    assert owner_of(script) == OURS
    after = environment.run("swarm", "run", "--help", cwd=tmp_path)
    assert "--inference-scheduler" in after.stdout
    assert os.access(script, os.X_OK)


@posix
def test_commands_say_that_swarm_is_missing(tmp_path: Path) -> None:
    bare = make_environment(tmp_path / "venv", without=("llama_cpp", "swarm_safety"))
    next((tmp_path / "venv").glob("lib/python*/site-packages/swarm")).unlink()
    scenario = write_scenario(tmp_path / "s.yaml", [llm(2)])
    wanted = "swarm-inference-scheduler[swarm]"
    for words in (
        ("swarm", "run", scenario, "--inference-scheduler", "batch"),
        ("swarm", "sweep", scenario, "--seeds", "1-2"),
        ("swarm", "run", scenario),
        ("swarm", "--help"),
    ):
        done = bare.run(*words, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert wanted in done.stderr
        assert "Traceback" not in done.stderr


@posix
def test_missing_script_is_put_back_and_a_foreign_one_is_left_alone(
    environment: Environment, tmp_path: Path
) -> None:
    script = environment.bin / "swarm"
    script.unlink()
    environment.run("swarm-inference", "doctor", "--fix", cwd=tmp_path)
    assert owner_of(script) == OURS
    script.write_text("#!/bin/sh\necho a tool of docker\n", encoding="utf-8")
    done = environment.run("swarm-inference", "doctor", "--fix", "--json", cwd=tmp_path)
    found = Diagnosis(done.returncode, done.stdout).one("`swarm` script")
    assert found["facts"]["owner"] == "another package"
    assert found["mend"].endswith(("pip install --force-reinstall --no-deps " + OURS, '"'))
    assert "docker" in script.read_text(encoding="utf-8")
    environment.put_script("swarm", "swarm_integration.cli")


@posix
def test_other_swarm_earlier_on_path_is_a_warning(environment: Environment, tmp_path: Path) -> None:
    other = tmp_path / "swarm"
    shutil.copy(environment.put_script("swarm", "swarm.__main__"), other)
    ours = environment.put_script("swarm", "swarm_integration.cli")
    search = f"{tmp_path}{os.pathsep}{environment.bin}"
    ok, warning = check_script(environment.bin, search)
    assert ok.level == "ok"
    assert str(ours) in ok.says
    assert warning.level == "warning"
    assert str(other) in warning.says
    assert [one.level for one in check_script(environment.bin, str(environment.bin))] == ["ok"]


@posix
def test_missing_llama_cpp_python_is_an_error_only_where_it_is_needed(
    environment: Environment, tmp_path: Path
) -> None:
    write_model(tmp_path / "m.gguf", TINY)
    scenario = write_scenario(
        tmp_path / "s.yaml", [llm(1, model_path=str(tmp_path / "m.gguf"), n_ctx=4096)]
    )
    done = environment.run("swarm-inference", "doctor", scenario, "--json", cwd=tmp_path)
    needed = Diagnosis(done.returncode, done.stdout).one("llama-cpp-python")
    assert needed["level"] == "error"
    assert needed["says"].startswith("not installed")
    assert needed["mend"].endswith(f'pip install "{OURS}[llama-cpp]"')
    done = environment.run("swarm-inference", "doctor", "--json", cwd=tmp_path)
    assert Diagnosis(done.returncode, done.stdout).one("llama-cpp-python")["level"] == "ok"


@posix
def test_llama_cpp_python_that_ends_its_process_is_told_from_a_working_one(
    environment: Environment, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    (broken / "llama_cpp").mkdir(parents=True)
    (broken / "llama_cpp/__init__.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n", encoding="utf-8"
    )
    about = broken / "llama_cpp_python-0.3.36.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: 0.3.36\n", encoding="utf-8"
    )
    done = environment.run(
        "swarm-inference", "doctor", "--json", cwd=tmp_path, PYTHONPATH=str(broken)
    )
    found = Diagnosis(done.returncode, done.stdout).one("llama-cpp-python")
    assert found["level"] == "warning"
    assert "signal 4" in found["says"]


# The import name


@posix
@pytest.mark.parametrize("words", [["doctor"], ["doctor", "--json"], ["make-model"]], ids=" ".join)
def test_scheduler_shadowed_by_a_folder_is_named_by_every_command(
    environment: Environment, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/__init__.py").touch()
    done = environment.run(
        environment.python, "-m", "swarm_integration.commands", *words, cwd=tmp_path
    )
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert f"`import scheduler` gives {tmp_path / 'scheduler'}" in said
    assert "folder in which you typed the command" in said
    assert "mv scheduler another_name" in said
    if "--json" in words:
        assert json.loads(done.stdout)["ok"] is False


@posix
def test_scheduler_shadowed_by_pythonpath_is_named(
    environment: Environment, tmp_path: Path
) -> None:
    (tmp_path / "scheduler.py").touch()
    here = tmp_path / "here"
    here.mkdir()
    done = environment.run("swarm-inference", "doctor", cwd=here, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert str(tmp_path / "scheduler.py") in done.stderr
    assert "unset PYTHONPATH" in done.stderr


@posix
def test_other_distribution_that_overwrote_our_package_is_named(
    environment: Environment, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    for name in ("scheduler", "swarm_integration"):
        shutil.copytree(ROOT / name, site / name)
    (site / "scheduler/__init__.py").write_text("class Scheduler: ...\n", encoding="utf-8")
    about = site / "scheduler-0.8.11.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: scheduler\nVersion: 0.8.11\n", encoding="utf-8"
    )
    (about / "RECORD").write_text("scheduler/__init__.py,,\n", encoding="utf-8")
    done = environment.run("swarm-inference", "doctor", cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 1
    assert "the package scheduler has installed its files over those" in done.stdout
    assert "pip uninstall scheduler" in done.stdout


def test_our_own_package_is_no_clash() -> None:
    assert find_clash() is None
    assert find_clash(thorough=True) is None


# How it is said


def test_text_counts_and_says_what_fix_would_do() -> None:
    repair = Repair("make it", lambda: "made")
    found = [
        Finding("a", "ok", "fine"),
        Finding("b", "warning", "slow", "do this"),
        Finding("c", "error", "gone", "do that", repair=repair),
    ]
    lines = text([("Part", found)]).splitlines()
    assert lines[0] == "Part"
    assert lines[2:4] == ["warning  b: slow", "         to mend it: do this"]
    assert lines[-1] == "1 error and 1 warning. --fix would make it."
    assert text([("Part", found[:1])]).splitlines()[-1] == "Nothing is wrong."


def test_json_has_the_same_as_data() -> None:
    data = as_json([("Part", [Finding("c", "error", "gone", "do", {"n": 1})])], ["made"])
    assert data["ok"] is False
    assert data["errors"] == 1
    assert data["fixed"] == ["made"]
    assert data["checks"][0]["facts"] == {"n": 1}
