"""The images of a study as pictures that are sent once, both splits apart: the record pictures.json."""

from __future__ import annotations

from typing import Any

import msgspec

from adc_edge.data.pictures import ENCODER, SplitPictures, line_bytes, measured_split
from adc_edge.data.preprocessing import Preprocessing
from adc_edge.data.sources import Dataset

PICTURES_FORMAT = 1
MOST_MEASURED = 6_000  # images of a split that are encoded


class Pictures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The images of a study as pictures: pictures.json in its directory."""

    format: int
    size: tuple[int, int]  # H, W of the JPEGs
    encoder: str
    train: SplitPictures
    test: SplitPictures


def measured_pictures(data: Dataset, preprocessing: Preprocessing) -> Pictures:
    """Measure the images of both splits, as ``measured_split`` does.

    Raises:
        DataError: no image of a split can be read.
    """
    train, test = (measured_split(split, preprocessing, MOST_MEASURED) for split in (data.train, data.test))
    return Pictures(PICTURES_FORMAT, preprocessing.size, ENCODER, train, test)


def pictures_facts(pictures: Pictures) -> dict[str, Any]:
    """Return a record as plain values by name, for the page."""
    return {
        "size": " x ".join(map(str, pictures.size)),
        "encoder": pictures.encoder,
        **{name: _told(getattr(pictures, name)) for name in ("train", "test")},
    }


def _told(split: SplitPictures) -> str:
    sampled = f", scaled up from a sample of {split.measured:,}" if split.measured < split.images else ""
    broken = f", without {split.broken:,} that cannot be read" if split.broken else ""
    sizes = ", ".join(f"{name} {size / split.images / 1e3:.3g} kB" for name, size in line_bytes(split).items())
    return f"{split.images:,} images{sampled}{broken}; an image on average: {sizes}"
