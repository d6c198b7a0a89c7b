"""A data set that a user's own Python function makes: ``--data MODULE:FACTORY``.

FACTORY takes no argument. It returns an `adc_edge.data.sources.Dataset`, or a pair (train, test) of sequences of
(image, label): PIL images or uint8 arrays [H, W] or [H, W, C], and whole numbers from 0 on. A sequence that opens its
images only when they are asked for also has `labels` or `targets`, and may have `classes`: names in the order of their
labels, or a mapping of each name to its label. MODULE is
imported from the current directory or from the installed packages.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from PIL import Image

from adc_edge.arrays import Labels
from adc_edge.data.decoding import upright
from adc_edge.data.sources import SOURCES, Dataset, Split
from adc_edge.errors import DataError

_EXPECTED = "a Dataset, or a pair (train, test) of sequences of (image, label)"
_DOCS = "see adc_edge/data/user_module.py"
_OPTIONAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class PairSplit:
    """Images of a sequence of (image, label)."""

    def __init__(self, pairs: Any, labels: Labels, name: str) -> None:
        self._pairs, self.labels, self._name = pairs, labels, name

    def image(self, index: int) -> Image.Image:
        """Return the image at ``index``; raises DataError if it is no image."""
        return _image(self._pairs[index][0], f"{self._name}[{index}]")


def load_module(module: str, factory: str) -> Dataset:
    """Return what ``factory`` of ``module`` makes.

    Raises:
        DataError: the module cannot be imported, has no such function, or its function fails or returns something else.
    """
    source = f"{module}:{factory}"
    made = _call(_find(module, factory, source), source)
    if isinstance(made, Dataset):
        train, test = _checked(made.train, source), _checked(made.test, source)
        return made._replace(train=train, test=test, classes=_names(made.classes, f"{source}: Dataset.classes"))
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise DataError(f"what {source} returned is {_kind(made)}", _EXPECTED, _DOCS)
    train, test = (_split(part, f"{source}: {name}") for part, name in zip(made, ("train", "test"), strict=True))
    top = max(train.labels.max(initial=-1), test.labels.max(initial=-1))
    names = _common_names(made, source)
    return Dataset(train, test, names or [str(n) for n in range(top + 1)], named=bool(names))


def _find(module: str, factory: str, source: str) -> Callable[[], Any]:
    if "" not in sys.path:
        sys.path.insert(0, "")  # the current directory, also for the installed command
    try:
        found = reduce(getattr, factory.split("."), importlib.import_module(module))
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise _failed(source, error) from error
        raise DataError(
            f"data source {source}: no module {error.name!r}",
            SOURCES,
            "check the name; a module of yours is looked for in the current directory and among the installed packages",
        ) from None
    except AttributeError as error:
        if getattr(error, "obj", None) is None or error.name not in factory.split("."):
            raise _failed(source, error) from error
        raise DataError(f"{source}: {error}", "a function of that name", "check the name") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit
        raise _failed(source, error) from error
    if not callable(found):
        raise DataError(f"{source} is {_kind(found)}", "a function without arguments", _DOCS)
    with contextlib.suppress(ValueError):  # a function of C without a signature
        signature = inspect.signature(found)
        if any(p.default is p.empty and p.kind not in _OPTIONAL for p in signature.parameters.values()):
            raise DataError(f"{source}{signature} takes arguments", "a function without arguments", _DOCS)
    return found


def _call(function: Callable[[], Any], source: str) -> Any:
    try:
        return function()
    except (DataError, KeyboardInterrupt):
        raise
    except BaseException as error:  # also SystemExit
        raise _failed(source, error) from error


def _failed(source: str, error: BaseException) -> DataError:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f" ({trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})"
    return DataError(f"{source} failed: {type(error).__name__}: {error}{where}", "a data set", "mend that line")


def _checked(split: Any, source: str) -> Split:
    labels = getattr(split, "labels", None)
    if (
        not callable(getattr(split, "image", None))
        or not isinstance(labels, np.ndarray)
        or labels.dtype.kind not in "iu"
        or labels.ndim != 1
    ):
        expected = "splits with the method image(index) and labels, an array [n] of whole numbers"
        found = f", its labels {_kind(labels)}" if hasattr(split, "labels") else ""
        raise DataError(f"{source} returned a Dataset whose split is {_kind(split)}{found}", expected, _DOCS)
    checked: Split = split
    return checked


def _common_names(made: Any, source: str) -> list[str]:
    """Return the class names that the splits have; none if they have none."""
    told = []
    for part, name in zip(made, ("train", "test"), strict=True):
        classes = getattr(part, "classes", None)
        told.append([] if classes is None else _names(classes, f"{source}: {name}.classes"))
    train, test = told
    if any(one != other for one, other in zip(train, test, strict=False)):
        raise DataError(
            f"{source}: train has the classes {', '.join(train)}, test {', '.join(test)}",
            "the same classes in the same order: a label is a place in them",
            "number the labels of both splits by one list",
        )
    return max(train, test, key=len)


def _names(classes: Any, name: str) -> list[str]:
    """Return class names in the order of their labels."""
    if isinstance(classes, np.ndarray) and classes.ndim == 1:
        classes = (np.char.decode(classes, "utf-8", "replace") if classes.dtype.kind == "S" else classes).tolist()
    if isinstance(classes, Mapping):
        if not all(map(_is_whole, classes.values())) or sorted(classes.values()) != list(range(len(classes))):
            raise DataError(f"{name} is {classes!r:.200}", "each name with its label, from 0 on", _DOCS)
        classes = sorted(classes, key=lambda key: int(classes[key]))
    is_list = isinstance(classes, Sequence) and not isinstance(classes, str | bytes)
    if is_list and all(isinstance(one, str | int | np.integer) for one in classes):
        return [str(one) for one in classes]
    raise DataError(f"{name} is {_kind(classes)}", "a list of the names of the classes", _DOCS)


def _split(part: Any, name: str) -> PairSplit:
    try:
        count = operator.index(len(part))
        labels = _labels(part, count)
        first = part[0][0] if count else None
    except (Exception, SystemExit) as error:
        raise DataError(f"{name} is {_kind(part)}: {error}", "a sequence of (image, label)", _DOCS) from None
    wrong = next((n for n, label in enumerate(labels) if not _is_whole(label)), None)
    if wrong is not None:
        raise DataError(f"{name}[{wrong}] has the label {labels[wrong]!r}", "a whole number from 0 on", _DOCS)
    if count:
        _image(first, f"{name}[0]")
    return PairSplit(part, np.array([int(label) for label in labels], np.int64), name)


def _labels(part: Any, count: int) -> list[Any]:
    """Return all labels, without decoding all images where the sequence tells its labels."""
    for name in ("labels", "targets"):
        told = getattr(part, name, None)
        if told is not None and len(told) == count:
            return list(told)
    return [part[index][1] for index in range(count)]


def _is_whole(label: Any) -> bool:
    try:
        return -(2**63) <= operator.index(label) < 2**63
    except TypeError:
        return False


def _image(value: Any, name: str) -> Image.Image:
    if isinstance(value, Image.Image):
        return upright(value)
    array = isinstance(value, np.ndarray) and value.dtype == np.uint8
    if array and (value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (1, 3, 4))):
        return Image.fromarray(value[:, :, 0] if value.shape[2:] == (1,) else value)
    raise DataError(f"{name} is {_kind(value)}", "a PIL image, or uint8 [H, W] or [H, W, C], C 1, 3 or 4", _DOCS)


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype} {list(value.shape)}"
    return "None" if value is None else f"of type {type(value).__qualname__}"
