"""Fresh virtual environments as README installs them.

`pip install .` is real. torch's wheels are gigabytes, so the packages that an extra names, and those that they need,
are links to the installed ones: pip finds them there and downloads nothing of them. No other package can be imported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
_NO_SOURCES = ("*.egg-info", "__pycache__", ".*_cache")
_NO_SOURCES_AT_ROOT = (*_NO_SOURCES, ".git", ".venv", "build", "out", "runs", ".hypothesis")


def copy_checkout(to: Path) -> Path:
    """Return a copy of the sources, in which pip may build."""
    inside, at_root = (shutil.ignore_patterns(*names) for names in (_NO_SOURCES, _NO_SOURCES_AT_ROOT))
    shutil.copytree(
        ROOT,
        to,
        symlinks=True,
        ignore=lambda folder, names: (at_root if Path(folder) == ROOT else inside)(folder, names),
    )
    return to


class Environment:
    """A virtual environment into which adc-edge is installed by a line of README, typed in a checkout."""

    def __init__(self, path: Path, checkout: Path, line: str, extras: Iterable[str]) -> None:
        self.path = path
        venv.create(path, with_pip=True)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(path)}))
        pins = [_link(name, site) for name in needed(extras)] if extras else []
        constraints = path / "constraints.txt"
        known = {pin.partition("==")[0] for pin in pins}
        rest = [
            pin
            for pin in (ROOT / "constraints.txt").read_text().splitlines()
            if canonicalize_name(pin.partition("==")[0]) not in known and not pin.startswith("#")
        ]
        constraints.write_text("\n".join([*pins, *rest]) + "\n")
        self.run(
            f"{line} --quiet --disable-pip-version-check", checkout, PIP_CONSTRAINT=str(constraints), PIP_NO_COMPILE="1"
        )

    def variables(self, **more: str) -> dict[str, str]:
        """Return the variables of a shell in which this environment is active."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return {**inherited, "PATH": f"{self.path / 'bin'}:{os.environ['PATH']}", "PYTHONNOUSERSITE": "1", **more}

    def run(self, line: str, where: Path, **more: str) -> str:
        """Type a line into bash, and return what it prints; it must end with 0."""
        done = subprocess.run(
            ["bash", "-ec", line],
            cwd=where,
            env=self.variables(COLUMNS="120", **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=280,
        )
        assert done.returncode == 0, f"$ {line}\n[{done.returncode}]\n{done.stdout}"
        assert "Traceback" not in done.stdout, done.stdout
        return done.stdout

    def has(self, module: str) -> bool:
        """Return whether a module can be imported here."""
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
        return not subprocess.run(
            [self.path / "bin" / "python", "-c", code], cwd=self.path, env=self.variables(), check=False
        ).returncode


def needed(extras: Iterable[str]) -> set[str]:
    """Return the names of all packages that adc-edge needs here with these extras, and that those need."""
    project = _project()
    todo = [needs for needs in map(Requirement, project["dependencies"]) if _holds(needs, set())]
    todo.append(Requirement(f"adc-edge[{','.join(extras)}]"))
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        one = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if one in seen:
            continue
        seen.add(one)
        if one[0] == "adc-edge":
            texts = [text for extra in requirement.extras for text in project["optional-dependencies"][extra]]
        else:
            texts = distribution(requirement.name).requires or []
        todo += [inner for inner in map(Requirement, texts) if _holds(inner, requirement.extras)]
    return {name for name, _ in seen} - {"adc-edge"}


def _project() -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _holds(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def _link(name: str, site: Path) -> str:
    """Link an installed package into ``site``, and return the constraint that keeps pip from replacing it."""
    package = distribution(name)
    files = package.files
    assert files, f"{name} has no record of its files"
    for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
        if not (site / top).exists():
            (site / top).symlink_to(Path(str(package.locate_file(top))).resolve())
    return f"{canonicalize_name(name)}=={package.version}"
