"""The worked examples of docs/codec.md, computed with the code: every number in the table, and the message's bytes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from adc_edge.arrays import Array, UInt8
from adc_edge.codec import lloyd_max, lowrank
from adc_edge.codec.bit_allocation import allocation_candidates
from adc_edge.codec.planes import CodePlanes, blocks_of
from adc_edge.codec.precision import decode, encode, encoded_bytes
from adc_edge.codec.spectrum import ArraySpectrum
from adc_edge.codec.vectors import decoded_vectors, unpack_vectors

DOCUMENT = (Path(__file__).parents[2] / "docs" / "codec.md").read_text(encoding="utf-8")
EXAMPLE = DOCUMENT.partition("## A worked example")[2]
TABLE = dict(re.findall(r"^\| (\w[^|]*?) \| (-?\d[^|]*?) \|$", EXAMPLE, re.MULTILINE))
MESSAGE = bytes.fromhex("".join(re.findall(r"```text\n([^`]*)```", EXAMPLE)))
X = np.array([[6, 2, 1], [2, 4, 3]], np.float32)


def computed() -> dict[str, Array]:
    """The table's quantities by the first words of their labels, in the order of the table."""
    rows = np.ldexp(X, -3)
    mean = rows.mean(axis=0)
    spectrum, mean_energy = ArraySpectrum(rows - mean), 2 * float(mean @ mean)
    allocation, components = allocation_candidates(spectrum, mean_energy, len(MESSAGE) - 12)[0][1:]
    component = spectrum.vectors.T[components]
    out = np.empty(len(MESSAGE), np.uint8)
    lowrank.encode_rows(X, out)
    exponent, sent, classes, at, coordinates_at = lowrank.read_head(out.data, *X.shape)
    assert sent.levels.tolist() == allocation.levels.tolist()
    assert (sent.threshold, sent.vector_offset) == (allocation.threshold, allocation.vector_offset)
    entry_widths, widths = allocation.entry_widths()[:, None], allocation.class_widths()[:1]
    vectors = unpack_vectors(out.data, at, entry_widths[:, 0], X.shape[1])
    (block,) = blocks_of(allocation, classes)
    planes = CodePlanes([block], len(X))
    planes.unpack(out.data, coordinates_at.start)
    coordinates = planes.read(block)
    sign = np.float32(np.sign(component[0, 0]))  # an eigenvector's sign is arbitrary
    if sign < 0:
        vectors[1], coordinates = 2 ** entry_widths[1] - 1 - vectors[1], 2**widths - 1 - coordinates
    excess = allocation.levels - allocation.threshold
    decoded = decoded_vectors(vectors, entry_widths[:, 0]) * allocation.lengths()[:, None]
    return {
        "rows x": X,
        "exponent e": np.array(exponent),
        "mean of x / 8": mean,
        "rows less the mean": rows - mean,
        "principal component": sign * component,
        "coordinates of the rows": (rows - mean) @ (sign * component).T,
        "level of the mean": allocation.levels[0],
        "level of the component": allocation.levels[1],
        "vector offset": np.array(allocation.vector_offset),
        "threshold": np.array(allocation.threshold),
        "excess of mean, coordinates, vector": np.array([excess[0] - 19, excess[1], excess[1] - 19]),
        "bits of mean, coordinates, vector": np.array([entry_widths[0, 0], widths[0, 0], entry_widths[1, 0]]),
        "codes of the mean": vectors[0],
        "codes of the vector": vectors[1],
        "codes of the coordinates": coordinates,
        "Lloyd-Max levels of the mean": lloyd_max.values(vectors[0], entry_widths[0]),
        "Lloyd-Max levels of the vector": lloyd_max.values(vectors[1], entry_widths[1]),
        "Lloyd-Max levels of the coordinates": lloyd_max.values(coordinates, widths),
        "decoded mean": decoded[0],
        "decoded vector": decoded[1],
        "decoded rows": lowrank.decode_rows(out.data, *X.shape),
    }


def numbers(text: str) -> tuple[npt.NDArray[np.float64], float]:
    """The numbers in a cell, and the largest error that their rounding allows."""
    found = re.findall(r"-?\d+(?:\.\d+)?", text)
    decimals = max(len(number.partition(".")[2]) for number in found)
    return np.array(found, np.float64), 0.5 * 10.0**-decimals + 1e-5


def test_the_table_has_the_numbers_that_the_code_computes() -> None:
    quantities = computed()
    assert len(TABLE) == len(quantities)
    for (label, cell), (name, value) in zip(TABLE.items(), quantities.items(), strict=True):
        assert label.startswith(name)
        documented, tolerance = numbers(cell)
        np.testing.assert_allclose(value.reshape(-1), documented, rtol=0, atol=tolerance, err_msg=label)


def test_the_documented_message_decodes_to_the_documented_rows() -> None:
    documented, tolerance = numbers(TABLE["decoded rows: (mean + coordinate level · vector) · 8"])
    decoded = lowrank.decode_rows(memoryview(MESSAGE), *X.shape)
    np.testing.assert_allclose(decoded.reshape(-1), documented, rtol=0, atol=tolerance)
    again: UInt8 = np.empty(len(MESSAGE), np.uint8)
    lowrank.encode_rows(X, again)
    np.testing.assert_array_equal(again[:16], np.frombuffer(MESSAGE, np.uint8)[:16])  # the codes' sign is arbitrary
    np.testing.assert_allclose(lowrank.decode_rows(again.data, *X.shape), decoded, atol=1e-5)


def test_a_message_of_this_shape_has_room_for_the_mean_alone() -> None:
    assert encoded_bytes(X.shape, "pca4") == 22
    back = decode(encode(X, "pca4"), X.shape, "pca4")
    np.testing.assert_array_equal(back[0], back[1])
    np.testing.assert_allclose(back[0], X.mean(axis=0), atol=0.03)


@pytest.mark.parametrize("number", ["6 / -8 = -0.75", "-8 -3 -1", "6 2.25 0.75"])
def test_the_row_of_four_bit_integers_is_the_documented_one(number: str) -> None:
    assert number in DOCUMENT
    data = encode(X[:1], "int4")
    assert float(np.frombuffer(data, "<f2", 1, 4)[0]) * 2**3 == -0.75
    planes = np.frombuffer(data, np.uint8, offset=6)
    levels = [sum((int(plane) >> index & 1) << bit for bit, plane in enumerate(planes)) - 8 for index in range(3)]
    assert levels == [-8, -3, -1]
    np.testing.assert_array_equal(decode(data, (1, 3), "int4"), [[6, 2.25, 0.75]])
