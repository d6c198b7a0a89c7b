"""A tensor <-> bytes on the wire, for each precision.

Layout of an encoded ``[rows, D]`` tensor (little endian):
    fp32  rows*D float32.
    fp16  int32 e, then rows*D float16 of ``x * 2**-e``: gradients of an averaged loss lie below fp16's range, and a
          power of two costs nothing.
    int8  int32 e, rows float16 scales, rows*D int8: each token (row) has its own scale.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from adc_edge.errors import ProtocolError

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Float32 = npt.NDArray[np.float32]

_EXPONENT = np.dtype("<i4")
_SCALE = np.dtype("<f2")
_INT8_MAX = 127.0


def encoded_bytes(shape: tuple[int, ...], precision: Precision) -> int:
    """Size of an encoded tensor of ``shape`` (last axis D), in bytes."""
    values = int(np.prod(shape, dtype=np.int64))
    if precision == "fp32":
        return 4 * values
    if precision == "fp16":
        return _EXPONENT.itemsize + 2 * values
    return _EXPONENT.itemsize + _SCALE.itemsize * (values // shape[-1]) + values


def encode(x: Float32, precision: Precision) -> bytes:
    """Encode a finite float32 tensor.

    Raises:
        ProtocolError: if a value is NaN or infinite, which no receiver could use.
    """
    x = np.ascontiguousarray(x, dtype="<f4")
    peak = max(float(x.max(initial=0.0)), -float(x.min(initial=0.0)))  # of |x|, without a copy of it
    if not math.isfinite(peak):
        raise ProtocolError(
            "a tensor with NaN or infinite values", "finite values", "lower the learning rate or clip gradients", "nan"
        )
    if precision == "fp32":
        return x.tobytes()
    exponent = int(np.frexp(peak)[1]) if peak > 0.0 else 0
    head = np.array(exponent, _EXPONENT).tobytes()
    unit = np.ldexp(x, -exponent)  # |unit| < 1
    if precision == "fp16":
        return head + unit.astype("<f2").tobytes()
    scales: npt.NDArray[np.float16] = (np.abs(unit).max(axis=-1, keepdims=True) / _INT8_MAX).astype(_SCALE)
    divisor = np.where(scales > 0, scales, 1).astype(np.float32)
    values: npt.NDArray[np.int8] = np.clip(np.rint(unit / divisor), -_INT8_MAX, _INT8_MAX).astype(np.int8)
    return head + scales.tobytes() + values.tobytes()


def decode(data: Any, shape: tuple[int, ...], precision: Precision) -> Float32:
    """Decode what ``encode`` made of a tensor of ``shape``.

    Args:
        data: a buffer (bytes, memoryview) of exactly ``encoded_bytes(shape, precision)`` bytes.
        shape: of the tensor.
        precision: it was encoded in.

    Raises:
        ProtocolError: on another length, or on values that are not finite.
    """
    view = memoryview(data).cast("B")
    expected = encoded_bytes(shape, precision)
    if view.nbytes != expected:
        raise ProtocolError(
            f"{view.nbytes} bytes for a {precision} tensor {list(shape)}",
            f"{expected} bytes",
            "use one version",
            "size",
        )
    x = _values(view, shape, precision)
    if not np.isfinite(x).all():
        raise ProtocolError(
            "a tensor with NaN or infinite values", "finite values", "lower the learning rate or clip gradients", "nan"
        )
    return x


def _values(view: memoryview, shape: tuple[int, ...], precision: Precision) -> Float32:
    if precision == "fp32":
        return np.frombuffer(view, "<f4").reshape(shape).astype(np.float32)
    exponent = np.frombuffer(view, _EXPONENT, count=1)[0]
    body = view[_EXPONENT.itemsize :]
    with np.errstate(over="ignore", invalid="ignore"):  # a hostile exponent or scale gives inf or NaN: refused above
        if precision == "fp16":
            unit = np.frombuffer(body, "<f2").reshape(shape).astype(np.float32)
        else:
            rows = int(np.prod(shape[:-1], dtype=np.int64))
            scales = np.frombuffer(body, _SCALE, count=rows).reshape(*shape[:-1], 1).astype(np.float32)
            values = np.frombuffer(body, np.int8, offset=_SCALE.itemsize * rows).reshape(shape)
            unit = values.astype(np.float32) * scales
        x: Float32 = np.ldexp(unit, exponent).astype(np.float32, copy=False)
    return x
