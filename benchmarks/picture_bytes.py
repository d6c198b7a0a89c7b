"""Bytes of images as pictures: the mean over a train split, of the source's own files and as JPEG in two qualities.

    python benchmarks/picture_bytes.py --data folder:food101_64px --img-size 64

Images are resized as for training with `--crop-pct 1` and encoded as in `adc_edge.data.pictures`. So much would the
pictures cost, sent once, without labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from adc_edge.data.pictures import line_bytes, measured_split
from adc_edge.data.preprocessing import Preprocessing
from adc_edge.data.sources import Split, load_dataset

_MEASURED = 1000


def mean_bytes(split: Split, side: int, most: int = _MEASURED) -> Mapping[str, float]:
    """Bytes of one image by name of the kind of picture.

    Args:
        split: the images.
        side: of the square, in pixels.
        most: images that are measured, of a larger split a random sample.

    Raises:
        DataError: no image can be read.
    """
    colour = (0.0,) * 3  # normalisation comes after the pictures
    found = measured_split(split, Preprocessing((side, side), colour, (1.0,) * 3, "bicubic", crop_pct=1.0), most)
    return {name: size / found.images for name, size in line_bytes(found).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="A data source, as of `adc-edge serve`.")
    parser.add_argument("--img-size", type=int, required=True, help="Side in pixels.")
    parser.add_argument("--images", type=int, default=_MEASURED, help="Number of images that are measured.")
    asked = parser.parse_args()
    for name, size in mean_bytes(load_dataset(asked.data).train, asked.img_size, asked.images).items():
        print(f"{name}: {size:,.0f} bytes an image")


if __name__ == "__main__":
    main()
