"""What the documents tell a reader to type exists: files, commands, options, YAML."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from swarm_integration.cli import our_options, sweep_options
from swarm_integration.commands import _parser

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SETUP = "./scripts/llama-server-setup.sh"
FOLDERS = "benchmarks|configs|docs|examples|scenarios|scheduler|scripts|swarm_integration|tests"

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
_PATH = re.compile(rf"(?<![\w/.-])(?:\./)?((?:{FOLDERS})/[\w./-]*\w)")
_PROGRAMS = ("swarm", "swarm-inference", "python", SETUP, "./scripts/demo.sh", "./scripts/test.sh")


def blocks(document: Path) -> list[tuple[str, str]]:
    """Return language and text of each code block."""
    text = document.read_text(encoding="utf-8")
    return [(match[1], match[2]) for match in _FENCE.finditer(text)]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield each command line of the code blocks, with the document's name."""
    for document in DOCUMENTS:
        for language, text in blocks(document):
            if language not in ("", "bash", "sh"):
                continue
            for line in text.replace("\\\n", " ").splitlines():
                if line.strip().startswith(_PROGRAMS):
                    yield document.name, shlex.split(line, comments=True)


COMMANDS = [
    pytest.param(words, id=f"{name}: {' '.join(words)}"[:100])
    for name, words in commands()
    if "..." not in words
]


def upstream_options() -> set[str]:
    """Return the options that SWARM's own `run` prints in its help."""
    command = [sys.executable, "-m", "swarm", "run", "--help"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text))


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    return dict(found[0].choices)


def options_of(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)}


def known_to_setup(words: list[str]) -> set[str]:
    text = (ROOT / SETUP).read_text(encoding="utf-8")
    assert re.search(rf"^{words[1]}\(\)|^    help", text, re.MULTILINE), words
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text))


@pytest.fixture(scope="session")
def of_upstream() -> set[str]:
    pytest.importorskip("swarm")
    return upstream_options()


def test_the_guide_names_commands() -> None:
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_and_options_exist(words: list[str], of_upstream: set[str]) -> None:
    program, rest = words[0], words[1:]
    if program == "python" and rest[0] == "-c":
        return
    if rest[:2] == ["-m", "swarm_integration"]:
        program, rest = "swarm", rest[2:]
    if program == "swarm":
        if rest[0] == "sweep":
            sweep_options().parse_args(rest[1:])
            return
        assert rest[0] in ("run", "list", "agents")
        _, unknown = our_options().parse_known_args(rest)
        assert options_of(unknown) <= of_upstream
    elif program == "swarm-inference":
        _parser().parse_args(rest)
    elif program == SETUP:
        assert rest[0] in ("download", "start", "stop", "status", "help")
        assert options_of(rest) <= known_to_setup(words)
    elif program == "python":
        source = (ROOT / rest[0]).read_text(encoding="utf-8")
        assert all(f'"{option}"' in source for option in options_of(rest) - {"--help"})
    else:
        assert (ROOT / program).is_file()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_in_code_blocks_exist(document: Path) -> None:
    text = "\n".join(text for _, text in blocks(document))
    missing = {path for path in _PATH.findall(text) if not (ROOT / path).exists()}
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text(encoding="utf-8"))
    assert not [link for link in links if not (document.parent / link).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_yaml_blocks_load(document: Path) -> None:
    for language, text in blocks(document):
        if language in ("yaml", "yml"):
            assert isinstance(yaml.safe_load(text), dict)


def test_commands_document_names_every_option() -> None:
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    parsers = [our_options(), sweep_options(), *subcommands(_parser()).values()]
    options = {word for one in parsers for action in one._actions for word in action.option_strings}
    missing = {word for word in options - {"-h", "--help"} if f"`{word}" not in text}
    assert not missing


def test_commands_document_names_every_command_script_and_benchmark() -> None:
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    files = [*(ROOT / "scripts").glob("*.*"), *(ROOT / "benchmarks").glob("*.py")]
    names = {f"{path.parent.name}/{path.name}" for path in files}
    names |= {f"### {name}\n" for name in subcommands(_parser())}
    assert not {name for name in names if name not in text}


def with_option_b() -> str:
    """Return the example scenario with Option B in the place of Option A."""
    text = (ROOT / "scenarios/llm_llama_cpp.yaml").read_text(encoding="utf-8")
    head, rest = text.split("  # Option A")
    option_a, rest = rest.split("  # Option B")
    note, *lines = rest.splitlines()
    last = next(i for i, line in enumerate(lines) if not line.startswith("  # "))
    option_b = [line.replace("  # ", "  ", 1) for line in lines[:last]]
    assert "base_url" in option_a
    assert note
    return head + "\n".join([*option_b, *lines[last:]]) + "\n"


def test_option_b_of_the_scenario_is_the_plans(tmp_path: Path) -> None:
    loader = pytest.importorskip("swarm.scenarios.loader")
    path = tmp_path / "option_b.yaml"
    path.write_text(with_option_b(), encoding="utf-8")
    scenario = loader.load_scenario(path)
    agents = [one for one in loader.create_agents(scenario.agent_specs) if "llm" in one.agent_id]
    assert len(agents) == 3
    for agent in agents:
        config = agent.llm_config
        assert config.provider.value == "llama_cpp"
        assert config.model_path == "./models/Llama-3.2-3B-Instruct-Q4_K_M.gguf"
        assert (config.n_ctx, config.n_threads) == (4096, 8)
        assert (config.temperature, config.max_tokens) == (0.2, 512)
    [spec] = [one for one in scenario.agent_specs if one["type"] == "llm"]
    assert spec["llm"]["seed"] == 42


def test_option_b_keeps_all_but_the_place_of_the_model() -> None:
    before = yaml.safe_load((ROOT / "scenarios/llm_llama_cpp.yaml").read_text(encoding="utf-8"))
    after = yaml.safe_load(with_option_b())
    assert before["agents"][1:] == after["agents"][1:]
    assert {**before, "agents": []} == {**after, "agents": []}
