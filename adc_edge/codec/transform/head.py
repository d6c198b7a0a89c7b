"""The head of a transform-coded message: scales by component and band, from which every class follows."""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import numpy as np

from adc_edge.arrays import Float64, Int64
from adc_edge.codec.transform.grid import Grid, no_grid, whole_grid
from adc_edge.codec.transform.models import LARGEST_CLASS, STEPS_PER_OCTAVE, UNIT
from adc_edge.codec.transform.symbols import broken

FIXED_HEAD = struct.Struct("<hBBfHHBB")
MOST_LANES = 4096
NO_LEVEL = -128  # level of a component or band without any coefficient
_UNIT_ENTRIES = 31  # class of entries that are rounded to a step of their deviation
_EXPONENTS = range(-149, 129)  # float32's, as frexp returns them
_BYTES_A_LANE = 192  # a lane costs four of them
_MOST_TO_ONE = 256.0
FINEST_QUARTERS = 60  # of a vector
_QUARTER_OCTAVES = (1.0, 2.0**0.25, 2.0**0.5, 2.0**0.75)


class TransformHead(NamedTuple):
    """All of a message before its symbols."""

    exponent: int
    has_grid: bool
    mean_class: int
    step: float
    lanes: int
    ones: int  # 128ths of a step for which a magnitude of 1 stands
    others: int  # and those for which a larger one, m, does, beyond m - 1
    levels: Int64  # [rank] of the components
    quarters: Int64  # [rank] of their vectors' fineness, in quarter octaves
    image_bands: Int64  # [bands], levels
    mean_bands: Int64  # [bands], levels for the mean of the images

    def pack(self) -> bytes:
        """Return the bytes of the head."""
        fixed = FIXED_HEAD.pack(
            self.exponent,
            self.has_grid,
            self.mean_class,
            self.step,
            len(self.levels),
            self.lanes,
            self.ones,
            self.others,
        )
        parts = (self.levels, self.quarters, self.image_bands, self.mean_bands)
        return fixed + b"".join(part.astype(np.int8).tobytes() for part in parts)

    def image_classes(self, grid: Grid) -> Int64:
        """Return the class of each coefficient of an image, ``[N, rank]``; -1 where it is not coded."""
        return classes(self.levels, self.image_bands, grid)

    def mean_classes(self, grid: Grid) -> Int64:
        """Return the class of each coefficient of the mean image, ``[N, rank]``; -1 where it is not coded."""
        return classes(self.levels, self.mean_bands, grid)

    def all_classes(self, grid: Grid, images: int, width: int) -> Int64:
        """Return the class of each symbol: mean vector, vectors, mean image, images."""
        means, each = self.mean_classes(grid), self.image_classes(grid)
        return np.concatenate(
            (
                np.full(width, self.mean_class),
                np.repeat(self.quarters + _UNIT_ENTRIES, width),
                means[means >= 0],
                np.repeat(each[each >= 0], images),
            )
        )


def mean_steps(rows: int) -> float:
    """Return how many steps of the mean vector one step is: its error is in all rows, but its symbols are 32 bits."""
    return min(math.sqrt(rows), _MOST_TO_ONE)


def lanes_for(size: int) -> int:
    """Return the lanes of the range coder in a message of ``size`` bytes."""
    return min(max(size // _BYTES_A_LANE, 1), MOST_LANES)


def layout(shape: tuple[int, ...], has_grid: bool) -> tuple[int, Grid]:
    """Return how many images a tensor ``[..., N, D]`` is coded as, and the grid of their tokens.

    Without a grid every row is an image of one token.
    """
    tokens = shape[-2] if len(shape) > 2 else 1
    rows = math.prod(shape[:-1])
    return (rows // max(tokens, 1), whole_grid(tokens)) if has_grid else (rows, no_grid(1))


def classes(levels: Int64, bands: Int64, grid: Grid) -> Int64:
    """Return the class of each coefficient, ``[N, rank]``; -1 where it is not coded."""
    of_token = bands[grid.bands()][:, None]
    sums = UNIT + levels + of_token  # [N, rank]
    return np.where((levels == NO_LEVEL) | (of_token == NO_LEVEL) | (sums < 0), -1, np.minimum(sums, LARGEST_CLASS))


def vector_scales(quarters: Int64, width: int) -> Float64:
    """Return how many steps a length of 1 is in each vector; an entry's deviation is ``1 / sqrt(width)``."""
    octaves, rest = np.divmod(quarters, STEPS_PER_OCTAVE)
    scales: Float64 = np.ldexp(np.array(_QUARTER_OCTAVES)[rest], octaves) * math.sqrt(width)
    return scales


def read_head(data: memoryview, shape: tuple[int, ...]) -> tuple[TransformHead, int]:
    """Return the head of a message and its size.

    The numbers of lanes and of vectors bound the work of a decoder: it takes one step for each symbol of a lane, and
    each entry of a vector costs a bit or more.

    Raises:
        ProtocolError: no encoder writes it.
    """
    if len(data) < FIXED_HEAD.size:
        raise broken(f"a tensor of {len(data)} bytes")
    exponent, has_grid, mean_class, step, rank, lanes, ones, others = FIXED_HEAD.unpack_from(data)
    bands = layout(shape, bool(has_grid))[1].band_count()
    end = FIXED_HEAD.size + 2 * rank + 2 * bands
    if not (exponent in _EXPONENTS and has_grid <= 1 and mean_class <= LARGEST_CLASS and 0 < step < math.inf):
        raise broken(f"exponent {exponent}, grid {has_grid}, class {mean_class} and step {step}")
    if lanes != lanes_for(len(data)) or rank * shape[-1] > min(shape[-1] ** 2, 8 * len(data)) or end > len(data):
        raise broken(f"{rank} components of {shape[-1]} channels in {lanes} lanes and {len(data)} bytes")
    parts = np.frombuffer(data, np.int8, end - FIXED_HEAD.size, FIXED_HEAD.size).astype(np.int64)
    levels, quarters, image_bands, mean_bands = np.split(parts, np.cumsum([rank, rank, bands]))
    if not 0 <= quarters.min(initial=0) <= quarters.max(initial=0) <= FINEST_QUARTERS:
        raise broken(f"vectors of a fineness of {quarters.min()} to {quarters.max()} quarter octaves")
    return TransformHead(
        exponent, bool(has_grid), mean_class, step, lanes, ones, others, levels, quarters, image_bands, mean_bands
    ), end
