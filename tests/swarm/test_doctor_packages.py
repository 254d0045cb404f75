"""What the doctor says of packages and scripts, as their metadata and contents have it."""

from __future__ import annotations

import os
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from swarm_integration.doctor.findings import Finding
from swarm_integration.doctor.packages import (
    OURS,
    check_import_name,
    check_llama_cpp,
    check_script,
    check_versions,
    owner_of,
    reinstall,
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="scripts of POSIX")
OUR_LINE = "from swarm_integration.cli import main\n"
OUR_OTHER_LINE = "from swarm_integration.commands import main\n"
UPSTREAM_LINE = "from swarm.__main__ import main\n"

Put = Callable[..., Path]


@pytest.fixture
def put_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Puts the metadata of a package where Python looks first."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def put(name: str, version: str, *requires: str, **files: str) -> Path:
        about = site / f"{name.replace('-', '_')}-{version}.dist-info"
        about.mkdir()
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requires)]
        text = "\n".join(["Metadata-Version: 2.1", *lines, ""])
        (about / "METADATA").write_text(text, encoding="utf-8")
        for stem, content in files.items():
            (about / f"{stem}.json").write_text(content, encoding="utf-8")
        return site

    return put


@pytest.fixture
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path on which no package is."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "nothing")])


def one(findings: object, check: str) -> Finding:
    [found] = [each for each in findings if each.check == check]  # type: ignore[attr-defined]
    assert isinstance(found, Finding)
    return found


# Versions


def test_a_package_that_is_too_old_or_missing_is_an_error_with_what_mends_it(
    put_distribution: Put,
) -> None:
    put_distribution(OURS, "9.9", "anyio >= 4.8", "not-there>=2", "rich>=1; extra == 'demo'", "x")
    put_distribution("anyio", "4.7.1")
    found = list(check_versions())
    assert one(found, OURS).says == "9.9"
    old, missing = one(found, "anyio"), one(found, "not-there")
    assert (old.level, old.says) == ("error", "4.7.1, but 4.8 is the least")
    assert old.mend.endswith('pip install "anyio>=4.8"')
    assert (missing.level, missing.says) == ("error", "not installed")
    assert missing.facts == {"version": None, "least": "2"}
    assert not {"rich", "x"} & {each.check for each in found}


@pytest.mark.parametrize(
    ("version", "level"),
    [("4.8", "ok"), ("4.8.0", "ok"), ("4.10", "ok"), ("5.0+cpu.1", "ok"), ("4.7+9", "error")],
)
def test_versions_are_compared_by_their_numbers(
    version: str, level: str, put_distribution: Put
) -> None:
    put_distribution(OURS, "9.9", "anyio>=4.8")
    put_distribution("anyio", version)
    assert one(check_versions(), "anyio").level == level


@pytest.mark.usefixtures("nothing_installed")
def test_where_nothing_is_installed_each_thing_says_how_to_get_it() -> None:
    found = list(check_versions())
    assert [each.check for each in found] == ["python", OURS, "swarm-safety", "xllamacpp"]
    levels = {each.check: each.level for each in found}
    assert levels == {"python": "ok", OURS: "warning", "swarm-safety": "error", "xllamacpp": "ok"}
    assert one(found, OURS).mend.endswith("pip install -e .")
    assert one(found, "swarm-safety").mend.endswith(f'pip install "{OURS}[swarm]"')
    assert reinstall() == f"install --force-reinstall --no-deps {OURS}"


@pytest.mark.parametrize(
    ("origin", "source"),
    [
        ("{}", OURS),
        ("not JSON", OURS),
        ('{"url": "https://example.org/a.whl"}', '"https://example.org/a.whl"'),
        ('{"url": "file:///a%20b", "dir_info": {}}', '"/a b"'),
        ('{"url": "file:///a%20b", "dir_info": {"editable": true}}', '-e "/a b"'),
    ],
)
@posix
def test_what_is_installed_again_comes_from_where_it_came_from(
    origin: str, source: str, put_distribution: Put
) -> None:
    put_distribution(OURS, "9.9", direct_url=origin)
    assert reinstall() == f"install --force-reinstall --no-deps {source}"


# llama-cpp-python


@pytest.mark.usefixtures("nothing_installed")
def test_the_missing_library_is_an_error_only_where_it_is_needed() -> None:
    needed, unneeded = check_llama_cpp(needed=True), check_llama_cpp(needed=False)
    assert (needed.level, unneeded.level) == ("error", "ok")
    assert needed.mend.endswith(f'pip install "{OURS}[llama-cpp]"')
    assert unneeded.mend == ""


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise ImportError('libgomp.so.1 is missing')", "libgomp.so.1 is missing"),
        ("import sys; sys.exit(3)", "no reason given"),
        (
            f"import os; os.kill(os.getpid(), {int(signal.SIGTERM)})",
            f"it ends the process (signal {int(signal.SIGTERM)})",
        ),
    ],
    ids=["error", "silent", "signal"],
)
@posix
def test_a_library_that_can_not_be_imported_says_why(
    code: str, says: str, put_distribution: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = put_distribution("llama-cpp-python", "0.0.9")
    (site / "llama_cpp.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(site))
    found = check_llama_cpp(needed=True)
    assert (found.level, found.facts["works"]) == ("error", False)
    assert "0.0.9 can't be imported" in found.says
    assert says in found.says
    assert "--force-reinstall" in found.mend
    assert check_llama_cpp(needed=False).level == "warning"
    untried = check_llama_cpp(needed=False, tried=False)
    assert (untried.level, untried.says) == ("ok", "0.0.9, which this scenario does not need")


def test_without_a_python_to_try_it_in_the_library_is_no_use(
    put_distribution: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_distribution("llama-cpp-python", "0.0.9")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "/nowhere/python" in check_llama_cpp(needed=True).says


# The import name and the script


@posix
def test_another_package_in_our_place_is_told_with_its_reason(
    put_distribution: Put,
) -> None:
    site = put_distribution("other", "1.0")
    (site / "scheduler.py").touch()
    found = check_import_name()
    assert found.level == "error"
    assert f"gives {site / 'scheduler.py'}, not {OURS}; Python looks in" in found.says
    assert "unset PYTHONPATH" in found.mend


def launcher(path: Path, name: str, content: str) -> Path:
    """A script as Windows has it: a program with an archive at its end."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    path.write_bytes(b"MZ" + path.read_bytes())
    return path


def test_a_launcher_belongs_to_whose_program_is_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "swarm.exe"
    assert owner_of(launcher(path, "__main__.py", OUR_LINE)) == OURS
    assert owner_of(launcher(path, "__main__.py", UPSTREAM_LINE)) == "swarm-safety"
    assert owner_of(launcher(path, "other.py", OUR_LINE)) == "another package"


@posix
def test_a_script_belongs_to_whom_it_imports(tmp_path: Path) -> None:
    path = tmp_path / "swarm"
    assert owner_of(path) == ""
    for content, owner in (
        (OUR_LINE, OURS),
        (UPSTREAM_LINE, "swarm-safety"),
        ("#!/bin/sh\n", "another package"),
    ):
        path.write_text(content, encoding="utf-8")
        assert owner_of(path) == owner


@posix
@pytest.mark.parametrize(
    ("script", "model", "owner", "fixable"),
    [
        (None, OUR_OTHER_LINE, "", True),
        (UPSTREAM_LINE, OUR_OTHER_LINE, "swarm-safety", True),
        (UPSTREAM_LINE, None, "swarm-safety", False),
        (UPSTREAM_LINE, "exec python -m swarm_integration.commands\n", "swarm-safety", False),
        ("#!/bin/sh\n", OUR_OTHER_LINE, "another package", False),
    ],
)
def test_a_script_is_mended_by_the_model_of_the_one_beside_it(
    script: str | None, model: str | None, owner: str, fixable: bool, tmp_path: Path
) -> None:
    for name, content in (("swarm", script), ("swarm-inference", model)):
        if content is not None:
            (tmp_path / name).write_text(content, encoding="utf-8")
            (tmp_path / name).chmod(0o750)
    [found] = check_script(tmp_path, str(tmp_path))
    assert (found.level, found.facts["owner"]) == ("error", owner)
    assert (found.repair is not None) == fixable
    if found.repair is None:
        assert "pip install --force-reinstall --no-deps" in found.mend
        return
    assert found.mend == "swarm-inference doctor --fix"
    assert "no package was changed" in found.repair.act()
    assert owner_of(tmp_path / "swarm") == OURS
    assert os.access(tmp_path / "swarm", os.X_OK)
    assert {path.name for path in tmp_path.iterdir()} == {"swarm", "swarm-inference"}


@posix
@pytest.mark.parametrize("activate", [True, False])
def test_a_script_that_is_not_on_the_path_is_a_warning(activate: bool, tmp_path: Path) -> None:
    (tmp_path / "swarm").write_text(OUR_LINE, encoding="utf-8")
    (tmp_path / "swarm").chmod(0o755)
    if activate:
        (tmp_path / "activate").touch()
    ok, warning = check_script(tmp_path, str(tmp_path / "elsewhere"))
    assert (ok.level, warning.level) == ("ok", "warning")
    assert f"{tmp_path} is not on PATH" in warning.says
    export = f'export PATH="{tmp_path}:$PATH"'
    assert warning.mend == (f"source {tmp_path / 'activate'}" if activate else export)
