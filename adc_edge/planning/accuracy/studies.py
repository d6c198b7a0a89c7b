"""Studies on disk: what `evaluate` and `privacy` wrote, and those that come with adc-edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from adc_edge.errors import SettingError
from adc_edge.planning.accuracy.frontier import MeasuredPoint, MeasuredStudy
from adc_edge.storage.bundle import Manifest

SHIPPED = Path(__file__).with_name("measured.json")  # `benchmarks/measured_frontier.py` makes it
_FILES = ("results.json", "privacy.json")


class _Task(msgspec.Struct):
    data: str
    model: str
    split: int
    batch_size: int
    model_args: dict[str, Any] = {}
    epochs: float = 0.0  # a privacy study has none


class _Row(msgspec.Struct):
    setting: str
    accuracy: float
    seeds: int
    sem: float | None = None


class _Evaluation(msgspec.Struct):
    study: _Task
    steps: list[_Row]
    note: str = ""
    fleet: str = ""  # that all steps are of, in words; nothing: one device


class _Attack(msgspec.Struct):
    setting: str
    ssim: float
    ssim_mean_image: float


class _Privacy(msgspec.Struct):
    study: _Task
    settings: list[_Attack]
    inverter_epochs: float


class _Shipped(msgspec.Struct):
    format: int
    studies: list[MeasuredStudy]


@cache
def shipped_studies() -> list[MeasuredStudy]:
    """Return the studies that come with adc-edge, with the pages of the documentation that they were read from."""
    return msgspec.json.decode(SHIPPED.read_bytes(), type=_Shipped).studies


def read_studies(paths: Sequence[Path], manifest: Manifest) -> tuple[list[MeasuredStudy], list[str]]:
    """Return the studies in files or directories, and what their readers should know.

    Args:
        paths: the ``-o`` directories of `evaluate` and `privacy`, or their results.json and privacy.json.
        manifest: of the bundle whose settings are asked for.

    Raises:
        SettingError: no study, one of another model, or one of fleets alone.
    """
    found = [_read(file, manifest) for path in paths for file in study_files(path)]
    return [study for study, _ in found], [f"{study.source}: {note}" for study, note in found if note]


def study_files(path: Path) -> list[Path]:
    """Return the results of `evaluate` and `privacy` at a path; raises SettingError if there are none."""
    files = [path / name for name in _FILES if (path / name).is_file()] if path.is_dir() else [path]
    if not files:
        raise _no_study(f"{path} holds neither {_FILES[0]} nor {_FILES[1]}")
    return files


def _read(file: Path, manifest: Manifest) -> tuple[MeasuredStudy, str]:
    try:
        study = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        kind: type[_Privacy | _Evaluation] = _Privacy if "inverter_epochs" in study else _Evaluation
        found = msgspec.convert(study, kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise _no_study(f"{file}: {why}") from None
    _check_model(file, found.study, manifest)
    if isinstance(found, _Privacy):
        return _of_privacy(file, found, manifest.tokens), ""
    return _of_evaluation(file, found, manifest.tokens), found.note


def _no_study(received: str) -> SettingError:
    return SettingError(
        received,
        "the -o directory of `adc-edge evaluate` or `privacy`, or a results.json or privacy.json of theirs",
        "adc-edge evaluate --data SRC -o DIR; leave --study out for the studies that come with adc-edge",
    )


def _check_model(file: Path, task: _Task, manifest: Manifest) -> None:
    """Raise SettingError for another model. The size of its images may be written out on one side only."""
    size = manifest.preprocessing.size[0]
    default = {} if "img_size" in manifest.model_args else {"img_size": size}
    mine, theirs = manifest.model_args | {"img_size": size}, default | task.model_args
    if (task.model, theirs) != (manifest.model, mine):
        raise SettingError(
            f"{file} is a study of {_named(task.model, task.model_args)}",
            f"a study of the bundle's {_named(manifest.model, manifest.model_args)}",
            "name a study of this model, or leave --study out for the studies that come with adc-edge",
        )


def _named(model: str, arguments: dict[str, Any]) -> str:
    listed = ", ".join(f"{key}={arguments[key]!r}" for key in sorted(arguments))
    return f"{model}({listed})" if listed else model


def _of_evaluation(file: Path, found: _Evaluation, tokens: int) -> MeasuredStudy:
    if found.fleet:
        raise SettingError(
            f"{file} has runs of a fleet alone ({found.fleet})",
            "runs of one device that trains its trunk, which a plan is for",
            "adc-edge evaluate --devices 1 with the study's other options and -o; or leave --study out",
        )
    known = next((row for row in found.steps if row.setting == "none"), None)
    if known is None:
        raise SettingError(
            f"{file} has no run of uncompressed training",
            "a study with the setting none, which all others are compared with",
            "adc-edge evaluate --setting none with the study's other options and -o",
        )
    points = [difference(row, known) for row in found.steps]
    task = found.study
    return MeasuredStudy(
        "accuracy",
        str(file),
        task.data,
        task.model,
        tokens,
        task.split,
        task.batch_size,
        task.epochs,
        100 * known.accuracy,
        points,
    )


def difference(row: Any, known: Any) -> MeasuredPoint:
    """Return a setting's difference to uncompressed training, in points.

    Args:
        row: setting, accuracy in 0..1, sem and seeds.
        known: the same of uncompressed training.
    """
    if row.setting == known.setting:
        return MeasuredPoint(row.setting, 0.0, 0.0, row.seeds)
    errors = (row.sem, known.sem)
    spread = None if None in errors else 100 * math.hypot(*errors)
    return MeasuredPoint(row.setting, 100 * (row.accuracy - known.accuracy), spread, row.seeds)


def _of_privacy(file: Path, found: _Privacy, tokens: int) -> MeasuredStudy:
    task, points = found.study, [MeasuredPoint(leak.setting, leak.ssim) for leak in found.settings]
    reference = found.settings[0].ssim_mean_image if found.settings else 0.0
    return MeasuredStudy(
        "ssim",
        str(file),
        task.data,
        task.model,
        tokens,
        task.split,
        task.batch_size,
        found.inverter_epochs,
        reference,
        points,
    )
