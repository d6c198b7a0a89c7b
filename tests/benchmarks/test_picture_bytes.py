"""Bytes of pictures: the means are those of the JPEGs that Pillow writes of the resized images."""

from __future__ import annotations

import io
import statistics

import numpy as np
import picture_bytes
import pytest
from PIL import Image

from adc_edge.data.sources import ArraySplit


@pytest.mark.parametrize(("side", "most"), [(24, 9), (48, 9), (24, 4)])
def test_the_mean_is_that_of_the_jpegs(side: int, most: int) -> None:
    low = np.random.default_rng(0).integers(0, 256, (9, 24, 24, 3), np.uint8)
    split = ArraySplit(low, np.zeros(9, np.int64))
    found = picture_bytes.mean_bytes(split, side, most)
    assert list(found) == ["JPEG q90", "JPEG q75"]
    for quality in (90, 75):
        sizes = []
        for pixels in low:
            file = io.BytesIO()
            image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
            image.save(file, "JPEG", quality=quality)
            sizes.append(len(file.getvalue()))
        loose = 1e-9 if most == len(low) else 0.1
        assert found[f"JPEG q{quality}"] == pytest.approx(statistics.mean(sizes), rel=loose, abs=1)
