"""An image -> the array that a model takes as its input."""

from __future__ import annotations

import functools
from typing import Literal

import msgspec
import numpy as np
from PIL import Image, ImageOps

from adc_edge.arrays import Float32

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Preprocessing of a model: resize the short side to ``size``, crop the centre, scale to 0..1, normalise."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation


def prepare(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Convert an image to the model's size and channels: resize the short side, crop the centre, RGB or grey."""
    height, width = preprocessing.size
    image = image.convert("L" if len(preprocessing.mean) == 1 else "RGB")
    return ImageOps.fit(image, (width, height), _RESAMPLING[preprocessing.interpolation])


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
