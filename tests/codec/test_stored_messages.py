"""Messages of an earlier version: casts and integers give the same bytes, and a low-rank message decodes as it did.

Low-rank messages are compared by decoding alone, because eigenvectors differ in their last bits between processors.
"""

from __future__ import annotations

import numpy as np
import pytest
import xxhash

from adc_edge.arrays import Float32
from adc_edge.codec.lowrank import decode_rows
from adc_edge.codec.precision import VALUE_PRECISIONS, Precision, encode

DIGESTS: dict[Precision, tuple[str, str]] = {
    "fp32": ("bd2621161ca411d9", "fd345a4845955b28"),
    "fp16": ("a22ed24336da3880", "dcba9199b0a842a7"),
    "bf16": ("d88963cb56a1a797", "25cd1f6abc2677ed"),
    "int8": ("4a087ca278787d85", "67065c91fb8cc970"),
    "int4": ("4a5e539da4cf7975", "38144e1f2d7242e1"),
    "int3": ("5f2037ef8ea85b9d", "f34fb647f209535c"),
    "int2": ("b286884332da76a8", "d4c0b77e6d60c0fd"),
}

# 24 rows of 6 channels of unlike sizes: rank 3, row classes from 0 to 9, codes of 0 to 8 bits.
MESSAGE = bytes.fromhex(
    "0100000003006efe360004008aff0100abff6cff3319f612114ab3995a4866856d2a27ef262362cf9ed423f10995022f32e2fdeb8fe289e4"
    "151325149c59e979a9b8cedf3201d4ee9301cd033401"
)
FIRST_ROWS = [
    [-0.006405763, 0.241263, 0.002869446, -0.1562467, 0.07495159, -0.05895524],
    [-0.03039622, 0.04614585, -0.06105217, -0.003407475, -0.001590401, 0.08346591],
    [0.5356141, -1.646477, 0.2191551, 0.5611385, -0.7674667, -1.417741],
]
COLUMN_SUMS = [0.7901548, -2.262585, -1.085876, 0.7483513, -1.734599, -1.994608]


def tensor(rows: int, width: int, spread: int) -> Float32:
    """Exact fractions whose rows differ in magnitude by up to ``2**spread``: the same on every processor."""
    numbers = (np.arange(rows * width) * 7919 % 2003 - 1001).reshape(rows, width).astype(np.float32)
    return np.ldexp(numbers, (np.arange(rows) * 37 % (spread + 1) - 30)[:, None]).astype(np.float32)


@pytest.mark.parametrize("precision", VALUE_PRECISIONS)
def test_casts_and_integers_give_the_stored_bytes(precision: Precision) -> None:
    found = tuple(xxhash.xxh3_64_hexdigest(encode(tensor(61, 13, spread), precision)) for spread in (3, 60))
    assert found == DIGESTS[precision]


def test_a_stored_low_rank_message_decodes_to_the_stored_rows() -> None:
    decoded = decode_rows(memoryview(MESSAGE.ljust(90, b"\0")), 24, 6)
    np.testing.assert_allclose(decoded[:3], FIRST_ROWS, rtol=0, atol=2e-6)
    np.testing.assert_allclose(decoded.sum(axis=0), COLUMN_SUMS, rtol=0, atol=2e-5)
