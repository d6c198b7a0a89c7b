"""An image -> the array that a model takes."""

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
    """The model's own: resize the short side to ``size``, crop its centre, scale to 0..1, normalise."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation


def prepare(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The model's geometry and channels: short side resized, centre cropped, RGB or grey."""
    height, width = preprocessing.size
    image = image.convert("L" if len(preprocessing.mean) == 1 else "RGB")
    return ImageOps.fit(image, (width, height), _RESAMPLING[preprocessing.interpolation])


def normalise(image: Image.Image, preprocessing: Preprocessing) -> Float32:
    """A prepared image -> float32 ``[C, H, W]``."""
    pixels = np.asarray(image).reshape(*preprocessing.size, -1)  # [H, W, C]
    normalised = np.empty((len(preprocessing.mean), *preprocessing.size), np.float32)
    for channel, values in enumerate(_normalised_values(preprocessing.mean, preprocessing.std)):
        np.take(values, pixels[..., channel], out=normalised[channel], mode="clip")  # else it is checked in a copy
    return normalised


@functools.cache
def _normalised_values(mean: tuple[float, ...], std: tuple[float, ...]) -> Float32:
    """What each of a channel's 256 values becomes: ``[C, 256]``. To look it up is cheaper than to compute it."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    return (values - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
