"""Casts on a device: powers of two, the check for finite values, and integers of at most 8 bits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adc_edge.cloud_trainer.codec.planes import pack_bits, unpack_bits
from adc_edge.codec.casts import not_finite
from adc_edge.codec.lowrank import PLAIN


def times_power(x: Tensor, exponent: int) -> Tensor:
    """Return ``x * 2**exponent``, rounded once as ``np.ldexp`` does; a new float32 tensor."""
    if exponent in PLAIN:
        return x * 2.0**exponent
    return (x.double() * 2.0**exponent).float()


def finite_peak(x: Tensor) -> float:
    """Return the largest magnitude; raises ProtocolError for NaN and infinity."""
    if not x.numel():
        return 0.0
    low, high = torch.stack(x.aminmax()).tolist()  # with a NaN both are NaN
    peak = max(float(high), -float(low))
    if not math.isfinite(peak):
        raise not_finite()
    return peak


def check_finite(*tensors: Tensor) -> None:
    """Raise ProtocolError if a value is NaN or infinite; the tensors are on one device."""
    if not bool(torch.stack([x.isfinite().all() for x in tensors]).all()):
        raise not_finite()


def to_integers(x: Tensor, steps: Tensor, bits: int) -> Tensor:
    """Return ``x * steps`` rounded to integers, as bytes: int8, or with fewer bits planes (`adc_edge/codec/casts.py`).

    Args:
        x: ``[rows, D]``.
        steps: ``[rows, 1]``.
        bits: 8, or fewer.
    """
    rounded = (x * steps).round_()
    if bits == 8:
        return rounded.to(torch.int8).view(torch.uint8).reshape(-1)
    half = 2 ** (bits - 1)
    values = (rounded.clamp_(max=half - 1) + half).to(torch.uint8).reshape(-1)
    values = torch.nn.functional.pad(values, (0, -len(values) % 8))
    planes = torch.arange(bits, dtype=torch.uint8, device=x.device)[:, None]
    return pack_bits(values >> planes & 1).reshape(-1)


def from_integers(data: Tensor, steps: Tensor, bits: int, width: int) -> Tensor:
    """Return the integers in ``data`` (``to_integers``) times ``steps`` ``[rows, 1]``, ``[rows, width]``."""
    if bits == 8:
        return data.view(torch.int8).reshape(len(steps), width) * steps
    planes = torch.arange(bits, dtype=torch.uint8, device=data.device)[:, None]
    values = (unpack_bits(data.reshape(bits, -1)) << planes).sum(0, dtype=torch.uint8)
    integers = values[: len(steps) * width].to(torch.int8) - 2 ** (bits - 1)
    x: Tensor = integers.reshape(len(steps), width) * steps
    return x
