"""What comes from outside can't run code, reach other files or servers, or show a key.

`docs/security.md` names these tests, and others beside them, input by input.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler.errors import ConfigError
from scheduler.yaml_text import load_yaml
from swarm_integration import commands
from swarm_integration.ending import EXIT_ABORTED
from swarm_integration.rundir import CONFIGURATION, MANIFEST, SCENARIO
from tests.swarm.simulations import llm, manifest, swarm, write_config, write_scenario
from tests.swarm.test_services import fleet
from tests.wire.scripted_server import (
    CHAT,
    HEALTH,
    MODELS,
    PROPS,
    TEMPLATE,
    Reply,
    ScriptedServer,
    answer_body,
    error_body,
    props_body,
)

ROOT = Path(__file__).parent.parent.parent
PUBLISHED = Path(__file__).parent / "published_run"
BATCH = ("--inference-scheduler", "batch", "--run-dir", Path("run"))
ATTACKS = {
    "call": "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [owned]]",
    "name": "!!python/name:os.system",
    "new": "!!python/object/new:os.system [touch owned]",
    "module": "!!python/module:antigravity",
}

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_yaml_that_names_python_objects_is_refused_and_runs_nothing(
    attack: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("s.yaml").write_text(f"scenario_id: {attack}\nagents: [{{type: honest}}]\n")
    assert swarm("run", "s.yaml", *BATCH) == 2
    assert "s.yaml is not YAML" in capsys.readouterr().err
    scenario = write_scenario(Path("good.yaml"), [llm()])
    Path("c.yaml").write_text(f"scheduler: {attack}\n")
    assert swarm("run", scenario, *BATCH, "--inference-config", "c.yaml") == 2
    assert "c.yaml is not YAML" in capsys.readouterr().err
    assert not Path("owned").exists()


BOMBS = {
    "aliases": "\n".join(
        [
            "a0: &a0 [x, x]",
            *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)),
        ]
    ),
    "merged": "\n".join(
        [
            "a0: &a0 {x: 1}",
            *(
                f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}], y{n}: 1}}"
                for n in range(1, 40)
            ),
        ]
    ),
    "itself": "scheduler: &me [*me]",
    "deep": "a: " + "[" * 5000,
    "deep by aliases": "\n".join(
        ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 3000))]
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_yaml_that_stands_for_more_than_it_says_is_refused(
    bomb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("s.yaml").write_text(f"{bomb}\nagents: [{{type: honest}}]\n")
    assert swarm("run", "s.yaml", *BATCH) == 2
    assert "s.yaml is not YAML" in capsys.readouterr().err
    scenario = write_scenario(Path("good.yaml"), [llm()])
    Path("c.yaml").write_text(f"{bomb}\n")
    assert swarm("run", scenario, *BATCH, "--inference-config", "c.yaml") == 2
    said = capsys.readouterr().err
    assert "c.yaml is not YAML" in said
    assert len(said) < 5000


def test_ordinary_aliases_are_read() -> None:
    assert load_yaml("a: &a [1, 2]\nb: [*a, *a]\nc: {<<: {d: 1}}") == {
        "a": [1, 2],
        "b": [[1, 2], [1, 2]],
        "c": {"d": 1},
    }
    assert load_yaml("") is None


@pytest.mark.parametrize("twice", ["a: 1\nb:\n  c: 1\n  c: 1\n", "{b: 2, a: {c: 1, c: 2}}"])
def test_a_key_that_stands_twice_is_refused(twice: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(yaml.YAMLError, match=r"the key 'c' in line \d was given in line \d before"):
        load_yaml(twice)
    scenario = write_scenario(Path("s.yaml"), [llm()])
    Path("c.yaml").write_text("scheduler:\n  slots: 2\n  max_batch: 8\n  slots: 4\n")
    assert swarm("run", scenario, *BATCH, "--inference-config", "c.yaml") == 2
    assert "the key 'slots' in line 4 was given in line 2 before" in capsys.readouterr().err
    Path("s.yaml").write_text(f"{Path(scenario).read_text()}\nagents: [{{type: honest}}]\n")
    assert swarm("run", "s.yaml", *BATCH) == 2
    assert "the key 'agents'" in capsys.readouterr().err
    assert load_yaml("a: &a {b: 1}\nc: {<<: *a, <<: {d: 2}, '1': 3, 1: 4}")["c"] == {
        "b": 1,
        "d": 2,
        "1": 3,
        1: 4,
    }


def test_a_long_wrong_value_is_quoted_in_part(capsys: pytest.CaptureFixture[str]) -> None:
    scenario = write_scenario(Path("s.yaml"), [llm()])
    Path("c.yaml").write_text(f"backend: [{', '.join(['x'] * 10_000)}]\n")
    assert swarm("run", scenario, *BATCH, "--inference-config", "c.yaml") == 2
    assert len(capsys.readouterr().err) < 2000


def test_no_module_reads_pickles_or_evaluates_text() -> None:
    forbidden = {"pickle", "marshal", "shelve", "dill", "joblib"}
    for path in [*ROOT.glob("scheduler/**/*.py"), *ROOT.glob("swarm_integration/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not forbidden & {alias.name.split(".")[0] for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in forbidden, path
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, path
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                plain = ast.unparse(node.func)
                assert plain not in {"yaml.load", "yaml.unsafe_load", "yaml.full_load"}, path
            elif isinstance(node, ast.keyword) and node.arg == "shell":
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://host/v1", "unix:///tmp/s", "//x"])
def test_an_address_that_is_not_http_is_refused_wherever_it_stands(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = write_scenario(Path("s.yaml"), [llm()])
    config = write_config(Path("c.yaml"), backend={"base_url": address})
    assert swarm("run", scenario, *BATCH, "--inference-config", config) == 2
    assert "http" in capsys.readouterr().err
    scenario = write_scenario(Path("s.yaml"), [llm(base_url=address)])
    assert swarm("run", scenario, *BATCH) == 2
    assert "http" in capsys.readouterr().err


def test_a_redirect_takes_neither_prompt_nor_key_to_another_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THE_KEY", "sk-very-secret-key")
    with ScriptedServer() as server, ScriptedServer() as other:
        other.on(CHAT, Reply(answer_body("{}")))
        server.on(CHAT, Reply(b"", 307, {"Location": f"{other.base_url}/chat/completions"}))
        backend = {
            "kind": "llama_server",
            "base_url": server.base_url,
            "api_key_env": "THE_KEY",
        }
        config = write_config(Path("c.yaml"), backend=backend)
        scenario = write_scenario(Path("s.yaml"), [llm()])
        assert swarm("run", scenario, *BATCH, "--inference-config", config) == EXIT_ABORTED
        assert server.requests(CHAT)
        assert not other.requests(CHAT)
        assert not other.requests(PROPS)
    assert "redirects" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["http://{other}/x", "file:///etc/passwd", "//{other}/x"])
@pytest.mark.parametrize(
    ("kind", "route"),
    [
        ("llama_server", HEALTH),
        ("llama_server", PROPS),
        ("llama_server", TEMPLATE),
        ("openai", CHAT),
        ("openai", MODELS),
    ],
)
def test_no_route_follows_a_redirect(
    kind: str, route: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", "sk-very-secret-key")
    with ScriptedServer() as server, ScriptedServer() as other:
        place = target.format(other=f"127.0.0.1:{other.port}")
        server.on(CHAT, Reply(answer_body("{}")))
        server.on(route, Reply(b"root:x:0:0", 307, {"Location": place}))
        backend = {"kind": kind, "base_url": server.base_url, "api_key_env": "THE_KEY"}
        config = write_config(Path("c.yaml"), backend=backend)
        scenario = write_scenario(Path("s.yaml"), [llm(max_retries=0)])
        swarm("run", scenario, *BATCH, "--inference-config", config, "-q")
        assert other.seen == []
    for file in Path("run").rglob("*"):
        assert b"root:x:0:0" not in file.read_bytes(), file


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:1/\r\nX-Evil: 1", "http://127.0.0.1:1/v1\r\nHost: evil", "http://a\x00b/v1"],
)
def test_an_address_that_holds_header_lines_is_refused(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = write_scenario(Path("s.yaml"), [llm()])
    config = write_config(Path("c.yaml"), backend={"kind": "llama_server", "base_url": address})
    assert swarm("run", scenario, *BATCH, "--inference-config", config) == 2
    assert "base_url" in capsys.readouterr().err


def test_a_key_that_holds_header_lines_is_refused_and_not_quoted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THE_KEY", "sk-secret\r\nX-Evil: 1")
    backend = {"kind": "llama_server", "api_key_env": "THE_KEY"}
    config = write_config(Path("c.yaml"), backend=backend)
    scenario = write_scenario(Path("s.yaml"), [llm()])
    assert swarm("run", scenario, *BATCH, "--inference-config", config) == 2
    said = capsys.readouterr().err
    assert "no HTTP header holds" in said
    assert "secret" not in said


ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e[red]x[/red]"


@pytest.mark.parametrize("where", ["error", "answer", "model"])
def test_what_a_server_says_does_not_act_on_the_terminal(
    where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer() as server:
        says = {"action_type": "POST", "reasoning": ESCAPES, "content": ESCAPES}
        server.on(CHAT, Reply(answer_body(json.dumps(says), reasoning_content=ESCAPES)))
        if where == "error":
            server.on(CHAT, Reply(error_body(400, f"bad {ESCAPES}", ESCAPES), 400))
        if where == "model":
            server.on(PROPS, Reply(props_body(model_alias=ESCAPES, build_info=ESCAPES)))
        backend = {"kind": "llama_server", "base_url": server.base_url}
        config = write_config(Path("c.yaml"), backend=backend)
        name = "another" if where == "model" else "demo"
        scenario = write_scenario(Path("s.yaml"), [llm(model=name)])
        swarm("run", scenario, *BATCH, "--inference-config", config)
    said = capfd.readouterr()
    assert said.out + said.err
    for character in "\x1b\x07\x9b\u202e":
        assert character not in said.out + said.err
    if where == "error":
        assert "[red]x[/red]" in said.err


@pytest.mark.skipif(os.name != "posix", reason="other systems keep permissions elsewhere")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o601])
def test_a_key_file_that_others_may_use_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-very-secret-key\n")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"mode {mode:o}.*chmod 600") as raised:
        fleet(tmp_path, [llm()], kind="llama_server", api_key_file=str(path))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"", b"two keys", b"a\nb\n", b"\xff\xfe-secret", b"secret" * 1000]
)
def test_a_key_file_that_holds_no_key_is_refused_and_not_quoted(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="does not hold one key") as raised:
        fleet(tmp_path, [llm()], kind="llama_server", api_key_file=str(path))
    assert "secret" not in str(raised.value)


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-such-key"):
        fleet(tmp_path, [llm()], kind="llama_server", api_key_file=str(tmp_path / "no-such-key"))


def test_a_key_from_a_file_is_sent_and_written_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "key"
    path.write_text("sk-very-secret-key\n")
    path.chmod(0o600)
    noop = '{"action_type": "NOOP", "reasoning": ""}'
    with ScriptedServer() as server:
        server.on(CHAT, Reply(answer_body(noop)))
        backend = {
            "kind": "llama_server",
            "base_url": server.base_url,
            "api_key_file": str(path),
        }
        config = write_config(Path("c.yaml"), backend=backend)
        scenario = write_scenario(Path("s.yaml"), [llm()])
        assert swarm("run", scenario, *BATCH, "--inference-config", config) == 0
        sent = server.requests(CHAT)[0].headers["authorization"]
    assert sent == "Bearer sk-very-secret-key"
    captured = capsys.readouterr()
    assert "very-secret" not in captured.out + captured.err
    for file in Path("run").rglob("*"):
        assert b"very-secret" not in file.read_bytes(), file


def replace_scenario(change: dict[str, Any]) -> None:
    """Give the published run's copy another scenario, with a manifest that fits it."""
    path = Path("run") / SCENARIO
    data = {**yaml.safe_load(path.read_text("utf-8")), **change}
    path.write_text(yaml.safe_dump(data), "utf-8")
    facts = manifest(Path("run"))
    facts["copies"][SCENARIO] = sha256(path.read_bytes()).hexdigest()
    (Path("run") / MANIFEST).write_text(json.dumps(facts), "utf-8")


@pytest.fixture
def published() -> None:
    shutil.copytree(PUBLISHED, Path("run"))


@pytest.mark.usefixtures("published")
def test_a_strangers_run_that_starts_a_program_is_not_replayed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = "touch owned"
    replace_scenario(
        {"awm": {"enabled": True, "live_mode": True, "server_command_template": command}}
    )
    assert commands.main(["replay", "run"]) == 2
    said = capsys.readouterr().err
    assert "awm.live_mode" in said
    assert "--trust-scenario" in said
    assert not Path("owned").exists()


@pytest.mark.usefixtures("published")
def test_a_strangers_run_that_calls_a_server_is_not_replayed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    replace_scenario({"letta": {"enabled": True, "base_url": "http://127.0.0.1:1"}})
    assert commands.main(["replay", "run"]) == 2
    assert "letta" in capsys.readouterr().err


@pytest.mark.usefixtures("published")
def test_a_strangers_manifest_can_not_name_files_outside(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("outside").write_text("mine")
    facts = manifest(Path("run"))
    digest = sha256(b"mine").hexdigest()
    facts["copies"] = {CONFIGURATION: facts["copies"][CONFIGURATION], "../outside": digest}
    (Path("run") / MANIFEST).write_text(json.dumps(facts), "utf-8")
    assert commands.main(["replay", "run"]) == 1
    assert "names other files" in capsys.readouterr().err


@pytest.mark.usefixtures("published")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("file", [SCENARIO, CONFIGURATION])
def test_a_strangers_run_that_holds_a_bomb_is_refused(
    file: str, bomb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("run") / file
    path.write_text(BOMBS[bomb], "utf-8")
    facts = manifest(Path("run"))
    facts["copies"][file] = sha256(path.read_bytes()).hexdigest()
    (Path("run") / MANIFEST).write_text(json.dumps(facts), "utf-8")
    assert commands.main(["replay", "run"]) == 2
    assert "is not YAML" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    "name",
    [
        *("transcript.jsonl", "inference.jsonl", "journal.sqlite3", "metrics.json"),
        *(".manifest.json.part", "configuration.yaml", "server.log", "journal.sqlite3-wal"),
    ],
)
def test_going_on_in_a_strangers_run_writes_through_no_link(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine").write_text("mine")
    config = shutil.copy(Path("run") / CONFIGURATION, "c.yaml")
    link = Path("run") / name
    link.unlink(missing_ok=True)
    link.symlink_to(Path("mine").absolute())
    words = [*BATCH, "--resume", "--inference-config", config]
    assert swarm("run", Path("run") / SCENARIO, *words) == 2
    assert f"{link} is a link" in capsys.readouterr().err
    assert Path("mine").read_text() == "mine"


@pytest.mark.usefixtures("published")
def test_a_replay_writes_nothing_into_the_run_or_beside_it() -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        files = [path for path in Path().rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = state()
    assert commands.main(["replay", "run"]) == 0
    assert state() == before


def test_each_test_that_the_security_document_names_exists() -> None:
    text = (ROOT / "docs" / "security.md").read_text("utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 20
    for file, test in named:
        source = (ROOT / file).read_text("utf-8")
        assert re.search(rf"^(async )?def {test}\(", source, re.MULTILINE), f"{file}::{test}"
