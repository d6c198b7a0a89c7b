"""Encode grids of tokens (dct2 ... dct0.0625): principal components, cosine transform, one step, range coder.

The tokens of an image are alike where they are neighbours, and a third of the variance of DeiT-T's activations is what
all images of a batch share at a place. `lowrank.py` uses neither. Here the coordinates in the batch's principal
components are transformed over the grid of patches, as a JPEG's pixels are, and the mean of the images is coded once.
All coefficients are rounded to one step with a dead zone, and the range coder (`rans.py`) spends on each what its scale
asks for: less than a bit, where most are 0.

The size is a matter of shape and precision, as with all encodings: the encoder looks for the smallest step whose
message fits. A message carries its basis, so neither side keeps state. Where a cosine transform leaves more error, as
on tokens that ADC has chosen, the message says that every row stands alone.

Layout (little endian), unused bytes zero; ``x * 2**-e`` is what is coded:
    int16 e; uint8 1 for a grid, 0 for rows that stand alone; uint8 class of the mean vector; float32 step;
    uint16 rank; uint16 lanes; uint8 128ths of a step for a magnitude of 1; uint8 the same for what larger ones, m, are
    beyond m - 1.
    int8 levels of the ``rank`` components; int8 fineness of their vectors in quarter octaves; int8 levels of the bands
    of the images, then of their mean's. A class is 32 plus level of component plus level of band (``head.py``).
    The symbols (``symbols.py``): mean vector ``[D]`` in ``step / sqrt(rows)``, at most 256 to a step; vectors
    ``[rank, D]`` in ``2**(-fineness / 4) / sqrt(D)``; the coded coefficients of the mean of the images in
    ``step / sqrt(images)``; those of the images' differences to it in ``step``, all images of one coefficient together.
"""

from __future__ import annotations

import math

import numpy as np

from adc_edge.arrays import Float32, UInt8
from adc_edge.codec.casts import finite_peak
from adc_edge.codec.spectrum import components
from adc_edge.codec.transform.choice import ComponentChoice, Statistics, choose
from adc_edge.codec.transform.decoding import decoded_vectors
from adc_edge.codec.transform.fitting import TransformedTensor, fitting_message
from adc_edge.codec.transform.grid import Grid
from adc_edge.codec.transform.head import FIXED_HEAD, lanes_for, layout, mean_steps, vector_scales
from adc_edge.codec.transform.rans import most_bytes
from adc_edge.codec.transform.symbols import COUNT_BYTES

_RIDGE = 1e-4  # keeps the equations solvable where two rounded vectors coincide
_WITHOUT_VARIANCE = 1e-7  # share of the strongest component's


def payload_bytes(shape: tuple[int, ...], bits: float) -> int:
    """Return the size of an encoded tensor ``[..., D]``: ``bits`` a value, and never less than its rows' mean takes."""
    bands = layout(shape, True)[1].band_count()
    mean_alone = FIXED_HEAD.size + 2 * bands + COUNT_BYTES + 2 * shape[-1]
    mean_alone += most_bytes(lanes_for(mean_alone) + 1)
    return max(math.ceil(bits * math.prod(shape) / 8), mean_alone)


def encode_tensor(x: Float32, out: UInt8) -> None:
    """Encode ``x`` to ``out``, as closely as the length of ``out`` allows.

    Args:
        x: ``[..., D]``.
        out: ``[payload_bytes(x.shape, bits)]``.

    Raises:
        ProtocolError: a value is NaN or infinite.
    """
    exponent = math.frexp(finite_peak(x))[1]
    if not x.size:
        out[:] = 0  # nothing is read of it
        return
    rows = np.ldexp(x.reshape(-1, x.shape[-1]), -exponent)
    mean = rows.mean(axis=0)
    rows -= mean
    vectors = _components(rows)
    has_grid, choice = _best_choice(rows @ vectors.T, mean, x.shape, len(out))
    images, grid = layout(x.shape, has_grid)
    scales = vector_scales(choice.quarters, x.shape[-1])[:, None]
    symbols = np.rint(vectors[choice.components] * scales).astype(np.int64)
    dual = _dual(decoded_vectors(symbols, choice.quarters, x.shape[-1]))
    coefficients = grid.transform((rows @ dual.T).reshape(images, len(rows) // images, len(dual)))
    parts = TransformedTensor(exponent, grid, mean, symbols, choice.quarters, coefficients, coefficients.mean(axis=0))
    message = fitting_message(parts, choice.step, len(out))
    out[: len(message)] = np.frombuffer(message, np.uint8)
    out[len(message) :] = 0


def _components(rows: Float32) -> Float32:
    """Principal components of centred rows, ``[R, D]``, the strongest first."""
    values, vectors = components(rows)
    strong = values > max(float(values.max(initial=0.0)) * _WITHOUT_VARIANCE, 1e-30)
    return np.ascontiguousarray(vectors.T[strong][::-1])


def _best_choice(
    coordinates: Float32, mean: Float32, shape: tuple[int, ...], size: int
) -> tuple[bool, ComponentChoice]:
    """Whether the tokens are coded as a grid, and the components and step that leave the least error then."""
    alone = _choice(coordinates, mean, layout(shape, False), size)
    if len(shape) < 3 or shape[-2] == 1:  # both are the same
        return False, alone
    together = _choice(coordinates, mean, layout(shape, True), size)
    return (True, together) if together.error <= alone.error else (False, alone)


def _choice(coordinates: Float32, mean: Float32, coded_as: tuple[int, Grid], size: int) -> ComponentChoice:
    """Components and step for so many images of a grid."""
    images, grid = coded_as
    rows, rank = coordinates.shape
    coefficients = grid.transform(coordinates.reshape(images, rows // images, rank))
    means = coefficients.mean(axis=0)
    squares = np.einsum("bnr,bnr->nr", coefficients, coefficients) / np.float32(images)
    deviations = np.sqrt(np.maximum(squares - np.square(means), 0))
    mean_size = math.sqrt(float(np.square(mean, dtype=np.float64).mean())) * mean_steps(rows)
    beside = FIXED_HEAD.size + 2 * grid.band_count() + COUNT_BYTES + most_bytes(lanes_for(size))
    return choose(Statistics(images, deviations, means, len(mean), mean_size), 8.0 * (size - beside))


def _dual(basis: Float32) -> Float32:
    """Vectors whose products with the rows are their least-squares coordinates: rounded ones are not orthogonal."""
    gram = basis @ basis.T
    dual: Float32 = np.linalg.solve(gram + np.diag(np.float32(_RIDGE) * gram.diagonal()), basis)
    return dual
