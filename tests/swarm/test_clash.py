"""Who has the import name `scheduler`, where it is not us; the packages are real, but empty."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from swarm_integration.clash import find_clash

OURS = "swarm-inference-scheduler"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that comes first, with one that looks like ours."""
    folder = tmp_path / "site"
    put_package(folder)
    monkeypatch.syspath_prepend(folder)
    return folder


def put_package(folder: Path) -> None:
    (folder / "scheduler").mkdir(parents=True)
    for name in ("__init__.py", "engine.py"):
        (folder / "scheduler" / name).touch()


def put_distribution(folder: Path, name: str, *files: str) -> None:
    about = folder / f"{name.replace('-', '_')}-0.8.11.dist-info"
    about.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.8.11\n"
    (about / "METADATA").write_text(metadata, encoding="utf-8")
    (about / "RECORD").write_text("".join(f"{file},,\n" for file in files), encoding="utf-8")


def test_a_package_that_wrote_over_ours_is_found_by_a_thorough_look_alone(site: Path) -> None:
    put_distribution(site, "another-scheduler", "scheduler/__init__.py", "readme.txt")
    assert find_clash(root=site) is None
    clash = find_clash(root=site, thorough=True)
    assert clash is not None
    assert clash.what == (
        f"the package another-scheduler has installed its files over those of {OURS}"
    )
    assert str(site / "scheduler/__init__.py") in clash.why
    assert "pip uninstall another-scheduler" in clash.mend
    assert f"pip install --force-reinstall --no-deps {OURS}" in clash.mend


def test_our_own_distribution_and_those_elsewhere_are_no_clash(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_distribution(site, OURS, "scheduler/__init__.py")
    put_distribution(site, "schedulers", "schedulers/__init__.py", "scheduler.txt")
    other = tmp_path / "elsewhere"
    other.mkdir()
    put_distribution(other, "another-scheduler", "scheduler/__init__.py")
    monkeypatch.setattr(sys, "path", [*sys.path, str(other)])
    assert find_clash(root=site, thorough=True) is None


def test_a_package_without_our_files_is_not_complete(site: Path) -> None:
    (site / "scheduler/engine.py").unlink()
    clash = find_clash(root=site)
    assert clash is not None
    assert "is not where it belongs" in clash.what
    assert str(site / "scheduler") in clash.what
    assert str(clash).splitlines()[1:] == [
        "  why:  the installation is not complete",
        f"  type: {sys.executable} -m pip install --force-reinstall --no-deps {OURS}",
    ]


def test_a_folder_in_the_way_is_told_from_a_path_that_is_searched_first(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clash = find_clash(root=tmp_path / "ours")
    assert clash is not None
    assert f"Python looks in {site} before {tmp_path / 'ours'}; PYTHONPATH" in clash.why
    assert f"rename {site / 'scheduler'}" in clash.mend
    monkeypatch.chdir(site)
    clash = find_clash(root=tmp_path / "ours")
    assert clash is not None
    assert "the folder in which you typed the command" in clash.why
    assert clash.mend.startswith("mv scheduler another_name")


class Finder:
    """What an editable installation may add, to find packages that are on no path."""

    def __init__(self, spec: Callable[[], ModuleSpec | None]) -> None:
        self._spec = spec

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return self._spec() if name == "scheduler" else None


def editable(folder: Path) -> ModuleSpec:
    return ModuleSpec("scheduler", None, origin=str(folder / "scheduler/__init__.py"))


def test_an_editable_installation_that_is_on_no_path_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    put_package(ours)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "nothing")])
    knows_no_place = Finder(lambda: ModuleSpec("scheduler", None))
    finders = [*sys.meta_path, Finder(lambda: None), knows_no_place]
    monkeypatch.setattr(sys, "meta_path", [*finders, Finder(lambda: editable(ours))])
    assert find_clash(root=ours) is None
    monkeypatch.setattr(sys, "meta_path", [*finders, Finder(lambda: editable(other))])
    clash = find_clash(root=ours)
    assert clash is not None
    assert f"gives {other / 'scheduler'}, not" in clash.what


def test_a_name_that_nobody_has_is_an_incomplete_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_package(tmp_path)
    monkeypatch.setattr(sys, "path", [])
    clash = find_clash(root=tmp_path)
    assert clash is not None
    assert clash.why == "the installation is not complete"
