"""A tensor <-> bytes on a device, for each precision; the layout is that of `adc_edge/codec/precision.py`.

Tensors in dct are decoded and encoded by NumPy on the CPU, and copied: a range coder works symbol after symbol.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adc_edge.arrays import UInt8
from adc_edge.cloud_trainer.codec.casts import (
    check_finite,
    finite_peak,
    from_integers,
    times_power,
    to_integers,
)
from adc_edge.cloud_trainer.codec.lowrank import decode_rows, encode_rows
from adc_edge.codec import precision as in_numpy
from adc_edge.codec.precision import (
    EXPONENT_DTYPE,
    FOLDED,
    INT8_MAX,
    LARGEST_BFLOAT,
    LARGEST_SCALED,
    SCALE_DTYPE,
    Precision,
    dct_bits,
    encoded_bytes,
    exponent_of,
    integer_bits,
    pca_bits,
    whole_tensor,
)

_BEHIND_EXPONENT = EXPONENT_DTYPE.itemsize


def encode(x: Tensor, precision: Precision) -> memoryview:
    """Encode a finite tensor on its device, and copy the bytes here.

    Args:
        x: ``[..., D]``. A value that ``precision`` would round to infinity becomes its largest finite value.
        precision: the encoding.

    Returns:
        A new buffer of ``encoded_bytes(x.shape, precision)`` bytes.

    Raises:
        ProtocolError: a value is NaN or infinite.
    """
    shape, rows = tuple(x.shape), math.prod(x.shape[:-1])
    # Fewer rows than channels are no larger than the covariance; a range coder's steps depend on one another.
    if not x.numel() or dct_bits(precision) or (pca_bits(precision) and rows < shape[-1]):
        return in_numpy.encode(x.float().cpu().numpy(), precision)
    x = x.float().reshape(rows, shape[-1])
    peak = finite_peak(x)
    exponent = math.frexp(peak)[1]
    if pca_bits(precision):
        return _here(encode_rows(x, peak, exponent, encoded_bytes(shape, precision)))
    if bits := integer_bits(precision):
        return _here(_with_exponent(exponent, *_scales_and_integers(x, exponent, bits)))
    if precision == "fp32":
        return _here(_bytes(x))
    if precision == "bf16":
        return _here(_bytes(x.clamp(-LARGEST_BFLOAT, LARGEST_BFLOAT).bfloat16()))
    halves = times_power(x.clamp(-LARGEST_SCALED, LARGEST_SCALED), -exponent).half()
    return _here(_with_exponent(exponent, _bytes(halves)))


def decode(data: Any, shape: tuple[int, ...], precision: Precision, device: torch.device) -> Tensor:
    """Copy the bytes of a tensor to ``device`` and decode them there.

    Args:
        data: a buffer of exactly ``encoded_bytes(shape, precision)`` bytes.
        shape: the tensor's shape.
        precision: the encoding.
        device: any device of torch.

    Returns:
        A new, finite float32 tensor. Kernels that make it may still run.

    Raises:
        ProtocolError: ``data`` has another length, values that are not finite, or a head that no encoder writes.
    """
    if dct_bits(precision):
        return torch.from_numpy(in_numpy.decode(data, shape, precision)).to(device)
    view, rows = whole_tensor(data, shape, precision), math.prod(shape[:-1])
    there = _there(view, device)
    if pca_bits(precision):
        return decode_rows(view, there, rows, shape[-1]).reshape(shape)
    if bits := integer_bits(precision):
        x = _decode_integers(view, there, rows, shape[-1], bits)
    elif precision == "fp32":
        x = there.view(torch.float32)
    elif precision == "bf16":
        x = there.view(torch.bfloat16).float()
    else:
        x = times_power(there[_BEHIND_EXPONENT:].view(torch.float16).float(), exponent_of(view))
    check_finite(x)
    return x.reshape(shape)


def _scales_and_integers(x: Tensor, exponent: int, bits: int) -> tuple[Tensor, Tensor]:
    high, low = x.amax(1).clamp_(min=0.0), x.amin(1).clamp_(max=0.0)
    extremes = torch.where(high >= -low, high, low).double().clamp_(-LARGEST_SCALED, LARGEST_SCALED)
    units = extremes * 2.0**-exponent
    levels = torch.copysign(torch.tensor(INT8_MAX), extremes) if bits == 8 else -(2.0 ** (bits - 1))
    scales = (units / levels).half()
    if exponent not in FOLDED:
        x, extremes = times_power(x, -exponent), units
    # The row's own largest value divides, not its rounded scale, so that no value lies beyond the lowest level.
    steps = torch.where(scales != 0, levels / extremes, 0.0).float()[:, None]
    return _bytes(scales), to_integers(x, steps, bits)


def _decode_integers(view: memoryview, there: Tensor, rows: int, width: int, bits: int) -> Tensor:
    exponent, end = exponent_of(view), _BEHIND_EXPONENT + SCALE_DTYPE.itemsize * rows
    factors = there[_BEHIND_EXPONENT:end].view(torch.float16).double()
    if exponent in FOLDED:
        factors *= 2.0**exponent
    x = from_integers(there[end:], factors.float()[:, None], bits, width)
    return x if exponent in FOLDED else times_power(x, exponent)


def _with_exponent(exponent: int, *parts: Tensor) -> Tensor:
    head = torch.from_numpy(np.frombuffer(np.array(exponent, EXPONENT_DTYPE).tobytes(), np.uint8).copy())
    return torch.cat((head.to(parts[0].device), *parts))


def _bytes(x: Tensor) -> Tensor:
    return x.reshape(-1).view(torch.uint8)


def _there(view: memoryview, device: torch.device) -> Tensor:
    """The bytes on the device, in memory of their own."""
    host = torch.empty(view.nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    host.numpy()[:] = np.frombuffer(view, np.uint8)
    return host.to(device, non_blocking=True)


def _here(message: Tensor) -> memoryview:
    """The bytes in pageable memory: answers are kept for long."""
    if message.device.type == "cpu":
        return message.numpy().data
    host = torch.empty(message.shape, dtype=torch.uint8, pin_memory=True)
    found: UInt8 = host.copy_(message).numpy().copy()  # waits for the device
    return found.data
