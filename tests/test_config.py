"""Every bad value is one error that names key, value and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scheduler.config import (
    BackendConfig,
    FakeConfig,
    LoggingConfig,
    SchedulerConfig,
    Section,
    load_config,
)
from scheduler.errors import ConfigError


class Whole(Section):
    """A configuration file as a user of the scheduler would have it."""

    scheduler: SchedulerConfig = SchedulerConfig()
    backend: BackendConfig = BackendConfig()
    logging: LoggingConfig = LoggingConfig()


def load(**overrides: Any) -> Whole:
    """Load without a file; `__` in a name stands for a dot."""
    return load_config(
        Whole, None, {key.replace("__", "."): value for key, value in overrides.items()}
    )


BAD = [
    ("scheduler.max_batch", 0, "greater than or equal to 1"),
    ("scheduler.max_batch", "16", "valid integer"),
    ("scheduler.max_batch", 2.5, "valid integer"),
    ("scheduler.max_batch", True, "valid integer"),
    ("scheduler.slots", "many", "'auto'"),
    ("scheduler.slots", 0, "greater than or equal to 1"),
    ("scheduler.slots", -4, "'auto'"),
    ("scheduler.slots", False, "valid integer"),
    ("scheduler.on_failure", "ignore", "'abort' or 'noop'"),
    ("scheduler.structured_output", "yes", "valid boolean"),
    ("scheduler.max_reasks", -1, "greater than or equal to 0"),
    ("scheduler.max_reasks", 11, "less than or equal to 10"),
    ("scheduler.retry_budget", -1, "greater than or equal to 0"),
    ("scheduler.retry_base_s", 0, "greater than 0"),
    ("scheduler.retry_base_s", float("nan"), "finite number"),
    ("scheduler.retry_cap_s", float("inf"), "finite number"),
    ("scheduler.retry_cap_s", "30", "valid number"),
    ("scheduler.queue_limit", 0, "greater than or equal to 1"),
    ("backend.kind", "gpt", "'auto', 'llama_server'"),
    ("backend.base_url", "localhost:8080", "http or https address"),
    ("backend.base_url", "ftp://host/v1", "http or https address"),
    ("backend.base_url", "http://", "http or https address"),
    ("backend.base_url", 8080, "valid string"),
    ("backend.managed", 1, "valid boolean"),
    ("backend.model_path", "../m.gguf", "must not contain '..'"),
    ("backend.model_path", "models/m.bin", "must name a .gguf file"),
    ("backend.model_path", 3, "path"),
    ("backend.n_gpu_layers", -1, "greater than or equal to 0"),
    ("backend.threads", 0, "greater than or equal to 1"),
    ("backend.context_per_slot", 0, "greater than or equal to 1"),
    ("backend.ready_timeout_s", -1.0, "greater than 0"),
    ("backend.openai.slots", 0, "greater than or equal to 1"),
    ("backend.openai.slots", "all", "'auto'"),
    ("backend.openai.context_per_slot", -1, "greater than or equal to 1"),
    ("backend.openai.requests_per_minute", 0, "greater than or equal to 1"),
    ("backend.openai.send_seed", "no", "valid boolean"),
    ("backend.openai.send_schema", "maybe", "'auto', 'always' or 'never'"),
    ("backend.fake.slots", 0, "greater than or equal to 1"),
    ("backend.fake.latency_s", -0.1, "greater than or equal to 0"),
    ("logging.prompts", "no", "valid boolean"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), BAD)
def test_a_bad_value_is_named_with_its_key(key: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Whole, None, {key: value})
    message = str(caught.value)
    assert message.startswith(f"the command line: {key} = {value!r}: ")
    assert allowed in message
    assert "constrained" not in message


@pytest.mark.parametrize(
    ("key", "unknown", "known"),
    [
        ("nope", "nope", "backend, logging, scheduler"),
        ("scheduler.slot", "scheduler.slot", "max_batch"),
        ("backend.fake.delay", "backend.fake.delay", "context_per_slot, fault_rate, latency_s"),
        ("logging.level", "logging.level", "format, prompts"),
    ],
)
def test_an_unknown_key_is_named_with_those_there_are(key: str, unknown: str, known: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Whole, None, {key: 1})
    assert f"unknown key {unknown!r} (known here: " in str(caught.value)
    assert known in str(caught.value)


def test_an_unknown_key_of_an_optional_section_is_named_too() -> None:
    class Optional(Section):
        fake: FakeConfig | None = None

    with pytest.raises(ConfigError, match=r"'fake\.x' \(known here: context_per_slot, fau"):
        load_config(Optional, None, {"fake.x": 1})


def test_a_file_that_is_no_yaml_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("scheduler: [", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"c\.yaml is not YAML: .* line \d") as caught:
        load_config(Whole, path, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"backend__managed": True}, "managed: true needs kind: llama_server"),
        (
            {"backend__managed": True, "backend__kind": "llama_server"},
            "managed: true needs model_path",
        ),
        (
            {"backend__kind": "llama_server", "backend__engine": "batched"},
            "engine is for a model in this process",
        ),
        (
            {"backend__kind": "fake", "backend__flash_attention": False},
            "flash_attention is for a model in this process",
        ),
    ],
)
def test_impossible_combinations_are_refused(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"backend: {words}"):
        load(**overrides)


def test_all_bad_values_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load(scheduler__max_batch=0, backend__kind="x", scheduler__nope=1)
    assert all(
        key in str(caught.value)
        for key in ("scheduler.max_batch", "backend.kind", "scheduler.nope")
    )


def test_command_line_beats_file_beats_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("scheduler: {slots: 4, max_batch: 8}\nbackend:\n  model_path: a/b.gguf\n")
    config = load_config(Whole, path, {"scheduler.slots": 2, "scheduler.max_batch": None})
    assert config.scheduler.slots == 2
    assert config.scheduler.max_batch == 8
    assert config.scheduler.on_failure == "abort"
    assert config.backend.model_path == Path("a/b.gguf")


def test_whole_numbers_are_seconds_too(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("scheduler: {retry_base_s: 1}\nbackend: {base_url: https://h/v1/}")
    config = load_config(Whole, path, {})
    assert config.scheduler.retry_base_s == 1.0
    assert config.backend.base_url == "https://h/v1"


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("# nothing\n")
    assert load_config(Whole, path, {}) == Whole()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"scheduler: [", "is not YAML"),
        (b"- a\n- b\n", "must be a mapping with keys such as scheduler:"),
        (b"\xff\xfe\xfd", "can't be read"),
        (b"scheduler:\n", "scheduler = None: "),
        (b"scheduler: 3\n", "scheduler = 3: "),
        (b"1: 2\n", "'?1'?"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(Whole, path, {})
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml can't be read"):
        load_config(Whole, tmp_path / "none.yaml", {})


def test_an_override_into_a_value_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("scheduler: 3\n")
    with pytest.raises(ConfigError, match="scheduler must be a mapping, got 3"):
        load_config(Whole, path, {"scheduler.slots": 3})


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SchedulerConfig().slots = 3  # type: ignore[misc] # what the test is about
