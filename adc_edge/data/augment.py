"""Training augmentation of Pillow images, with a random generator that the caller seeds for each image.

torchvision's transforms draw from one global generator, for which worker threads would race, and torchvision is hard
to install on a Jetson. The operations and magnitudes are torchvision's (RandAugment, 31 bins; ColorJitter); tests
compare them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from adc_edge.errors import SettingError

Generator = np.random.Generator
Augmentation = Callable[[Image.Image, Generator], Image.Image]

_BINS = 31
_JITTER = 0.4


def _affine(image: Image.Image, matrix: tuple[float, float, float, float, float, float]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, strength: kind(image).enhance(1.0 + 0.9 * strength)


# Each operation takes a strength in [-1, 1], of random sign, and scales it as RandAugment does.
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, s: image,
    "shear_x": lambda image, s: _affine(image, (1, 0.3 * s, 0, 0, 1, 0)),
    "shear_y": lambda image, s: _affine(image, (1, 0, 0, 0.3 * s, 1, 0)),
    "translate_x": lambda image, s: _affine(image, (1, 0, -int(150 / 331 * image.width * s), 0, 1, 0)),
    "translate_y": lambda image, s: _affine(image, (1, 0, 0, 0, 1, -int(150 / 331 * image.height * s))),
    "rotate": lambda image, s: image.rotate(30 * s),
    "brightness": _enhance(ImageEnhance.Brightness),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * abs(s))),
    "solarize": lambda image, s: ImageOps.solarize(image, math.ceil(255 - 255 * abs(s))),
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
}


def flip(image: Image.Image, rng: Generator) -> Image.Image:
    """Mirror left and right with probability 1/2."""
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def jitter(image: Image.Image, rng: Generator) -> Image.Image:
    """Change brightness, contrast and saturation in random order: ColorJitter(.4, .4, .4)."""
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for kind in rng.permutation(len(kinds)):
        image = kinds[kind](image).enhance(rng.uniform(1 - _JITTER, 1 + _JITTER))
    return image


def randaugment(image: Image.Image, rng: Generator, operations: int = 2, magnitude: int = 9) -> Image.Image:
    """Apply random ``operations``, each at ``magnitude`` of 31 bins with a random sign: RandAugment(2, 9)."""
    names = list(OPERATIONS)
    for choice in rng.integers(len(names), size=operations):
        sign = 1.0 if rng.random() < 0.5 else -1.0
        image = OPERATIONS[names[choice]](image, sign * magnitude / (_BINS - 1))
    return image


AUGMENTATIONS: dict[str, Augmentation] = {"flip": flip, "jitter": jitter, "randaugment": randaugment}


def parse_augmentation(names: str) -> Sequence[Augmentation]:
    """Return the functions of a list such as ``"flip,jitter"``, in its order; raises SettingError on another name."""
    wanted = [name for name in names.split(",") if name and name != "none"]
    unknown = [name for name in wanted if name not in AUGMENTATIONS]
    if unknown:
        raise SettingError(
            f"--augment {names!r}: {', '.join(unknown)} is unknown",
            f"a comma-separated list of {', '.join(AUGMENTATIONS)}, or none",
            "for example --augment flip,randaugment",
        )
    return [AUGMENTATIONS[name] for name in wanted]
