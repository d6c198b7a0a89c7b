"""Messages to tensors on the head's device and back: on a GPU there, on a CPU by NumPy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adc_edge.cloud_trainer.codec import precision as in_torch
from adc_edge.codec import precision as in_numpy
from adc_edge.codec.precision import Precision


def decode_to(device: torch.device, data: Any, shape: tuple[int, ...], precision: Precision) -> Tensor:
    """Decode a tensor to ``device``. To a GPU only the encoded bytes are copied, but for dct the tensor.

    Args:
        device: the head's device. The tensor is complete when this returns, so that the time of it is known.
        data: a buffer of exactly ``encoded_bytes(shape, precision)`` bytes.
        shape: the tensor's shape.
        precision: the encoding.

    Raises:
        ProtocolError: ``data`` has another length, values that are not finite, or a head that no encoder writes.
    """
    if device.type != "cuda":
        return torch.from_numpy(in_numpy.decode(data, shape, precision)).to(device)
    x = in_torch.decode(data, shape, precision, device)
    torch.cuda.synchronize(device)
    return x


def encode_from(x: Tensor, precision: Precision) -> memoryview:
    """Encode a finite tensor where it lies. From a GPU only the encoded bytes are copied, but for dct the tensor.

    Args:
        x: ``[..., D]``.
        precision: the encoding.

    Raises:
        ProtocolError: a value is NaN or infinite.
    """
    if x.device.type != "cuda":
        return in_numpy.encode(x.float().cpu().numpy(), precision)
    return in_torch.encode(x, precision)
