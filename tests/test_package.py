"""The wheel and the source distribution hold every file of the source tree: `pyproject.toml` lists packages by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[1]
PARTS = ("calibration", "cloud_trainer", "edge_runtime", "evaluation", "export", "watch")
BUILD = "from setuptools import build_meta; build_meta.build_wheel('dist'); build_meta.build_sdist('dist')"


def tracked() -> list[str]:
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def copy_tree(target: Path) -> Path:
    """A copy of the tracked files. Links stay links."""
    for name in tracked():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    return target


def installed(names: list[str]) -> set[str]:
    """The files of the package among ``names``, under the paths where they are installed."""
    paths = {f"adc_edge/{name}" if name.partition("/")[0] in PARTS else name for name in names}
    return {path for path in paths if path.startswith("adc_edge/") and not path.endswith("/")}


def source_files(tree: Path) -> set[str]:
    """The files of the package in the tree, under the paths where they are installed."""
    found = [
        Path(folder, name) for top in ("adc_edge", *PARTS) for folder, _, names in os.walk(tree / top) for name in names
    ]
    return installed([path.relative_to(tree).as_posix() for path in found])


def missing(tree: Path) -> dict[str, set[str]]:
    """Build both distributions. For each of them, the files that it lacks or has beyond the tree."""
    subprocess.run([sys.executable, "-c", BUILD], cwd=tree, capture_output=True, text=True, check=True)
    (wheel,), (sdist,) = (tree / "dist").glob("*.whl"), (tree / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = archive.namelist()
    with tarfile.open(sdist) as archive:
        in_sdist = [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]
    expected = source_files(tree)
    return {name: installed(files) ^ expected for name, files in (("wheel", in_wheel), ("sdist", in_sdist))}


def test_every_folder_with_modules_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    modules = [name for name in installed(tracked()) if name.endswith(".py")]
    assert sorted(listed) == sorted({Path(name).parent.as_posix().replace("/", ".") for name in modules})


def test_both_distributions_hold_the_files_of_the_tree(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    assert source_files(tree) >= {"adc_edge/py.typed", "adc_edge/wire/tcp.py", "adc_edge/export/build.py"}
    assert missing(tree) == {"wheel": set(), "sdist": set()}


def test_a_folder_and_a_data_file_that_pyproject_does_not_list_are_noticed(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    planted = {"adc_edge/room/__init__.py", "adc_edge/export/room/__init__.py", "adc_edge/wire/page.html"}
    for name in planted:
        path = tree / name  # through the link to the part
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert missing(tree) == {"wheel": planted, "sdist": planted}
