"""Arrays in an .npz file, also in the shapes in which other people save them, where these leave no doubt.

x_train, y_train, x_test, y_test    or train_images, test_labels and the like; val may stand for test
x, y                                or images, labels, data, target: a tenth of the images is held out
images    [n, H, W], [n, H, W, C] or [n, C, H, W], C 1, 3 or 4; uint8, other integers 0..255, bool, float 0..1, or float
          with whole numbers 0..255
labels    [n], [n, 1] or one-hot [n, classes]; whole numbers, or names of classes

Everything else is refused with the line of NumPy that mends it.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adc_edge.arrays import Array, Labels
from adc_edge.data.listing import log_held_out
from adc_edge.data.sources import ArraySplit, Dataset
from adc_edge.errors import DataError

_KEYS = "x_train, y_train, x_test, y_test"
_WORDS = {  # of a key
    **dict.fromkeys(("x", "image", "images", "img", "imgs", "data"), "x"),
    **dict.fromkeys(("y", "label", "labels", "target", "targets"), "y"),
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}
_CHANNELS = (1, 3, 4)
_MOST_CLASSES = 1_000_000
_BRIGHT = 128  # whole numbers of images reach it, or they may be on another scale, such as 0..16


class _Part(NamedTuple):
    """One split as it stands in the file, with the names of its two arrays."""

    x: Array
    y: Array
    x_name: str
    y_name: str

    def __str__(self) -> str:
        x, y = self.x, self.y
        return f"{self.x_name} is {x.dtype} {list(x.shape)}, {self.y_name} {y.dtype} {list(y.shape)}"


class NpzReader:
    """Reads the arrays of the file at ``where``; every error names it."""

    def __init__(self, where: str) -> None:
        self._where = where

    def load(self) -> Dataset:
        """Return the data set of the file.

        Raises:
            DataError: the file cannot be read, or its arrays are of another kind.
        """
        arrays = self._arrays()
        names = self._class_names(arrays.pop("classes")) if "classes" in arrays else []
        train, test = self._pixels(*self._parts(arrays))
        y_train, y_test, found = self._labels(train, test, names)
        named = bool(names) or train.y.dtype.kind in "US"
        return Dataset(ArraySplit(train.x, y_train), ArraySplit(test.x, y_test), names or found, named)

    def _error(self, received: object, expected: str, remedy: str) -> DataError:
        return DataError(f"npz:{self._where}: {received}", expected, remedy)

    def _class_names(self, classes: Array) -> list[str]:
        if classes.ndim == 1 and classes.dtype.kind in "USiu":
            return [str(name) for name in _decoded(classes)]
        received = f"classes is {classes.dtype} {list(classes.shape)}"
        raise self._error(
            received, "names of classes, text [classes]", "for example classes = np.array(['cat', 'dog'])"
        )

    def _arrays(self) -> dict[str, Array]:
        try:
            with open(self._where, "rb") as raw:
                if not zipfile.is_zipfile(raw):
                    raise ValueError("no .npz archive")
                raw.seek(0)
                with np.load(raw, allow_pickle=False) as file:
                    return {key: file[key] for key in file.files if key == "classes" or _parsed(key)}
        except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
            remedy = "check the path" if isinstance(error, OSError) else "write it with numpy.savez"
            raise self._error(getattr(error, "strerror", None) or error, f"an .npz with {_KEYS}", remedy) from None

    def _parts(self, arrays: dict[str, Array]) -> tuple[_Part, _Part]:
        keys: dict[tuple[str, str], str] = {}
        for key in arrays:
            meaning = _parsed(key)
            assert meaning is not None
            if meaning in keys:
                raise self._error(f"{keys[meaning]} and {key}", f"one of them: {_KEYS}", "leave one out")
            keys[meaning] = key
        found = {}
        for split in ("train", "test", "val", ""):
            x, y = keys.get((split, "x")), keys.get((split, "y"))
            if x is not None and y is not None:
                found[split] = _Part(arrays[x], arrays[y], x, y)
                self._check_length(found[split])  # before a tenth is held out
            elif x is not None or y is not None:
                missing = f"{'y' if y is None else 'x'}_{split}".rstrip("_")
                raise self._error(f"{x or y} without {missing}", f"an .npz with {_KEYS}", "write it with numpy.savez")
        whole, test = found.get("train") or found.get(""), found.get("test") or found.get("val")
        if whole is None:
            raise self._error(f"it holds {', '.join(arrays) or 'none of these'}", f"an .npz with {_KEYS}", _SAVE)
        if test is None and "train" in found:  # or a file that was cut off would be taken
            remedy = f"add them, or np.savez(FILE, x={whole.x_name}, y={whole.y_name}): then a tenth is held out"
            raise self._error("x_test and y_test are missing", f"an .npz with {_KEYS}", remedy)
        return (whole, test) if test is not None else _held_out(whole)

    def _check_length(self, part: _Part) -> None:
        x, y = part.x, part.y
        if x.ndim and y.ndim and len(x) == len(y):
            return
        last = x.ndim == 4 and y.ndim and x.shape[-1] == len(y)
        remedy = f"{part.x_name} = np.moveaxis({part.x_name}, -1, 0)" if last else "save one label for each image"
        raise self._error(part, "one label for each image", remedy)

    def _pixels(self, train: _Part, test: _Part) -> tuple[_Part, _Part]:
        """Return both parts with images as uint8 [n, H, W] or [n, H, W, C]."""
        train, test = (part._replace(x=self._channels_last(part)) for part in (train, test))
        parts = (train, test)
        floats = [part.x.dtype.kind == "f" for part in parts]
        for part in parts:
            if part.x.dtype.kind not in "buif":
                raise self._error(part, "images as uint8", f"{part.x_name} = {part.x_name}.astype(np.uint8)")
        if any(floats) and not all(floats):
            part, other = parts if floats[0] else parts[::-1]
            remedy = f"{part.x_name} = {_TO_BYTES.format(part.x_name)}"
            raise self._error(f"{part}; {other}", "one type in both splits", remedy)
        if train.x_name == test.x_name:  # one array, of which a dark tenth may be held out
            scale = self._scale(train, [part.x for part in parts if part.x.size])
            scales = [scale, scale]
        else:
            scales = [self._scale(part, [part.x] if part.x.size else []) for part in parts]
            self._check_scales(parts, scales)
        return train._replace(x=_as_bytes(train.x, scales[0])), test._replace(x=_as_bytes(test.x, scales[1]))

    def _check_scales(self, parts: tuple[_Part, _Part], scales: list[int]) -> None:
        if scales[0] == scales[1] or not all(part.x.size for part in parts):
            return
        part, other = parts if scales[0] == 1 else parts[::-1]
        received = f"{part}; white is 1 in it, and 255 in {other.x_name}"
        raise self._error(received, "one scale in both splits", f"{part.x_name} = {_TO_BYTES.format(part.x_name)}")

    def _channels_last(self, part: _Part) -> Array:
        x, name = part.x, part.x_name
        if x.ndim == 3 or (x.ndim == 4 and x.shape[3] in _CHANNELS):
            return x
        if x.ndim == 4 and x.shape[1] in _CHANNELS:
            return x.transpose(0, 2, 3, 1)
        expected = "images [n, H, W], [n, H, W, C] or [n, C, H, W], C 1, 3 or 4"
        if x.ndim == 2:
            side = next((s for c in _CHANNELS for s in [_root(x.shape[1] / c)] if s), None)
            shape = "-1, H, W" if side is None else f"-1, {side}, {side}" + ("" if side**2 == x.shape[1] else ", 3")
            raise self._error(part, expected, f"{name} = {name}.reshape({shape})")
        line = f"{name} = {name}[..., :3]" if x.ndim == 4 else f"{name} = {name}.reshape(-1, H, W, 3)"
        raise self._error(part, expected, line)

    def _scale(self, part: _Part, images: list[Array]) -> int:
        """Return what white is in images: 1 or 255."""
        if all(x.dtype == np.uint8 for x in images):
            return 255
        low, high = float(min(x.min() for x in images)), float(max(x.max() for x in images))
        kinds = {x.dtype.kind for x in images}
        if kinds == {"b"}:
            return 1
        received, name = f"{part}; its values are {low:g} to {high:g}", part.x_name
        if not np.isfinite(low) or not np.isfinite(high):
            line = f"{name} = np.nan_to_num({name}, posinf=0, neginf=0), or leave those images out"
            raise self._error(received, "images without NaN and infinity", line)
        if "f" in kinds and low >= 0 and high <= 1:
            return 1
        whole = all(x.dtype.kind != "f" or bool((x == np.rint(x)).all()) for x in images)
        if low >= 0 and _BRIGHT <= high <= 255 and whole:
            return 255
        line = _line(low, high, whole).format(name)
        raise self._error(received, _VALUES, f"{name} = {line}, and both splits on one scale")

    def _labels(self, train: _Part, test: _Part, classes: list[str]) -> tuple[Labels, Labels, list[str]]:
        y_train, y_test = (self._one_a_row(part) for part in (train, test))
        texts = [y.dtype.kind in "US" for y in (y_train, y_test)]
        if all(texts):
            if classes:
                return self._by_name(y_train, classes, train), self._by_name(y_test, classes, test), classes
            return self._named(y_train, y_test, train.y_name == test.y_name)
        numbers = [self._whole(y, part) for y, part in ((y_train, train), (y_test, test))]
        top = max(int(y.max(initial=-1)) for y in numbers)
        columns = [part.y.shape[1] for part in (train, test) if part.y.ndim == 2 and part.y.shape[1] > 1]
        return numbers[0], numbers[1], [str(n) for n in range(max([top + 1, *columns]))]

    def _one_a_row(self, part: _Part) -> Array:
        """Return labels as [n]."""
        y, name = part.y, part.y_name
        if y.ndim == 1:
            return y
        if y.ndim == 2 and y.shape[1] == 1:
            return y[:, 0]
        expected = "one label for each image: [n], [n, 1] or one-hot [n, classes]"
        if y.ndim == 2 and y.dtype.kind in "buif" and y.shape[1]:
            if bool(((y == 0) | (y == 1)).all()) and bool((y.sum(axis=1) == 1).all()):
                return np.asarray(y.argmax(axis=1))
            raise self._error(f"{part}, and its rows are not one-hot", expected, f"{name} = {name}.argmax(axis=1)")
        raise self._error(part, expected, f"{name} = {name}.reshape(len({name}), -1)[:, 0]")

    def _whole(self, y: Array, part: _Part) -> Labels:
        expected = f"whole numbers from 0 on as labels, below {_MOST_CLASSES}, or names of classes in both splits"
        name = part.y_name
        if y.dtype.kind == "f" and not bool((np.isfinite(y) & (y == np.rint(y))).all()):
            raise self._error(f"{part}, not whole numbers", expected, f"{name} = {name}.astype(np.int64)")
        if y.dtype.kind not in "buif":
            raise self._error(part, expected, f"{name} = np.unique({name}, return_inverse=True)[1]")
        if len(y) and y.max() >= _MOST_CLASSES:
            raise self._error(
                f"{part}; the largest label is {int(y.max())}",
                expected,
                "values, y = np.unique(np.concatenate([y_train, y_test]), return_inverse=True), "
                "then y_train, y_test = np.split(y, [len(y_train)])",
            )
        return y.astype(np.int64)

    def _by_name(self, y: Array, classes: list[str], part: _Part) -> Labels:
        """Return the place in ``classes`` of each label that is a name."""
        outputs = {name: index for index, name in enumerate(classes)}
        names = _decoded(y).tolist()
        missing = sorted(set(names) - set(classes))
        if missing:
            received = f"{part.y_name} has {', '.join(missing)}, which the array classes lacks"
            raise self._error(
                received, f"names in classes: {', '.join(classes)}", "add them to classes, or leave it out"
            )
        return np.array([outputs[name] for name in names], np.int64)

    def _named(self, y_train: Array, y_test: Array, one: bool) -> tuple[Labels, Labels, list[str]]:
        names, y = np.unique(_decoded(y_train), return_inverse=True)
        foreign = sorted(set(_decoded(y_test).tolist()) - set(names.tolist()))
        if foreign:
            place, remedy = "the test split has", "move some of their images there"
            if one:
                place = "all images are in the tenth that is held out of"
                remedy = f"add images of them to the file, or save both splits: {_SAVE}"
            raise self._error(f"{place} the classes {', '.join(foreign)}", "classes of the train split", remedy)
        return y.astype(np.int64), np.searchsorted(names, _decoded(y_test)).astype(np.int64), names.tolist()


_SAVE = "np.savez(FILE, x_train=…, y_train=…, x_test=…, y_test=…)"
_VALUES = "uint8; or other whole numbers 0 to 255, or float 0 to 1"
_TO_BYTES = "np.rint(np.clip({0}, 0, 1) * 255).astype(np.uint8)"


def _parsed(key: str) -> tuple[str, str] | None:
    """Return the split ("" without one) and x or y for a key such as train_images or Y-test; None for other keys."""
    words = [_WORDS.get(word, "other") for word in re.split(r"[_\-. ]+", key.lower())]
    kinds = [word for word in words if word in ("x", "y")]
    splits = [word for word in words if word in ("train", "test", "val")]
    whole = len(kinds) == 1 and len(splits) <= 1 and len(kinds) + len(splits) == len(words)
    return ("".join(splits), kinds[0]) if whole else None


def _held_out(part: _Part) -> tuple[_Part, _Part]:
    """Hold out a tenth, the same images each time."""
    log_held_out()
    count = len(part.x)
    order = np.random.default_rng(0).permutation(count)
    test, train = np.sort(order[: -(-count // 10)]), np.sort(order[-(-count // 10) :])
    return part._replace(x=part.x[train], y=part.y[train]), part._replace(x=part.x[test], y=part.y[test])


def _as_bytes(x: Array, white: int) -> npt.NDArray[np.uint8]:
    return np.rint(x.astype(np.float32) * (255 // white)).astype(np.uint8)


def _line(low: float, high: float, whole: bool) -> str:
    """Return the right side of the line that makes uint8 of such values."""
    if low >= 0 and high <= 255:
        to_bytes = f"np.rint({{0}} * (255 / {high or 1:g})).astype(np.uint8), {high or 1:g} being white"
        return f"{to_bytes}; or if 255 is, {{0}}.astype(np.uint8)" if whole else "np.rint({0}).astype(np.uint8)"
    if low >= 0 and whole:
        return "({0} >> 8).astype(np.uint8)" if high <= 65535 else "np.rint({0} * (255 / {0}.max())).astype(np.uint8)"
    if -1 <= low < 0 and high <= 1:
        return "np.rint(({0} + 1) * 127.5).astype(np.uint8)"
    return "np.rint(np.clip({0} * std + mean, 0, 1) * 255).astype(np.uint8), with the mean and std of its normalisation"


def _decoded(y: Array) -> npt.NDArray[np.str_]:
    return np.char.decode(y, "utf-8", "replace") if y.dtype.kind == "S" else y


def _root(area: float) -> int | None:
    side = round(area**0.5)
    return side if side * side == area else None
