"""A Python environment of its own, with the packages of this one, less some."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

SCRIPT = """#!{python}
# -*- coding: utf-8 -*-
import re
import sys
from {module} import main
if __name__ == '__main__':
    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])
    sys.exit(main())
"""
"""What pip writes for an entry point."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment whose packages are links to this one's."""

    root: Path

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def python(self) -> Path:
        return self.bin / "python"

    def put_script(self, name: str, module: str) -> Path:
        """Write a script as pip does."""
        path = self.bin / name
        path.write_text(SCRIPT.format(python=self.python, module=module), encoding="utf-8")
        path.chmod(0o755)
        return path

    def run(self, *words: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LLAMA_"))}
        kept["PATH"] = f"{self.bin}{os.pathsep}{kept['PATH']}"
        return subprocess.run(
            [str(word) for word in words],
            cwd=cwd,
            env={**kept, **variables},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )


def make_environment(root: Path, *, without: tuple[str, ...] = ()) -> Environment:
    """Make an environment with `swarm-safety`, this project and their scripts.

    Args:
        root: Where to.
        without: Beginnings of what is left out of site-packages.
    """
    venv.create(root, with_pip=False, symlinks=True)
    packages = next(root.glob("lib/python*/site-packages"))
    for folder in site.getsitepackages():
        for entry in Path(folder).iterdir():
            if not entry.name.startswith((*without, "_editable", "__editable")):
                (packages / entry.name).symlink_to(entry)
    (packages / "this_project.pth").write_text(f"{ROOT}\n", encoding="utf-8")
    environment = Environment(root)
    environment.put_script("swarm-inference", "swarm_integration.commands")
    environment.put_script("swarm", "swarm_integration.cli")
    assert sys.version_info[:2] >= (3, 11)
    return environment
