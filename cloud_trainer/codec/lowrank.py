"""Low-rank messages on a device: the format and the steps of `adc_edge/codec/lowrank.py`, for all rows at once.

NumPy's codec works class by class, because copies of whole columns suit a CPU. Here every row looks up its widths by
its class, so that a few kernels do all rows. The bit allocation is NumPy's own, from the spectrum's small arrays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adc_edge.arrays import Array
from adc_edge.cloud_trainer.codec import lloyd_max
from adc_edge.cloud_trainer.codec.casts import check_finite, times_power
from adc_edge.cloud_trainer.codec.planes import (
    PlanePlaces,
    pack_bits,
    read_vectors,
    unpack_bits,
    vector_places,
    write_vectors,
)
from adc_edge.cloud_trainer.codec.spectrum import TensorSpectrum
from adc_edge.cloud_trainer.codec.vectors import decoded_vectors, vector_codes
from adc_edge.codec.bit_allocation import AllocationCandidate, BitAllocation, allocation_candidates, empty_allocation
from adc_edge.codec.lowrank import (
    BELOW_ONE,
    HEAD_BYTES,
    MANY_ROWS,
    RIDGE,
    best_message,
    pack_head,
    read_head,
)
from adc_edge.codec.spectrum import CLASS_BITS
from adc_edge.codec.vectors import planes_bytes


def decode_rows(view: memoryview, data: Tensor, rows: int, width: int) -> Tensor:
    """Decode a ``[rows, width]`` tensor.

    Args:
        view: the encoded tensor, as it arrived; its head is read here.
        data: the same bytes on the device, uint8.
        rows: number of rows.
        width: number of channels.

    Raises:
        ProtocolError: the message has a head or levels that no encoder writes, or more codes than bytes.
    """
    head, device = read_head(view, rows, width), data.device
    bits = torch.nn.functional.pad(unpack_bits(data), (0, 1))
    widths = head.allocation.entry_widths()
    places = vector_places(widths, width, head.entries, len(bits) - 1, device)
    vectors = decoded_vectors(read_vectors(bits, places), _there(widths, device))
    with np.errstate(over="ignore"):  # by levels that no encoder writes
        lengths = head.allocation.lengths()
    vectors *= torch.from_numpy(lengths).to(device)[:, None]
    there = torch.from_numpy(head.classes).to(device) if head.allocation.has_classes else data.new_zeros(rows)
    layout = _RowLayout(head.allocation, there.long())
    coordinates = lloyd_max.values(layout.places.read(bits, head.coordinates.start), layout.widths)
    x = (coordinates * layout.scales) @ vectors[1:]
    x += vectors[0]
    x.clamp_(-BELOW_ONE, BELOW_ONE)  # x * 2**-e was below 1, so x stays in float32
    check_finite(vectors, x)
    return times_power(x, head.exponent)


def encode_rows(x: Tensor, peak: float, exponent: int, size: int) -> Tensor:
    """Encode ``x`` to ``size`` bytes on its device, as closely as they allow.

    Args:
        x: finite, ``[rows, D]``, rows >= D.
        peak: its largest magnitude.
        exponent: the power of two above ``peak``.
        size: ``payload_bytes(rows, D, bits)``.
    """
    message = None
    if peak > 0:
        rows = times_power(x, -exponent)
        mean = rows.mean(dim=0)
        rows -= mean
        spectrum = TensorSpectrum(rows)
        mean_energy = len(rows) * float(mean.double().square().sum())
        candidates = allocation_candidates(spectrum, mean_energy, size - HEAD_BYTES)
        message = best_message(candidates, lambda one: _code(one, exponent, spectrum, _Rows(rows, mean), size))
    return (
        _whole(pack_head(exponent, empty_allocation(len(x))), torch.zeros(8 * size, dtype=torch.uint8, device=x.device))
        if message is None
        else message
    )


class _Rows(NamedTuple):
    """Rows less their mean, and the mean; or, once it is coded, the part of the mean that its code lacks."""

    rows: Tensor
    mean: Tensor


class _RowLayout:
    """Widths, scales and places of the coordinates of all rows.

    Args:
        allocation: the widths of each class.
        classes: int64 ``[rows]``; used only if the message has classes.
    """

    def __init__(self, allocation: BitAllocation, classes: Tensor) -> None:
        kinds = len(allocation.counts) if allocation.has_classes else 1
        classes = classes if allocation.has_classes else torch.zeros_like(classes)
        widths, device = allocation.class_widths()[:kinds], classes.device
        self.places = PlanePlaces(widths, allocation.counts[:kinds], classes)
        scales = torch.from_numpy(allocation.class_scales()[:kinds]).to(device)[:, None]
        row = classes if kinds > 1 else slice(None)  # [rows, rank], or [1, rank] for all rows
        self.widths, self.scales = _there(widths, device)[row], scales[row]


def _code(
    candidate: AllocationCandidate, exponent: int, spectrum: TensorSpectrum, exact: _Rows, size: int
) -> tuple[float, Tensor]:
    """The squared error that a candidate leaves, and its message."""
    (rows, mean), allocation, device = exact, candidate.allocation, exact.rows.device
    layout = _RowLayout(allocation, spectrum.classes)
    entry_widths = allocation.entry_widths()
    widths = _there(entry_widths, device)
    lengths = torch.from_numpy(allocation.lengths()).to(device)[:, None]
    mean_codes = vector_codes(mean[None], widths[:1])
    shift = mean - (lengths[:1] * decoded_vectors(mean_codes, widths[:1]))[0]
    vectors = spectrum.vectors.T[torch.from_numpy(candidate.components).to(device)]
    if len(rows) < MANY_ROWS * rows.shape[1]:  # a rough vector shows in few rows
        vectors = _dual(decoded_vectors(vector_codes(vectors, widths[1:]), widths[1:]))
    rest = _Rows(rows, shift)
    fit = _fit(layout, vectors / lengths[1:], rest)
    codes = vector_codes(fit.vectors, widths[1:])
    basis = decoded_vectors(codes, widths[1:])
    coordinates = lloyd_max.codes(_coordinates(layout, _dual(basis) / lengths[1:], rest), layout.widths)
    head, bits = pack_head(exponent, allocation), torch.zeros(8 * size + 1, dtype=torch.uint8, device=device)
    at = len(head)
    if allocation.has_classes:
        at += _write_classes(spectrum.classes, bits[8 * at :])
    places = vector_places(entry_widths, rows.shape[1], at, 8 * size, device)
    write_vectors(torch.cat((mean_codes, codes)), places, bits)
    layout.places.write(coordinates, bits, at + planes_bytes(entry_widths, rows.shape[1]))
    energy = _dot(rows, rows) + len(rows) * _dot(shift, shift)
    return float(energy - fit.saved(basis * lengths[1:])), _whole(head, bits[:-1])


class _Fit(NamedTuple):
    """Vectors that fit the rounded coordinates best (`adc_edge/codec/lowrank.py`)."""

    vectors: Tensor  # [rank, D]
    gram: Tensor  # [rank, rank], products of the rounded coordinates with one another
    products: Tensor  # [rank, D], products of the rounded coordinates with the rows

    def saved(self, basis: Tensor) -> Tensor:
        """Squared error that the rounded coordinates save in these vectors."""
        return 2 * _dot(self.products, basis) - _dot(self.gram, basis @ basis.T)


def _fit(layout: _RowLayout, dual: Tensor, rest: _Rows) -> _Fit:
    """Round the coordinates in exact vectors and fit the vectors to them."""
    codes = lloyd_max.codes(_coordinates(layout, dual, rest), layout.widths)
    rounded = lloyd_max.values(codes, layout.widths) * layout.scales
    gram = rounded.T @ rounded
    products = rounded.T @ rest.rows + torch.outer(rounded.sum(0), rest.mean)
    return _Fit(_solve(gram, products), gram, products)


def _coordinates(layout: _RowLayout, dual: Tensor, rest: _Rows) -> Tensor:
    """Coordinates of the rows, with what the code of the mean lacks, in deviations, ``[rows, rank]``."""
    return (rest.rows @ dual.T + dual @ rest.mean) / layout.scales


def _dual(basis: Tensor) -> Tensor:
    return _solve(basis @ basis.T, basis)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    solution: Tensor = torch.linalg.solve(matrix + torch.diag(RIDGE * matrix.diagonal()), right)
    return solution


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dtype=torch.float64)


def _write_classes(classes: Tensor, bits: Tensor) -> int:
    """Write the planes of the classes to the beginning of ``bits``; return their bytes."""
    plane = -(-len(classes) // 8)
    planes = bits[: 8 * CLASS_BITS * plane].view(CLASS_BITS, -1)
    planes[:, : len(classes)] = classes >> torch.arange(CLASS_BITS, device=bits.device)[:, None] & 1
    return CLASS_BITS * plane


def _whole(head: bytes, bits: Tensor) -> Tensor:
    """The message: its head, and after it the bits of the codes."""
    message = pack_bits(bits)
    message[: len(head)] = torch.from_numpy(np.frombuffer(head, np.uint8).copy()).to(bits.device)
    return message


def _there(array: Array, device: torch.device) -> Tensor:
    """Small integers on the device, int64."""
    return torch.from_numpy(array.astype(np.int64)).to(device)
