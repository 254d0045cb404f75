"""`swarm-inference certify`: the certificate, which runs quote it, and which must not."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scheduler.backends.base import BackendInfo
from scheduler.errors import ConfigError
from scheduler.gguf_models import ModelShape, write_model
from scheduler.server import ManagedServer, ServerSpec
from scheduler.verdict import Level
from swarm_integration import commands, quoting
from swarm_integration.certificates import (
    cache_directory,
    conditions_of,
    keep,
    kept,
    write,
)
from swarm_integration.config import InferenceConfig
from tests.swarm.simulations import NOOP, llm, manifest, swarm, write_config, write_scenario
from tests.wire.scripted_server import CHAT, Reply, ScriptedServer, answer_body

BATCH = ("--inference-scheduler", "batch")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    return tmp_path / "cache" / "swarm-inference" / "certificates"


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    return write_scenario(tmp_path / "s.yaml", [llm(2, persona="honest")], epochs=1, steps=1)


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    return write_config(tmp_path / "fake.yaml", backend={"kind": "fake", "fake": {"slots": 4}})


@pytest.fixture
def server() -> Any:
    with ScriptedServer() as scripted:
        scripted.on(CHAT, Reply(answer_body(NOOP)))
        yield scripted


def certify(*arguments: object) -> int:
    return commands.main(["certify", *map(str, arguments)])


def certified(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert certify("--quick", "--json", *arguments) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    return data


def quoted(scenario: Path, config: Path, name: str, *more: object) -> dict[str, Any]:
    words = ("run", scenario, *BATCH, "--inference-config", config, "--run-dir", name, *more)
    assert swarm(*words) == 0
    [quote] = manifest(Path(name))["determinism"]["backend"].values()
    found: dict[str, Any] = quote
    return found


def test_certificate_is_kept_and_written_where_asked(
    fake: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = certified(capsys, "--inference-config", fake, "--slots", 3, "--output", "out/c.json")
    assert (found["level"], found["slots"], found["trials"]) == ("invariant", 3, 2)
    assert found["answers"] == sum(one["answers"] for one in found["evidence"])
    in_cache, asked = Path(found["cache_file"]), Path("out/c.json")
    assert in_cache.parent == own_cache
    assert found["kept"]
    assert in_cache.read_bytes() == asked.read_bytes()
    assert [path.suffix for path in own_cache.iterdir()] == [".json"]
    assert kept(found["backend"]["fingerprint"])[0].level == "invariant"


def test_text_shows_verdict_and_evidence(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert certify("--quick", "--inference-config", fake) == 0
    out = capsys.readouterr().out
    assert "Verdict:  invariant: every prompt had one unique answer" in out
    assert out.count("1 / - / -") == 6
    assert "Compared: text\n" in out


def test_a_run_quotes_the_certificate_of_its_backend(
    scenario: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = certified(capsys, "--inference-config", fake)
    quote = quoted(scenario, fake, "run")
    assert (quote["level"], quote["source"]) == ("invariant", "certificate")
    assert quote["date"] == made["date"]
    out = capsys.readouterr().out
    assert "determinism      invariant: certified 2" in out


def test_the_command_that_an_uncertified_run_names_certifies_it(
    scenario: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = quoted(scenario, fake, "first")
    assert (first["level"], first["source"]) == ("not certified", None)
    assert f"not certified; measure it with: {first['command']}" in capsys.readouterr().out
    program, *words = shlex.split(first["command"])
    assert program == "swarm-inference"
    assert commands.main([*words, "--quick"]) == 0
    assert quoted(scenario, fake, "second")["level"] == "invariant"


def test_more_slots_than_certified_are_not_covered(
    scenario: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certified(capsys, "--inference-config", fake, "--slots", 2)
    assert quoted(scenario, fake, "two", "--slots", 2)["level"] == "invariant"
    assert quoted(scenario, fake, "one", "--slots", 1)["level"] == "invariant"
    three = quoted(scenario, fake, "three", "--slots", 3)
    assert three["level"] == "not certified"
    assert "only for up to 2 slots" in three["summary"]


def test_other_conditions_are_not_covered(
    scenario: Path,
    fake: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    certified(capsys, "--inference-config", fake)
    monkeypatch.setenv("GGML_CPU_TILED_MM", "0")
    quote = quoted(scenario, fake, "run")
    assert quote["level"] == "not certified"
    assert "its conditions (environment) are others" in quote["summary"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"format": 2}'])
def test_damaged_certificates_are_no_certificates(
    scenario: Path,
    fake: Path,
    own_cache: Path,
    content: bytes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = Path(certified(capsys, "--inference-config", fake)["cache_file"])
    path.write_bytes(content)
    (own_cache / f"{path.name[:64]}-directory.json").mkdir()
    assert quoted(scenario, fake, "run")["level"] == "not certified"
    certified(capsys, "--inference-config", fake)
    assert quoted(scenario, fake, "again")["level"] == "invariant"


def test_a_server_of_somebody_else_is_quoted_only_when_trusted(
    scenario: Path, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = {"kind": "llama_server", "base_url": server.base_url}
    config = write_config(Path("server.yaml"), backend=backend)
    made = certified(capsys, "--base-url", server.base_url)
    assert made["level"] == "invariant"
    assert "not started by this program" in made["conditions"]["server"]
    quote = quoted(scenario, config, "unsure")
    assert quote["level"] == "not certified"
    assert "determinism.trust_certificate" in quote["summary"]
    trusting = write_config(
        Path("trusting.yaml"), backend=backend, determinism={"trust_certificate": True}
    )
    assert quoted(scenario, trusting, "trusting")["level"] == "invariant"


def test_the_command_for_an_agents_own_server_names_its_address(server: ScriptedServer) -> None:
    block = {"provider": "llama_cpp", "base_url": server.base_url, "model": "demo"}
    scenario = write_scenario(Path("own.yaml"), [llm(1, **block)], epochs=1, steps=1)
    auto = write_config(Path("auto.yaml"), backend={"kind": "auto"})
    command = quoted(scenario, auto, "run")["command"]
    assert command.startswith(f"swarm-inference certify --base-url {server.base_url} --slots ")


def quote_of(info: BackendInfo) -> dict[str, Any]:
    config = InferenceConfig.model_validate({"backend": {"kind": "fake"}})
    return quoting.quotes({"default": info}, None, config, Path("r"))["default"]


def test_an_engines_own_calibration_is_quoted_and_marked() -> None:
    facts = {"calibration": {"level": "invariant"}, "n_threads": 2}
    info = BackendInfo("llama_inproc", 8, 2048, "m.gguf", facts=facts)
    quote = quote_of(info)
    assert (quote["level"], quote["source"]) == ("invariant", "calibration")
    assert "own calibration, not certified" in quote["summary"]
    assert "--context 2048 --threads 2 --slots 8" in quote["command"]
    unknown = replace(info, facts={**facts, "calibration": {"level": "perfect"}})
    assert quote_of(unknown)["level"] == "not certified"


def test_several_backends_have_one_line() -> None:
    one = {"level": "invariant", "summary": "invariant: certified"}
    assert quoting.line({"a": one, "b": one}) == "invariant: certified"
    other = {"level": "not certified", "summary": "x"}
    assert quoting.line({"a": one, "b": other}) == "a: invariant; b: not certified"
    assert quoting.line({}) == "no backend, so nothing to certify"


# What a certificate is bound to


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    write_model(path, ModelShape("tiny", layers=1, width=64, heads=2, kv_heads=2, ff_width=64))
    return path


def conditions(spec: ServerSpec, **environment: str) -> dict[str, Any]:
    server = ManagedServer(spec, log_path=Path("server.log"))
    server.environment = environment
    return conditions_of(BackendInfo("llama_server", spec.slots, spec.ctx_per_slot, "m"), server)


def test_conditions_of_a_server_of_ours_tell_what_decides_bits(model: Path) -> None:
    spec = ServerSpec(model, 4, 2048, threads=1, profile="invariant")
    ours = conditions(spec)
    moved = model.with_name("moved.gguf")
    moved.write_bytes(model.read_bytes())
    free = replace(spec, slots=9, ctx_per_slot=512, port=99, alias="a", model_path=moved)
    assert conditions(free) == ours
    assert conditions(replace(spec, profile="fast")) != ours
    assert conditions(replace(spec, threads=2)) != ours
    assert conditions(replace(spec, n_gpu_layers=3)) != ours
    forced = conditions(spec, GGML_CPU_TILED_MM_FORCE="1")
    assert forced["environment"] == {"GGML_CPU_TILED_MM_FORCE": "1"}
    assert forced != conditions(spec, GGML_CPU_TILED_MM="0")
    moved.write_bytes(model.read_bytes()[:-1] + b"x")
    assert conditions(free) != ours


def test_conditions_name_no_place_and_no_key(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_API_KEY", "secret-1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret-2")
    text = json.dumps(conditions(ServerSpec(model, 4, 2048, threads=1)))
    assert "secret" not in text
    assert str(model.parent) not in text


def test_a_relative_cache_directory_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert cache_directory().is_absolute()
    assert "here" not in cache_directory().parts


def test_a_certificate_that_cannot_be_written_leaves_nothing(
    fake: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = certified(capsys, "--inference-config", fake)
    [certificate] = kept(found["backend"]["fingerprint"])
    Path("file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="can't be written"):
        write(certificate, Path("file/c.json"))
    Path("folder").mkdir()
    with pytest.raises(ConfigError, match="can't be written"):
        write(certificate, Path("folder"))
    assert list(Path().glob("*.part")) == []


def test_a_quick_measurement_does_not_undo_a_thorough_one(
    fake: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = certified(capsys, "--inference-config", fake)
    [quick] = kept(found["backend"]["fingerprint"])
    more = {"answers": quick.answers + 1, "level": Level.ORDERED}
    thorough = quick.model_copy(update=more)
    assert keep(thorough)[1]
    assert not keep(quick)[1]
    assert kept(found["backend"]["fingerprint"]) == [thorough]
    assert certify("--quick", "--inference-config", fake) == 0
    assert "not kept: an earlier, longer measurement stays" in capsys.readouterr().out
    assert keep(thorough.model_copy(update={"level": Level.INVARIANT}))[1]
    assert keep(quick.model_copy(update={"level": Level.ORDERED}))[1]


# What is refused


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--base-url", "http://127.0.0.1:9/v1", "--model", "m.gguf"), "give one of them"),
        (("--inference-config", "fake.yaml", "--slots", "1,2"), "several numbers of slots"),
        (("--inference-config", "fake.yaml", "--slots", "9"), "scheduler.slots is 9"),
        (("--inference-config", "openai.yaml"), "backend.openai.model is not set"),
        (("--base-url", "http://127.0.0.1:9/v1"), "no llama-server could be reached"),
        (("--model", "none.gguf"), "none.gguf"),
        (("--inference-config", "fake.yaml", "--context", "200"), "holds 100 tokens"),
        (("--run", "none.yaml", "--inference-config", "fake.yaml"), "none.yaml is not a file"),
    ],
)
def test_what_cannot_be_certified_exits_2_in_a_few_lines(
    fake: Path, words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(Path("openai.yaml"), backend={"kind": "openai"})
    if "--context" in words:
        small = {"kind": "fake", "fake": {"context_per_slot": 100}}
        write_config(Path("fake.yaml"), backend=small)
    assert certify(*words) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 3


@pytest.mark.parametrize("words", [("--slots", "0"), ("--slots", "a"), ("--trials", "0")])
def test_numbers_that_are_none_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        certify(*words)
    assert caught.value.code == 2
