"""The table of a whole training, and the sentences below it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table

from adc_edge.calibration.plan.make import Made
from adc_edge.calibration.plan.table import digits
from adc_edge.calibration.plan.whole import settings_to_measure
from adc_edge.planning.plan_file import PlannedTraining, PlannedWay
from adc_edge.screen.words import roughly

_NONE = "–"


def training_table(training: PlannedTraining, made: Made) -> Table:
    """Return the ways of a whole training and the pictures, in a table that any terminal holds."""
    title = _title(training, made)
    table = Table(title=title, min_width=len(title), box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    known = training.steps_per_epoch is not None
    alone = any(way.seconds_alone is not None for way in training.ways)
    columns = ["options of serve", "kB an image", *(["MB", "time"] if known else []), *(["alone"] if alone else [])]
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=bool(number), overflow="fold")
    for cells in _rows(training, made):
        table.add_row(*cells[: len(columns)])
    return table


def training_lines(training: PlannedTraining, made: Made) -> Iterator[tuple[str, str]]:
    """Yield a label and sentences: what the table has, and that the accuracy of a frozen trunk is not predicted."""
    yield "training", _meaning(training, made)
    if len(training.ways) == 1 or made.choice.candidate.plan.gradient_precision is None:
        return  # nothing is offered whose accuracy is another than that of the chosen setting
    settings = " ".join(f"--setting {one}" for one in settings_to_measure(made, training.epochs))
    measure = f": compare the accuracies of `adc-edge evaluate {settings}` on your data" if settings else ""
    yield (
        "note",
        "the accuracy of a trunk that is frozen from the start, or later, is not predicted; it may lose much to the "
        f"chosen setting{measure}",
    )


def _title(training: PlannedTraining, made: Made) -> str:
    steps = training.steps_per_epoch
    images = "" if steps is None else f" of {steps * made.task.batch_size:,} images"
    return f"A whole training: {training.epochs} epoch{'s' * (training.epochs != 1)}{images} on this link"


def _meaning(training: PlannedTraining, made: Made) -> str:
    known = training.steps_per_epoch is not None
    text = "messages of all steps, both ways, without evaluations and the trunk's first weights."
    text += " time: until everything is sent" if known else " --images N or --data SRC tells all bytes and the time."
    if known:
        text += "." if made.compute_known else ", by the link alone."
    if any(way.seconds_alone is not None for way in training.ways):
        text += " alone: the trainer's time for the other epochs."
    return text


def _rows(training: PlannedTraining, made: Made) -> Iterator[tuple[str, ...]]:
    steps = training.steps_per_epoch
    images = 0 if steps is None else steps * made.task.batch_size
    for way in training.ways:
        size = way.bytes_up_an_image + way.bytes_down_an_image
        yield _name(way), digits(size / 1e3), digits(size * images / 1e6), _time(way.seconds), _time(way.seconds_alone)
    for kind, size in training.pictures.items():
        seconds = 8e-6 * size * images / made.task.link.up_mbit_s
        yield f"the images, once: {kind}", digits(size / 1e3), digits(size * images / 1e6), _time(seconds), _NONE


def _name(way: PlannedWay) -> str:
    return " ".join(way.options) or "as chosen"


def _time(seconds: float | None) -> str:
    return _NONE if seconds is None else roughly(seconds)
