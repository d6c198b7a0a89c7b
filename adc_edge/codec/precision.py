"""A tensor <-> bytes on the wire, for each precision.

Layout of an encoded ``[rows, D]`` tensor (little endian):
    fp32  rows*D float32.
    bf16  rows*D times the upper 16 bits of a float32, rounded to nearest even.
    fp16  int32 e, then rows*D float16 of ``x * 2**-e``: gradients of an averaged loss lie below fp16's range, and a
          power of two costs nothing.
    int8  int32 e, rows float16 scales, rows*D int8: each token (row) has its own scale, its largest magnitude / 127.
    int4, int3, int2
          int32 e, rows float16 scales, then a plane for each bit, lowest first: that bit of all rows*D values, eight to
          a byte, the first value lowest. A value q means ``(q - 2**(bits-1)) * scale * 2**e``.
    pca4 ... pca0.0625
          4 ... 0.0625 bits for each value on average: the rows' principal components and their coordinates
          (`lowrank.py`), or their mean alone where nothing else fits. The squared error in all is small, not each
          value's.
    dct2 ... dct0.0625
          2 ... 0.0625 bits for each value on average: the components' coordinates after a cosine transform over the
          grid of the tokens, through a range coder (`transform/encoding.py`).

With fewer than 8 bits a scale has a sign: the row's value of largest magnitude becomes the lowest of 2**bits levels. A
value as large with the other sign has no level and becomes one step smaller. Zero is a level. On activations and
gradients of DeiT-T these levels leave less error than symmetric ones (1, 0, -1, ...) and than levels without a zero
(3/2, 1/2, -1/2, ...).
"""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np

from adc_edge.arrays import Float32, UInt8
from adc_edge.codec import lowrank
from adc_edge.codec.casts import (
    finite_peak,
    from_bfloat,
    from_half,
    from_integers,
    not_finite,
    to_bfloat,
    to_half,
    to_integers,
)
from adc_edge.codec.transform.decoding import decode_tensor
from adc_edge.codec.transform.encoding import encode_tensor, payload_bytes
from adc_edge.defaults import Precision as Precision
from adc_edge.errors import ProtocolError
from adc_edge.machine.threads import limit_blas

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_PCA_BITS = {precision: float(precision[3:]) for precision in PRECISIONS if precision.startswith("pca")}
_DCT_BITS = {precision: float(precision[3:]) for precision in PRECISIONS if precision.startswith("dct")}
VALUE_PRECISIONS = tuple(p for p in PRECISIONS if p not in _PCA_BITS and p not in _DCT_BITS)  # each value by itself

EXPONENT_DTYPE = np.dtype("<i4")
SCALE_DTYPE = np.dtype("<f2")
_INTEGER_BITS: dict[Precision, int] = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}
INT8_MAX = 127.0
_EXPONENTS = range(-149, 129)  # float32's, as frexp returns them
FOLDED = range(-100, 15)  # here 2**e times a scale or its inverse is a normal float32: no multiplication of its own
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
LARGEST_HALF = 65504.0
LARGEST_SCALED = 2.0**128 * (1 - 2.0**-11)  # with a half's 11 bits; larger values would be rounded to infinity
LARGEST_BFLOAT = 2.0**128 * (1 - 2.0**-8)


def integer_bits(precision: Precision) -> int:
    """Return the bits of each value of an integer precision, 0 for the other precisions."""
    return _INTEGER_BITS.get(precision, 0)


def pca_bits(precision: Precision) -> float:
    """Return the average bits of a value of a low-rank precision, 0.0 for the other precisions."""
    return _PCA_BITS.get(precision, 0.0)


def dct_bits(precision: Precision) -> float:
    """Return the average bits of a value of a transform-coded precision, 0.0 for the other precisions."""
    return _DCT_BITS.get(precision, 0.0)


def component_bits(precision: Precision) -> float:
    """Return the average bits of a value in principal components (pca, dct), 0.0 for the other precisions."""
    return pca_bits(precision) or dct_bits(precision)


def encoded_bytes(shape: tuple[int, ...], precision: Precision) -> int:
    """Return the size of an encoded tensor of ``shape`` (last axis D), in bytes."""
    rows, values = math.prod(shape[:-1]), math.prod(shape)
    if all_bits := pca_bits(precision):
        return lowrank.payload_bytes(rows, shape[-1], all_bits)
    if all_bits := dct_bits(precision):
        return payload_bytes(shape, all_bits)
    if bits := integer_bits(precision):
        return EXPONENT_DTYPE.itemsize + SCALE_DTYPE.itemsize * rows + (values if bits == 8 else bits * -(-values // 8))
    if precision == "fp16":
        return EXPONENT_DTYPE.itemsize + 2 * values
    return (4 if precision == "fp32" else 2) * values


def encode(x: Float32, precision: Precision, tail: bytes = b"") -> memoryview:
    """Encode a finite float32 tensor and append ``tail``, so that a message needs no second copy.

    Args:
        x: ``[..., D]``. A value that ``precision`` would round to infinity becomes its largest finite value.
        precision: the encoding.
        tail: any bytes.

    Returns:
        A new buffer of ``encoded_bytes(x.shape, precision) + len(tail)`` bytes.

    Raises:
        ProtocolError: a value is NaN or infinite.
    """
    x = np.ascontiguousarray(x, dtype="<f4")
    size = encoded_bytes(x.shape, precision)
    buffer = np.empty(size + len(tail), np.uint8)
    buffer.data[size:] = tail
    if pca_bits(precision):
        limit_blas()
        lowrank.encode_rows(_as_rows(x), buffer[:size])
    elif dct_bits(precision):
        limit_blas()
        encode_tensor(x, buffer[:size])
    elif bits := integer_bits(precision):
        _encode_rows(_as_rows(x), bits, buffer[:size])
    else:
        _encode_values(x.reshape(-1), precision, buffer[:size])
    return buffer.data


def decode(data: Any, shape: tuple[int, ...], precision: Precision) -> Float32:
    """Decode a tensor that ``encode`` encoded.

    Args:
        data: a buffer (bytes, memoryview) of exactly ``encoded_bytes(shape, precision)`` bytes.
        shape: the tensor's shape.
        precision: the encoding.

    Returns:
        A contiguous, writable tensor. In fp32 it shares memory with ``data`` if ``data`` is writable and aligned to
        four bytes.

    Raises:
        ProtocolError: ``data`` has another length, values that are not finite, or a head that no encoder writes.
    """
    view = whole_tensor(data, shape, precision)
    if precision == "fp32":
        x = np.frombuffer(view, "<f4")
        x = x.astype(np.float32, copy=not (x.flags.writeable and x.flags.aligned))
        finite_peak(x)
    elif pca_bits(precision):
        limit_blas()
        x = lowrank.decode_rows(view, math.prod(shape[:-1]), shape[-1])
    elif dct_bits(precision):
        limit_blas()
        x = decode_tensor(view, shape)
    elif bits := integer_bits(precision):
        x = _decode_rows(view, math.prod(shape[:-1]), shape[-1], bits)
    else:
        x = _decode_values(view, precision)
    return x.reshape(shape)


def whole_tensor(data: Any, shape: tuple[int, ...], precision: Precision) -> memoryview:
    """Return the bytes of ``data``; raises ProtocolError unless an encoded tensor has so many."""
    view = memoryview(data).cast("B")
    expected = encoded_bytes(shape, precision)
    if view.nbytes != expected:
        raise ProtocolError(
            f"{view.nbytes} bytes for a {precision} tensor {list(shape)}",
            f"{expected} bytes",
            "install the same version of adc-edge on both sides",
            "size",
        )
    return view


def _as_rows(x: Float32) -> Float32:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _encode_values(x: Float32, precision: Precision, out: UInt8) -> None:
    peak = finite_peak(x)
    if precision == "fp32":
        out.view("<f4")[:] = x
        return
    largest = LARGEST_BFLOAT if precision == "bf16" else LARGEST_SCALED
    if peak > largest:
        x = np.clip(x, -largest, largest)
    if precision == "bf16":
        to_bfloat(x, out.view("<u2"))
        return
    exponent = math.frexp(peak)[1]
    out[: EXPONENT_DTYPE.itemsize].view(EXPONENT_DTYPE)[:] = exponent
    x, factor = (x, 2.0**-exponent) if exponent in FOLDED else (np.ldexp(x, -exponent), 1.0)
    to_half(x, factor, out[EXPONENT_DTYPE.itemsize :].view("<u2"))


def _decode_values(view: memoryview, precision: Precision) -> Float32:
    if precision == "bf16":
        x = np.empty(view.nbytes // 2, np.float32)
        from_bfloat(np.frombuffer(view, "<u2"), x)
        finite_peak(x)
        return x
    exponent = exponent_of(view)
    halves = np.frombuffer(view, "<u2", offset=EXPONENT_DTYPE.itemsize)
    x = np.empty(len(halves), np.float32)
    from_half(halves, 2.0**exponent if exponent in FOLDED else 1.0, x)
    x = _apply_exponent(x, exponent)
    if finite_peak(x) > math.ldexp(LARGEST_HALF, exponent):  # a half was NaN or infinite (``from_half``)
        raise not_finite()
    return x


def _encode_rows(x: Float32, bits: int, out: UInt8) -> None:
    """Write exponent, scales and values of ``x`` ``[rows, D]`` to ``out``."""
    with np.errstate(invalid="ignore"):  # NaN is refused by finite_peak
        high, low = x.max(axis=-1, initial=0.0), x.min(axis=-1, initial=0.0)
    exponent = math.frexp(finite_peak(np.stack((high, low))))[1]
    extremes = np.clip(np.where(high >= -low, high, low).astype(np.float64), -LARGEST_SCALED, LARGEST_SCALED)
    units = np.ldexp(extremes, -exponent)  # |unit| < 1
    levels = np.copysign(INT8_MAX, extremes) if bits == 8 else np.float64(-(2 ** (bits - 1)))
    head = EXPONENT_DTYPE.itemsize
    out[:head].view(EXPONENT_DTYPE)[:] = exponent
    scales = out[head : head + SCALE_DTYPE.itemsize * len(x)].view(SCALE_DTYPE)
    scales[:] = units / levels
    if exponent not in FOLDED:
        x, extremes = np.ldexp(x, -exponent), units
    # The row's own largest value divides, not its rounded scale, so that no value lies beyond the lowest level.
    steps = np.divide(levels, extremes, out=np.zeros(len(x)), where=scales != 0).astype(np.float32)[:, None]
    to_integers(x, steps, bits, out[head + scales.nbytes :])


def _decode_rows(view: memoryview, rows: int, width: int, bits: int) -> Float32:
    """Read a tensor ``[rows, width]`` from exponent, scales and values."""
    exponent = exponent_of(view)
    scales = np.frombuffer(view, SCALE_DTYPE, rows, EXPONENT_DTYPE.itemsize)
    body = np.frombuffer(view, np.uint8, offset=EXPONENT_DTYPE.itemsize + scales.nbytes)
    x = np.empty((rows, width), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # a hostile scale becomes inf or NaN and is refused below
        factors = scales.astype(np.float64)
        largest = float(np.abs(factors).max(initial=0.0)) * 2.0 ** (bits - 1 + exponent)
        if exponent in FOLDED:
            factors *= 2.0**exponent
        steps = factors.astype(np.float32)[:, None]
        from_integers(body, steps, bits, x)
    x = _apply_exponent(x, exponent)
    if not largest <= _LARGEST_FLOAT32:  # true for NaN, too; otherwise no value can be too large
        finite_peak(x)
    return x


def _apply_exponent(x: Float32, exponent: int) -> Float32:
    """Multiply ``x`` by ``2**exponent`` in place, unless an earlier step did so (``FOLDED``)."""
    with np.errstate(over="ignore", invalid="ignore"):
        return x if exponent in FOLDED else np.ldexp(x, exponent, out=x)


def exponent_of(view: memoryview) -> int:
    """Return the exponent at the beginning of an encoded tensor; raises ProtocolError for one that float32 lacks."""
    exponent = int.from_bytes(view[: EXPONENT_DTYPE.itemsize], "little", signed=True)
    if exponent not in _EXPONENTS:
        raise not_finite()
    return exponent
