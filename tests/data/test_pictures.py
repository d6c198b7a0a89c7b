"""The images of a split as pictures: their files' bytes, and JPEGs compared with those that Pillow writes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adc_edge.data.pictures import line_bytes, measured_split
from adc_edge.data.preprocessing import Preprocessing, prepare
from adc_edge.data.sources import ArraySplit, Dataset, Split, load_dataset
from adc_edge.errors import DataError

COLOUR = Preprocessing((24, 24), (0.5,) * 3, (0.5,) * 3, "bicubic", crop_pct=0.9)
ALL = 1_000


def a_folder(root: Path, train: int = 6, test: int = 3) -> Dataset:
    """Photo-like files of different sizes, half of them PNG."""
    rng = np.random.default_rng(0)
    for split, number in (("train", train), ("test", test)):
        for index in range(number):
            low = rng.integers(0, 256, (5, 7, 3), np.uint8)
            path = root / split / ("cats", "dogs")[index % 2] / f"{index:02d}.{('jpg', 'png')[index % 2]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(low).resize((50 + index, 40), Image.Resampling.BICUBIC).save(path)
    return load_dataset(f"folder:{root}")


def encoded(split: Split, quality: int, preprocessing: Preprocessing = COLOUR) -> int:
    total = 0
    for index in range(len(split.labels)):
        file = io.BytesIO()
        prepare(split.image(index), preprocessing).save(file, format="JPEG", quality=quality)
        total += len(file.getvalue())
    return total


def test_own_files_count_as_they_lie_on_the_disk_and_jpegs_as_pillow_writes_them(tmp_path: Path) -> None:
    train = a_folder(tmp_path).train
    found = measured_split(train, COLOUR, ALL)
    files = [path for path in (tmp_path / "train").rglob("*") if path.is_file()]
    assert found.bytes_files == sum(path.stat().st_size for path in files)
    assert found.bytes_q90 == encoded(train, 90)
    assert found.bytes_q75 == encoded(train, 75) < found.bytes_q90
    assert (found.images, found.measured, found.broken) == (6, 6, 0)
    assert list(line_bytes(found)) == ["own files", "JPEG q90", "JPEG q75"]


def test_a_source_of_arrays_has_no_files() -> None:
    grey = Preprocessing((16, 16), (0.5,), (0.5,), "bicubic", crop_pct=1.0)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 8), np.uint8)
    split = ArraySplit(pixels, np.zeros(9, np.int64))
    found = measured_split(split, grey, ALL)
    assert found.bytes_files is None
    assert found.bytes_q90 == encoded(split, 90, grey)
    assert list(line_bytes(found)) == ["JPEG q90", "JPEG q75"]


def test_broken_images_are_left_out_with_their_files(tmp_path: Path) -> None:
    whole = measured_split(a_folder(tmp_path).train, COLOUR, ALL)
    broken = tmp_path / "train" / "cats" / "02.jpg"
    lost = broken.stat().st_size
    broken.write_bytes(broken.read_bytes()[:60])
    found = measured_split(load_dataset(f"folder:{tmp_path}").train, COLOUR, ALL)
    assert (found.images, found.measured, found.broken) == (5, 5, 1)
    assert whole.bytes_files is not None
    assert found.bytes_files == whole.bytes_files - lost
    assert found.bytes_q90 < whole.bytes_q90


def test_a_large_split_is_scaled_up_from_the_same_sample_each_time(tmp_path: Path) -> None:
    train = a_folder(tmp_path, train=40).train
    whole, found = measured_split(train, COLOUR, 40), measured_split(train, COLOUR, 20)
    assert (found.images, found.measured) == (40, 20)
    assert found.bytes_q90 == pytest.approx(whole.bytes_q90, rel=0.1)
    assert found.bytes_q90 != whole.bytes_q90
    assert found.bytes_files == pytest.approx(whole.bytes_files, rel=0.25)
    assert measured_split(train, COLOUR, 20) == found


def test_a_split_without_any_readable_image_is_refused(tmp_path: Path) -> None:
    test = a_folder(tmp_path).test
    for path in (tmp_path / "test").rglob("*.*"):
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="no image can be read"):
        measured_split(test, COLOUR, ALL)
