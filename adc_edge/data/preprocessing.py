"""An image -> the array that a model takes as its input."""

from __future__ import annotations

import functools
import math
from typing import Annotated, Literal

import msgspec
import numpy as np
from PIL import Image, ImageOps

from adc_edge.arrays import Float32
from adc_edge.data.decoding import flatten

CropMode = Literal["center", "squash", "border"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Preprocessing of a model: resize, crop the centre, scale to 0..1, normalise.

    Resize and crop are those of timm's evaluation transform, pixel for pixel: the short side becomes
    ``size / crop_pct``, and the centre of ``size`` is cut out. ``crop_mode`` squash resizes each side by itself, border
    fits the long side and pads. Training images get the same resize and crop before they are augmented.
    Without ``crop_pct``, as in bundles of 0.6, one step resizes the largest centred part of the aspect ratio of
    ``size``.
    """

    size: tuple[int, int]  # H, W
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation
    crop_pct: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    crop_mode: CropMode = "center"


def prepare(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Convert an image to the model's size and channels (RGB or grey).

    Raises:
        DataError: its pixels have no known range.
    """
    image, mode = flatten(image), "L" if len(preprocessing.mean) == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    height, width = preprocessing.size
    resampling = _RESAMPLING[preprocessing.interpolation]
    if preprocessing.crop_pct is None:
        return ImageOps.fit(image, (width, height), resampling)
    return _centre(image.resize(_resized_size(image, preprocessing), resampling), preprocessing)


def _resized_size(image: Image.Image, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return width and height to which an image is resized before the crop; the arithmetic is timm's."""
    assert preprocessing.crop_pct is not None
    height, width = (math.floor(side / preprocessing.crop_pct) for side in preprocessing.size)
    if preprocessing.crop_mode == "squash":
        return width, height
    if preprocessing.crop_mode == "center" and width == height:
        if image.width <= image.height:
            return width, int(height * image.height / image.width)
        return int(width * image.width / image.height), height
    ratios = image.height / height, image.width / width
    ratio = min(ratios) if preprocessing.crop_mode == "center" else max(ratios)
    return max(1, round(image.width / ratio)), max(1, round(image.height / ratio))


def _centre(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Cut the centre out; a smaller image is padded, in crop mode border with the model's mean colour."""
    height, width = preprocessing.size
    if image.width < width or image.height < height:
        larger = max(image.width, width), max(image.height, height)
        colour = [round(255 * value) * (preprocessing.crop_mode == "border") for value in preprocessing.mean]
        canvas = Image.new(image.mode, larger, tuple(colour))
        canvas.paste(image, ((larger[0] - image.width) // 2, (larger[1] - image.height) // 2))
        image = canvas
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def normalise(image: Image.Image, preprocessing: Preprocessing) -> Float32:
    """Return a prepared image as normalised float32 ``[C, H, W]``."""
    pixels = np.asarray(image).reshape(*preprocessing.size, -1)  # [H, W, C]
    normalised = np.empty((len(preprocessing.mean), *preprocessing.size), np.float32)
    for channel, values in enumerate(_normalised_values(preprocessing.mean, preprocessing.std)):
        np.take(values, pixels[..., channel], out=normalised[channel], mode="clip")  # mode "raise" would copy
    return normalised


@functools.cache
def _normalised_values(mean: tuple[float, ...], std: tuple[float, ...]) -> Float32:
    """Normalised value of each byte in each channel, ``[C, 256]``: a look-up is faster than the arithmetic."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    return (values - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
