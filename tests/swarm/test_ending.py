"""How `swarm-inference` ends: messages of a few lines, exit codes, help texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.errors import BackendUnavailable, ConfigError, SchedulerError, ServerError
from swarm_integration.command_options import DEFAULT_PORT
from swarm_integration.commands import _parser, main
from swarm_integration.complaint import complaint
from swarm_integration.ending import guarded


@pytest.mark.parametrize(
    ("message", "what", "why", "advice"),
    [
        (
            "model m.gguf is cut off: its header needs 2 bytes, the file has 1; download it again",
            "model m.gguf is cut off",
            "its header needs 2 bytes, the file has 1",
            "download it again",
        ),
        (
            "no llama-server could be reached at http://h:1/v1 within 2.1 s: start one with `x`",
            "no llama-server could be reached at http://h:1/v1 within 2.1 s",
            "",
            "start one with `x`",
        ),
        (
            "can't listen on 127.0.0.1:8080 (Address already in use); stop what uses it, or take "
            "another port (0 picks a free one).",
            "can't listen on 127.0.0.1:8080",
            "Address already in use",
            "stop what uses it, or take another port (0 picks a free one)",
        ),
        (
            "run directory runs/a exists already. Go on in it with --resume, or give another one",
            "run directory runs/a exists already",
            "",
            "go on in it with --resume, or give another one",
        ),
        ("something is wrong", "something is wrong", "", ""),
        (
            "llm_1: no answer in 30 s (raise the agent's timeout, or lower its slots). 0 of 1 came",
            "llm_1",
            "no answer in 30 s (raise the agent's timeout, or lower its slots). 0 of 1 came",
            "",
        ),
        (
            "p must be a list, as [{'type': 'llm', 'count': 3}] is; got 1",
            "p must be a list, as [{'type': 'llm', 'count': 3}] is; got 1",
            "",
            "",
        ),
        ("f.yaml: name = 5: no text", "f.yaml", "name = 5: no text", ""),
    ],
)
def test_error_is_told_as_what_why_and_what_to_type(
    message: str, what: str, why: str, advice: str
) -> None:
    lines = [f"error: {what}"]
    lines += [f"  why:  {why}"] if why else []
    lines += [f"  type: {advice}"] if advice else []
    assert complaint(ConfigError(message)).splitlines() == lines


def test_nothing_of_a_message_is_lost() -> None:
    message = "one: two, three (four); five. Set six: seven; eight"
    said = complaint(ConfigError(message)).lower()
    for word in ("one", "two", "three", "four", "five", "set six", "seven", "eight"):
        assert word in said


def test_reason_of_the_system_is_the_why_where_the_message_has_none() -> None:
    error = ServerError("the log can't be written")
    error.__cause__ = OSError(28, "No space left on device")
    assert "  why:  No space left on device" in complaint(error).splitlines()
    error = ServerError("the server is gone. Start it")
    error.__cause__ = ServerError("the server is gone. Start it")
    assert complaint(error).splitlines() == ["error: the server is gone", "  type: start it"]
    error.__cause__ = KeyError("internals")
    assert "internals" not in complaint(error)


def test_end_of_a_log_stays_under_the_message() -> None:
    text = complaint(ServerError("it ended: status 1. See the log\nThe end of a.log:\n  boom"))
    assert text.splitlines()[-2:] == ["The end of a.log:", "  boom"]


def test_error_without_advice_names_the_help() -> None:
    text = complaint(ConfigError("slots is 0"), help_command="swarm-inference serve --help")
    assert text.splitlines()[-1] == "  type: swarm-inference serve --help"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("c"), 2),
        (BackendUnavailable("b"), 1),
        (PermissionError(13, "Permission denied", "runs"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise error

    assert guarded(fail) == code
    assert "Traceback" not in capsys.readouterr().err


def test_debug_lets_the_error_through_and_bugs_always_come_through() -> None:
    def fail(error: Exception) -> int:
        raise error

    with pytest.raises(SchedulerError):
        guarded(lambda: fail(ConfigError("c")), debug=True)
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: fail(ZeroDivisionError()))


REFUSED = [
    ["serve", "--model", "none.gguf"],
    ["serve", "--model", "text.gguf"],
    ["serve", "--model", "."],
    ["serve", "--model", "text.gguf", "--port", "99999"],
    ["make-model", "--output", "nowhere/m.gguf"],
    ["make-model", "--output", "."],
    ["make-model", "--output", "text.gguf"],
    ["replay", "nothing"],
    ["replay", "text.gguf"],
]


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_every_refusal_says_what_and_what_to_type(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.gguf").write_text("no model", encoding="utf-8")
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[0].startswith("error: ")
    assert lines[-1].startswith("  type: ")
    assert len(lines) in (2, 3)
    with pytest.raises(ConfigError):
        main([*words, "--debug"])


def subcommands() -> list[str]:
    [group] = [one for one in _parser()._actions if one.dest == "command"]
    assert group.choices is not None
    return list(group.choices)


@pytest.mark.parametrize("name", subcommands())
def test_help_of_every_command_shows_an_example_that_parses(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = capsys.readouterr().out
    lines = [line.strip() for line in text.partition("examples:")[2].splitlines()]
    shown = [line for line in lines if line.startswith("swarm-inference ")]
    assert shown
    for line in shown:
        assert _parser().parse_args(line.split()[1:]).command == name


def test_help_without_a_command_lists_all_and_says_how_to_run_a_simulation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"    {name}" in text for name in subcommands())
    assert "swarm run SCENARIO" in text
    assert DEFAULT_PORT == 8080
