"""Small numbers as bytes: packed without gaps, or by zstd where that is shorter; foreign bytes are refused."""

from __future__ import annotations

import numpy as np
import pytest

from adc_edge.errors import ProtocolError
from adc_edge.evaluation.codecs.packing import Sections, pack_indices, section, unpack_indices


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_indices_are_packed_without_gaps(bits: int) -> None:
    index = np.random.default_rng(0).integers(1 << bits, size=37)
    packed = pack_indices(index, bits)
    assert len(packed) == -(-37 * bits // 8)
    assert np.array_equal(unpack_indices(memoryview(packed), 37, bits), index)
    with pytest.raises(ProtocolError, match="indices"):
        unpack_indices(memoryview(packed + b"x"), 37, bits)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_a_section_is_the_shorter_of_packed_and_compressed(bits: int) -> None:
    rng = np.random.default_rng(0)
    even = rng.integers(1 << bits, size=5001).astype(np.uint8)
    rare = (rng.random(5001) < 0.002).astype(np.uint8)
    packed = -(-5001 * bits // 8)
    assert len(section(even, bits)) == 1 + packed
    assert len(section(rare, bits)) < 0.5 * packed
    sections = Sections(memoryview(section(even, bits) + section(rare, bits) + section(even[:0], bits)))
    for numbers in (even, rare, even[:0]):
        assert np.array_equal(sections.read(len(numbers), bits), numbers)
    sections.close()


def test_sections_that_were_not_written_so_are_refused() -> None:
    numbers = np.zeros(400, np.uint8)
    numbers[7] = 9
    body = section(numbers, 4)
    assert body[0] == 1
    for data, count, bits in [(body, 399, 4), (body, 401, 4), (body, 400, 3), (body[:-1], 400, 4), (b"", 1, 4)]:
        with pytest.raises(ProtocolError):
            Sections(memoryview(data)).read(count, bits)
    with pytest.raises(ProtocolError, match="flag 2"):
        Sections(memoryview(b"\x02" + body[1:])).read(400, 4)
    with pytest.raises(ProtocolError, match="zstd"):
        Sections(memoryview(body[:5] + b"x" + body[6:])).read(400, 4)
    with pytest.raises(ProtocolError, match="after the last section"):
        Sections(memoryview(body)).close()
