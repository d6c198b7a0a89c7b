"""All that a study's bytes are shown beside: its images as pictures, the trunk's weights, evaluations as sent."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

import msgspec

from adc_edge.data.pictures import line_bytes
from adc_edge.data.sources import load_dataset
from adc_edge.errors import AdcEdgeError
from adc_edge.evaluation.study.records import Study
from adc_edge.evaluation.study.samples import sampled
from adc_edge.evaluation.totals.pictures import PICTURES_FORMAT, Pictures, measured_pictures
from adc_edge.evaluation.totals.sending import EvaluationPrecision, StudyTrunk, study_trunk
from adc_edge.files import json_bytes, write_atomic

_logger = logging.getLogger(__name__)
_PICTURES = "pictures.json"
NO_PICTURES = "The images as JPEG, sent once, are not shown"


class Beside(NamedTuple):
    """Pictures, trunk and evaluations of a study; None where they are not known, and ``note`` then says why."""

    pictures: Pictures | None = None
    trunk: StudyTrunk | None = None
    evaluation: EvaluationPrecision = "auto"
    note: str = ""


def beside_of(study: Study, directory: Path, evaluation: EvaluationPrecision = "auto") -> Beside:
    """Read pictures.json of a study, or measure its images and write it; find the size of its trunk.

    A study whose data can no longer be read, or whose model can no longer be made, is shown without them.

    Args:
        study: the task.
        directory: of the study.
        evaluation: precision in which evaluations would be sent, or who evaluates.
    """
    try:
        trunk = study_trunk(study)
    except AdcEdgeError as error:
        return Beside(note=f"{NO_PICTURES}, nor the bytes of a whole training: {_one_line(error)}.")
    try:
        return Beside(_pictures(study, directory / _PICTURES, trunk), trunk, evaluation)
    except AdcEdgeError as error:
        return Beside(None, trunk, evaluation, f"{NO_PICTURES}: {_one_line(error)}.")


def _pictures(study: Study, path: Path, trunk: StudyTrunk) -> Pictures:
    kept = _kept(path)
    if kept is not None and kept.size == trunk.preprocessing.size:
        return kept
    _logger.info("pictures the images are measured as JPEG, once for the study")
    measured = measured_pictures(sampled(load_dataset(study.data), study), trunk.preprocessing)
    write_atomic(path, json_bytes(measured))
    sizes = ", ".join(f"{name} {size / 1e6:.3g} MB" for name, size in line_bytes(measured.train).items())
    _logger.info("pictures %d training images, sent once: %s", measured.train.images, sizes)
    return measured


def _kept(path: Path) -> Pictures | None:
    """Return the record in a file, None if there is none that this version can read."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Pictures)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return kept if kept.format == PICTURES_FORMAT else None


def _one_line(error: AdcEdgeError) -> str:
    return " ".join(error.received.split())
