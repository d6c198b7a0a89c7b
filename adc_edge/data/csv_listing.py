"""A table of image files: a CSV with a header, a column of paths, a column of labels, and possibly one of splits.

path or file, filename, image    relative to the directory of the CSV, or absolute
label or class                   names, or numbers
split                            train, test or val; without it a tenth of the files is held out
"""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adc_edge.data.listing import FileSplit, is_held_out, log_held_out
from adc_edge.data.sources import Dataset
from adc_edge.errors import DataError

logger = logging.getLogger(__name__)
_COLUMNS = {
    "path": ("path", "filepath", "file_path", "file", "filename", "file_name", "image", "image_path"),
    "label": ("label", "labels", "class", "class_name", "category", "target"),
    "split": ("split", "set", "subset"),
}
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)
_HEADER = "a header with the columns path and label, for example: path,label"


class _Row(NamedTuple):
    """One image: its file, label and split (empty without such a column)."""

    path: Path
    label: str
    split: str
    line: int


def list_csv(where: str) -> Dataset:
    """Return the data set of the table at ``where``. Classes are in the order of their names or numbers.

    Raises:
        DataError: the table cannot be read, or a line names no file, no label or an unknown split; the error names the
            line.
    """
    rows = list(_rows(where))
    if not rows:
        raise DataError(f"csv:{where} lists no image", "a line for each image below the header", "fill the table")
    _check_one_label(rows, where)
    train, test = _divide(rows, Path(where).parent)
    classes = _class_order({row.label for row in train})
    foreign = sorted({row.label for row in test} - set(classes))
    if foreign and not rows[0].split:
        raise DataError(
            f"csv:{where}: {', '.join(foreign)}: all images of it are in the tenth that is held out",
            "images of each class also in the other nine tenths",
            "add images of it, or a column split with train or test",
        )
    if foreign:
        raise DataError(
            f"csv:{where}: the test split has the classes {', '.join(foreign)}",
            "classes of the train split",
            "give some of their images to the train split, or mend their labels",
        )
    return Dataset(_split(train, classes), _split(test, classes), classes)


def _check_one_label(rows: Sequence[_Row], where: str) -> None:
    """Raise DataError if a file stands there under two labels."""
    seen: dict[str, _Row] = {}
    for row in rows:
        first = seen.setdefault(os.path.normpath(row.path), row)
        if first.label != row.label:
            raise DataError(
                f"csv:{where}, lines {first.line} and {row.line}: {row.path} is {first.label} and {row.label}",
                "one label for each file",
                "remove one of the two lines",
            )


def _text(where: str) -> str:
    try:
        content = Path(where).read_bytes()
    except OSError as error:
        raise DataError(f"csv:{where}: {error.strerror}", "a CSV file", "check the path") from None
    if b"\0" in content:  # UTF-16, or no text; other bytes may be names of files
        raise DataError(f"csv:{where} is not UTF-8 text", "a CSV file in UTF-8", "save it as CSV in UTF-8")
    return content.decode("utf-8-sig", "surrogateescape")


def _rows(where: str) -> Iterator[_Row]:
    text = _text(where)
    lines = csv.reader(text.splitlines(keepends=True), delimiter=_delimiter(text), skipinitialspace=True)
    try:
        header = next(lines, [])
        columns = _find_columns(header, where)
        for cells in lines:
            if any(cell.strip() for cell in cells[len(header) :]):
                raise DataError(
                    f"csv:{where}, line {lines.line_num}: {len(cells)} cells",
                    f"{len(header)}, as in the header",
                    'put a cell that holds the separator in quotes: "cat, grey"',
                )
            if any(cell.strip() for cell in cells):
                yield _row(cells, columns, where, lines.line_num)
    except csv.Error as error:
        raise DataError(f"csv:{where}, line {lines.line_num}: {error}", "cells in CSV", "mend that line") from None


def _delimiter(text: str) -> str:
    """Return the character that divides the header most often: comma, semicolon or tab."""
    header = text.partition("\n")[0]
    return max(",;\t", key=header.count)


def _find_columns(header: Sequence[str], where: str) -> dict[str, int]:
    names = [name.strip().lower().replace(" ", "_") for name in header]
    found: dict[str, int] = {}
    for column, spellings in _COLUMNS.items():
        here = [number for number, name in enumerate(names) if name in spellings]
        if len(here) > 1:
            both = " and ".join(header[number] for number in here)
            raise DataError(f"csv:{where}: the columns {both}", f"one column of {column}", "remove or rename one")
        if here:
            found[column] = here[0]
    if "path" not in found or "label" not in found:
        raise DataError(f"csv:{where}, line 1: {', '.join(header) or 'nothing'}", _HEADER, "add it as the first line")
    return found


def _row(cells: Sequence[str], columns: dict[str, int], where: str, line: int) -> _Row:
    place = f"csv:{where}, line {line}"
    found = {name: cells[number].strip() if number < len(cells) else "" for name, number in columns.items()}
    for name in ("path", "label"):
        if not found[name]:
            raise DataError(f"{place}: no {name}", "a path and a label", "mend or remove that line")
    split = _SPLITS.get(found.get("split", "").lower(), "")
    if "split" in columns and not split:
        raise DataError(f"{place}: split {found['split']!r}", "train, test or val", "mend that line")
    path = Path(where).parent / found["path"]
    if not path.is_file():
        raise DataError(
            f"{place}: {found['path']}: no such file",
            f"a file; paths are relative to {Path(where).parent.absolute()}",
            "mend the path",
        )
    return _Row(path, found["label"], split, line)


def _divide(rows: Sequence[_Row], root: Path) -> tuple[list[_Row], list[_Row]]:
    splits = {row.split for row in rows}
    held = next((split for split in ("test", "val") if split in splits), None)
    if held is not None:
        if held == "test" and "val" in splits:
            unused = sum(row.split == "val" for row in rows)
            logger.info("data     %d rows of the split val are not used: test is the test split", unused)
        return [row for row in rows if row.split == "train"], [row for row in rows if row.split == held]
    log_held_out()
    marks = [is_held_out(Path(os.path.relpath(row.path, root)).as_posix()) for row in rows]
    pairs = list(zip(rows, marks, strict=True))
    return [row for row, out in pairs if not out], [row for row, out in pairs if out]


def _class_order(labels: set[str]) -> list[str]:
    """Return labels in the order of their numbers if all are numbers, or else of their names."""
    try:
        return sorted(labels, key=lambda label: (float(label), label))
    except ValueError:
        return sorted(labels)


def _split(rows: Sequence[_Row], classes: Sequence[str]) -> FileSplit:
    numbers = {name: number for number, name in enumerate(classes)}
    return FileSplit([row.path for row in rows], np.array([numbers[row.label] for row in rows], np.int64))
