"""The runs that a person names, checked before any of them is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adc_edge.errors import SettingError
from adc_edge.storage.bundle import CLIENT
from adc_edge.storage.run_dir import METRICS
from adc_edge.storage.run_settings import SETTINGS
from adc_edge.watch.reading.directory import is_run_directory
from adc_edge.watch.reading.state import WatchedRun
from adc_edge.watch.report.labels import labels_of

_EXPECTED = "a directory of a run of `serve` or `trainer`, as --run DIR makes it"


def open_runs(paths: Sequence[Path], output: Path | None = None) -> dict[str, WatchedRun]:
    """Return the runs, read, by labels that tell them apart; a directory that is named twice is one run.

    Raises:
        SettingError: a path is no run; or ``output`` is a file that a run needs.
    """
    unique = list({path.resolve(): path for path in paths}.values())
    for path in unique:
        _check(path)
        if output is not None and output.resolve().parent == path.resolve() and output.suffix != ".html":
            received = f"-o {output}, in the directory of a run"
            raise SettingError(received, "a file that is none of the run's", "choose another name, such as report.html")
    return {label: WatchedRun(path).read_all() for label, path in zip(labels_of(unique), unique, strict=True)}


def _check(path: Path) -> None:
    if not path.exists():
        raise SettingError(f"{path} does not exist", _EXPECTED, "check the path")
    if not path.is_dir():
        raise SettingError(f"{path} is a file", _EXPECTED, _remedy(path.parent))
    if (path / CLIENT).exists():
        raise SettingError(f"{path} is a bundle", _EXPECTED, "name the --run directory of a training with this bundle")
    if not is_run_directory(path):
        raise SettingError(f"{path} holds no run: no {SETTINGS}, no {METRICS}", _EXPECTED, _below(path))


def _remedy(parent: Path) -> str:
    return f"name its directory, {parent}" if is_run_directory(parent) else "name the --run directory"


def _below(path: Path) -> str:
    try:
        inside = sorted(child for child in path.iterdir() if child.is_dir() and is_run_directory(child))
    except OSError:
        inside = []
    if inside:
        more = ", …" if len(inside) > 3 else ""
        return f"name the runs in it: {', '.join(map(str, inside[:3]))}{more}; `adc-edge runs {path}` lists them"
    return f"`adc-edge runs {path}` lists the runs below a directory"
