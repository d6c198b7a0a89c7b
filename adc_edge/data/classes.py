"""Class names: which output of the head each class of a data source trains. A label is a class's name, not a position.

Names are compared exactly, in Unicode's composed form: a macOS disk writes an accent as a character of its own.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from adc_edge.arrays import Int64
from adc_edge.data.sources import Dataset, check_labels
from adc_edge.errors import DataError

_SHOWN = 5
_LENGTH = 30
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_RENAME = "rename the class directory, or put the head's own names into the bundle: adc-edge export --classes FILE"


def composed(name: str) -> str:
    r"""Return a name in composed form (NFC); bytes that were no UTF-8 become ``\udc..`` in letters."""
    return unicodedata.normalize("NFC", name.encode("utf-8", "backslashreplace").decode())


def composed_names(names: Iterable[str], where: str) -> list[str]:
    """Return names in composed form.

    Raises:
        DataError: a name is empty or there twice.
    """
    found = [composed(name) for name in names]
    faults = [name for name, count in Counter(found).items() if count > 1 or not name.strip()]
    if faults:
        raise DataError(
            f"{where}: class names that are empty or there twice: {short_list(faults)}",
            "each class once, by its name",
            "rename or join those classes",
        )
    return found


def append_classes(head: Sequence[str], names: Sequence[str], outputs: int) -> list[str]:
    """Return the head's class names with those of ``names`` that it lacks at their end.

    Raises:
        DataError: the head has no more output for them.
    """
    known = set(head)
    new = [name for name in names if name not in known]
    if len(head) + len(new) > outputs:
        taken = f", of which {len(head)} have a class: {short_list(head)}" if head else ""
        raise DataError(
            f"{_counted(len(new), 'new class')}: {short_list(new)}{_near(new, head)}",
            f"room in the head, which has {_counted(outputs, 'output')}{taken}",
            f"leave them out, or start a new run of a bundle with room: "
            f"adc-edge export --num-classes {len(head) + len(new)}",
        )
    return [*head, *new]


def map_classes(names: Sequence[str], head: Sequence[str], counts: Sequence[int]) -> Int64:
    """Return the output of the head for each class, int64 ``[C]``; -1 for a class that it lacks and without images.

    Args:
        names: class names of a data source.
        head: class names of the head, in the order of its outputs.
        counts: number of images of each class of the source.

    Raises:
        DataError: the head lacks a class that has images.
    """
    outputs = {name: index for index, name in enumerate(head)}
    missing = [name for name, count in zip(names, counts, strict=True) if count and name not in outputs]
    if missing:
        raise DataError(
            f"{_counted(len(missing), 'class')} that the head lacks: {short_list(missing)}{_near(missing, head)}",
            f"some of the head's {_counted(len(head), 'class')}: {short_list(head)}",
            _RENAME,
        )
    return np.array([outputs.get(name, -1) for name in names], np.int64)


def label_for_head(dataset: Dataset, head: Sequence[str], outputs: int, trained: bool = False) -> None:
    """Replace each label of a data source by the head's output for its class, once.

    Args:
        dataset: the data source.
        head: class names of the head; if it has none, labels are positions and stay as they are.
        outputs: number of the head's outputs.
        trained: the head came with its weights, so its outputs have an order even if it has no names.

    Raises:
        DataError: the head lacks a class of the source, a label has no class, the source has no names, or nobody knows
            which outputs of a trained head its classes are.
    """
    if not head:
        if trained and dataset.named:
            check_order_known(dataset.classes, outputs)
        check_labels(dataset, outputs)
        return
    if not dataset.named:
        check_positions(dataset.classes, head)
    counts = [train + test for train, test in class_counts(dataset)]
    relabel(dataset, map_classes(composed_names(dataset.classes, "the data"), head, counts))


def check_order_known(names: Sequence[str], outputs: int) -> None:
    """Raise DataError unless ``names`` are as many as the outputs of a trained head without class names."""
    if len(names) != outputs:
        raise DataError(
            f"{len(names)} of the {outputs} classes of a trained head whose order is unknown: {short_list(names)}",
            "its class names in the bundle, or a first device with all of them",
            "export it again with --classes FILE: one name a line, in the order of the outputs",
        )


def check_positions(names: Sequence[str], head: Sequence[str]) -> None:
    """Raise DataError unless labels that are mere positions are also the names of the head's first outputs."""
    length = min(len(names), len(head))
    if list(head[:length]) != list(names[:length]):
        raise DataError(
            f"labels from 0 to {len(names) - 1} without class names",
            f"names: the head's classes are {short_list(head)}",
            "add an array `classes` to the .npz with the name of each label",
        )


def relabel(dataset: Dataset, outputs: Int64) -> None:
    """Replace each label of both splits by the head's output for its class, once."""
    for split in (dataset.train, dataset.test):
        split.labels = outputs[split.labels]


def class_counts(dataset: Dataset) -> list[tuple[int, int]]:
    """Return the number of training and test images of each class.

    Raises:
        DataError: a label has no class.
    """
    size = len(dataset.classes)
    labels = np.concatenate([dataset.train.labels, dataset.test.labels])
    if labels.min() < 0 or labels.max() >= size:
        raise DataError(
            f"labels from {labels.min()} to {labels.max()}",
            f"labels from 0 to {size - 1}, the data's {_counted(size, 'class')}",
            "mend the labels, or name every class",
        )
    both = (np.bincount(split.labels, minlength=size) for split in (dataset.train, dataset.test))
    return [(int(train), int(test)) for train, test in zip(*both, strict=True)]


def short_list(names: Sequence[str], most: int = _SHOWN) -> str:
    """Return the first names and the number of the others, on one line without control characters."""
    return ", ".join(map(show_name, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def show_name(name: str) -> str:
    """Return a name as it is shown: short, without control characters, in quotes if blanks begin or end it."""
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", name)
    text = text if len(text) <= _LENGTH else text[: _LENGTH - 1] + "…"
    return text if text and text == text.strip() else repr(text)


def _counted(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number} {noun if number == 1 else plural}"


def _near(missing: Sequence[str], head: Sequence[str]) -> str:
    """Return a hint at a name of the head that differs in case, blanks or hyphens only."""
    folded = {_folded(name): name for name in head}
    pairs = ((name, folded[_folded(name)]) for name in missing if _folded(name) in folded)
    return next((f" ({show_name(name)!r} is nearly {show_name(near)!r})" for name, near in pairs), "")


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())
