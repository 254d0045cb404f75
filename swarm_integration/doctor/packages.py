"""What is installed: versions, who owns the `swarm` script, who has the name `scheduler`.

Asks the metadata of installed packages; llama-cpp-python alone is imported, in a child,
because a library that was compiled for another processor ends the process that loads it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from swarm_integration.clash import find_clash
from swarm_integration.doctor.findings import Finding, Level, Repair

OURS = "swarm-inference-scheduler"

_OUR_LINE = "from swarm_integration.cli import main"
_OUR_OTHER_LINE = "from swarm_integration.commands import main"
_UPSTREAM_LINE = "from swarm.__main__ import main"
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)>=([0-9.]+)$")
_SHOWN = ("openai", "anyio")
_IMPORT_TIMEOUT_S = 60.0


def check_versions() -> Iterator[Finding]:
    """Yield the versions of Python, of this package and of what it needs."""
    facts = {"version": platform.python_version(), "executable": sys.executable}
    yield Finding("python", "ok", f"{facts['version']}, {sys.executable}", facts=facts)
    ours = installed(OURS)
    if ours is None:
        yield Finding(
            OURS, "warning", "not installed, only on Python's path", f"{_pip()} install -e ."
        )
    else:
        yield Finding(OURS, "ok", ours, facts={"version": ours})
    yield _swarm()
    for name, least in _requirements():
        found = installed(name)
        if found is None or _numbers(found) < _numbers(least):
            says = "not installed" if found is None else f"{found}, but {least} is the least"
            mend = f'{_pip()} install "{name}>={least}"'
            yield Finding(name, "error", says, mend, {"version": found, "least": least})
        elif name in _SHOWN:
            yield Finding(name, "ok", found, facts={"version": found, "least": least})
    wheel = installed("xllamacpp")
    says = wheel or "not installed; it brings a llama-server for those who have none"
    yield Finding("xllamacpp", "ok", says, facts={"version": wheel})


def check_llama_cpp(*, needed: bool, tried: bool = True) -> Finding:
    """Return whether models can be run in this process.

    Args:
        needed: Whether the scenario or the configuration asks for it.
        tried: Import it, which takes a moment.
    """
    name, found = "llama-cpp-python", installed("llama-cpp-python")
    install = f'{_pip()} install "{OURS}[llama-cpp]"'
    facts = {"version": found, "needed": needed}
    if found is None:
        if needed:
            says = "not installed, and a model is to run in this process"
            return Finding(name, "error", says, install, facts)
        return Finding(
            name, "ok", "not installed; only models in this process need it", facts=facts
        )
    if not tried:
        return Finding(name, "ok", f"{found}, which this scenario does not need", facts=facts)
    problem = _import_problem("llama_cpp")
    if problem:
        mend = f"{_pip()} install --force-reinstall --no-cache-dir --no-deps llama-cpp-python"
        level: Level = "error" if needed else "warning"
        return Finding(
            name, level, f"{found} can't be imported: {problem}", mend, {**facts, "works": False}
        )
    return Finding(name, "ok", found, facts={**facts, "works": True})


def check_import_name() -> Finding:
    """Return whether `import scheduler` gives our package and no other."""
    clash = find_clash(thorough=True)
    if clash is None:
        return Finding("import name `scheduler`", "ok", f"belongs to {OURS}")
    return Finding("import name `scheduler`", "error", f"{clash.what}; {clash.why}", clash.mend)


def check_script(scripts: Path | None = None, search: str | None = None) -> Iterator[Finding]:
    """Yield which package the `swarm` script belongs to, and which one is called.

    Args:
        scripts: The folder of this Python's scripts.
        search: What PATH says; by default the environment's.
    """
    folder = Path(sysconfig.get_path("scripts")) if scripts is None else scripts
    name = "swarm.exe" if os.name == "nt" else "swarm"
    script = folder / name
    owner = owner_of(script)
    facts = {"script": str(script), "owner": owner}
    check = "`swarm` script"
    if owner == OURS:
        yield Finding(check, "ok", f"{script} belongs to {OURS}", facts=facts)
        yield from _called(script, shutil.which("swarm", path=search))
        return
    says = f"{script} belongs to {owner}, so it does not know --inference-scheduler"
    if owner == "":
        says = f"{script} does not exist"
    repair = _script_repair(folder, script, owner)
    mend = "swarm-inference doctor --fix" if repair else f"{_pip()} {reinstall()}"
    says += "; `python -m swarm_integration run ...` works all the same"
    yield Finding(check, "error", says, mend, facts, repair)


def owner_of(script: Path) -> str:
    """Return the package that a script belongs to; `another package`, or nothing without one."""
    if not script.is_file():
        return ""
    try:
        if zipfile.is_zipfile(script):  # a launcher of Windows, with its program at the end
            with zipfile.ZipFile(script) as archive:
                content = archive.read("__main__.py").decode("utf-8", "replace")
        else:
            content = script.read_text(encoding="utf-8", errors="replace")
    except (OSError, KeyError, zipfile.BadZipFile):
        return "another package"
    if _OUR_LINE in content:
        return OURS
    return "swarm-safety" if _UPSTREAM_LINE in content else "another package"


def reinstall() -> str:
    """Return the words after `pip` that put our script back, and touch no other package."""
    return f"install --force-reinstall --no-deps {_source()}"


def installed(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _swarm() -> Finding:
    found = installed("swarm-safety")
    if found is None:
        mend = f'{_pip()} install "{OURS}[swarm]"'
        return Finding("swarm-safety", "error", "not installed", mend, {"version": None})
    return Finding("swarm-safety", "ok", found, facts={"version": found})


def _called(script: Path, called: str | None) -> Iterator[Finding]:
    """Yield a warning where typing `swarm` does not start our script."""
    folder = script.parent
    activate = f"source {folder / 'activate'}"
    if not (folder / "activate").is_file():
        activate = f'export PATH="{folder}:$PATH"'
    if called is None:
        says = f"{folder} is not on PATH, so typing `swarm` does not find it"
        yield Finding("PATH", "warning", says, activate, {"called": None})
    elif Path(called).absolute() != script.absolute() and owner_of(Path(called)) != OURS:
        says = f"typing `swarm` starts {called}, which comes first, and not {script}"
        yield Finding("PATH", "warning", says, activate, {"called": called})


def _script_repair(folder: Path, script: Path, owner: str) -> Repair | None:
    """Return how our script is put back, made as the installer made the one beside it."""
    model = folder / "swarm-inference"
    if os.name == "nt" or owner not in ("", "swarm-safety") or not model.is_file():
        return None
    content = model.read_text(encoding="utf-8", errors="replace")
    if content.count(_OUR_OTHER_LINE) != 1:
        return None
    content = content.replace(_OUR_OTHER_LINE, _OUR_LINE)
    return Repair(f"make {script} ours again", partial(_put_script, script, content))


def _put_script(script: Path, content: str) -> str:
    draft = script.with_name(f".{script.name}.part")
    draft.write_text(content, encoding="utf-8")
    mode = stat.S_IMODE((script.parent / "swarm-inference").stat().st_mode)
    draft.chmod(mode)
    draft.replace(script)
    return f"{script} is the script of {OURS} again; no package was changed"


def _requirements() -> Iterator[tuple[str, str]]:
    """Yield what this package needs without any extra, and the least version of each."""
    try:
        wanted = requires(OURS) or []
    except PackageNotFoundError:
        return
    for one in wanted:
        if match := _REQUIREMENT.match(one.replace(" ", "")):
            yield match[1], match[2]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:4])


def _import_problem(module: str) -> str:
    """Return why a module can't be imported, or nothing."""
    try:
        done = subprocess.run(  # noqa: S603  # our own words, and no shell
            [sys.executable, "-P", "-c", f"import {module}"],
            capture_output=True,
            text=True,
            timeout=_IMPORT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    if done.returncode < 0:
        return f"it ends the process (signal {-done.returncode}); compiled for another processor?"
    lines = done.stderr.strip().splitlines()
    return (lines[-1] if lines else "no reason given") if done.returncode else ""


def _source() -> str:
    """Return where this package was installed from, as pip takes it."""
    try:
        origin = json.loads(distribution(OURS).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        origin = {}
    url = str(origin.get("url", ""))
    if not url:
        return OURS
    path = url2pathname(urlsplit(url).path) if url.startswith("file:") else url
    return f'-e "{path}"' if origin.get("dir_info", {}).get("editable") else f'"{path}"'


def _pip() -> str:
    return f"{sys.executable or 'python'} -m pip"
