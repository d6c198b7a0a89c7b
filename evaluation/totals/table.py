"""The table of whole trainings beside the images sent once, and what other tables say of those. Bytes are in MB."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from adc_edge.data.pictures import line_bytes
from adc_edge.evaluation.report.groups import METHOD_GROUPS
from adc_edge.evaluation.report.sheet import NONE, Section, Sheet, megabytes, share_text, with_spread
from adc_edge.evaluation.totals.beside import Beside
from adc_edge.evaluation.totals.frames import PASSES, whole_pictures
from adc_edge.evaluation.totals.sending import EvaluationBytes

ONCE = "the images, sent once"
BELOW = "below"
_SHORT = {"own files": "files", "JPEG q90": "q90", "JPEG q75": "q75"}
_COLUMNS = ("setting", "accuracy %", "MB steps", "MB eval", "MB trunk", "MB total", *_SHORT.values())
_CAPTION = (
    "MB steps: messages of all steps, both ways. MB eval: of all evaluations ({evaluations}). MB trunk: the trunk's "
    "first weights, fp32. {pictures}files, q90, q75: the epoch at which the steps have cost as much as the training "
    "images sent once, as their own files or as JPEG at the training size; {below}: they never do."
)


def totals_sheet(totals: pd.DataFrame, beside: Beside, evaluations: Mapping[str, EvaluationBytes]) -> Sheet:
    """Return the table of every setting after the study's epochs, below the images sent once.

    Args:
        totals: see ``by_total``.
        beside: what is known of pictures, trunk and evaluations.
        evaluations: one evaluation of a device, by setting, without those that are not known.
    """
    rows = totals.to_dict("records")
    known = {name for name, field in PASSES.items() if beside.pictures is not None and name in _lines(beside)}
    groups = [Section(group, [_cells(row, known) for row in rows if row["group"] == group]) for group in METHOD_GROUPS]
    sections = [*picture_sections(beside), *(section for section in groups if section.rows)]
    pictures = f"{ONCE[0].upper()}{ONCE[1:]}: training images, and as MB eval the test images. " if known else ""
    note = f" {beside.note}" if beside.note else ""
    caption = (
        _CAPTION.format(evaluations=_told(totals, list(evaluations.values())), pictures=pictures, below=BELOW) + note
    )
    optional = ("MB trunk", "MB eval", "files", "q90", "MB steps", "accuracy %")
    return Sheet("Bytes of a whole training", "group", _COLUMNS, 1, sections, caption, optional)


def picture_sections(beside: Beside) -> list[Section]:
    """Return the rows of the images sent once in the table of whole trainings; none if they are not known."""
    if beside.pictures is None:
        return []
    train, whole = line_bytes(beside.pictures.train), whole_pictures(beside)
    rows = [
        (name, NONE, *map(megabytes, (train[name], total - train[name], 0, total)), *[""] * len(PASSES))
        for name, total in whole.items()
    ]
    return [Section(ONCE, rows)]


def steps_section(beside: Beside, shares: Mapping[str, float]) -> list[Section]:
    """Return the rows of the images sent once in the table after equal steps, whose share is of an uncompressed run."""
    if beside.pictures is None:
        return []
    rows: list[tuple[str, ...]] = [
        (name, "", share_text(shares[name]), NONE, "", "", megabytes(size), "0")
        for name, size in line_bytes(beside.pictures.train).items()
    ]
    return [Section(ONCE, rows)]


def pictures_note(beside: Beside, shares: Mapping[str, float]) -> str:
    """Return what a table of shares of the uncompressed bytes says of the images sent once; nothing if nobody asked."""
    if not shares:
        return f" {beside.note}" if beside.note else ""
    told = ", ".join(f"{name} {share_text(share)} %" for name, share in shares.items())
    return f" The training images, sent once: {told} of an uncompressed run's bytes."


def _lines(beside: Beside) -> Mapping[str, int]:
    return {} if beside.pictures is None else line_bytes(beside.pictures.train)


def _cells(row: Mapping[Any, Any], known: set[str]) -> tuple[str, ...]:
    sums = (row[f"bytes_{name}"] for name in ("training", "evaluations", "weights", "total"))
    return (
        row["setting"],
        with_spread(row["accuracy"], row["std"]),
        *(NONE if math.isnan(size) else megabytes(size) for size in sums),
        *(_epoch(row[field]) if name in known else NONE for name, field in PASSES.items()),
    )


def _epoch(epoch: float) -> str:
    return BELOW if math.isnan(epoch) else f"{epoch:.3g}"


def _told(totals: pd.DataFrame, evaluations: Sequence[EvaluationBytes]) -> str:
    if not evaluations or totals.empty:
        return "not known"
    precisions = dict.fromkeys(one.precision for one in evaluations)
    if None in precisions:
        return "the trainer's own, which cost none"
    low, high = totals["evaluations"].min(), totals["evaluations"].max()
    number = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    sent = f"{evaluations[0].images:,} images in {' or '.join(map(str, precisions))}"
    return f"{number} a run, of {sent}, as `serve` sends them"
