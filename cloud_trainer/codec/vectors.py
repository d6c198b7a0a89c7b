"""Basis vectors and mean of a low-rank message on a device, as `adc_edge/codec/vectors.py` codes them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adc_edge.cloud_trainer.codec import lloyd_max
from adc_edge.codec.vectors import SPREADS


def vector_codes(vectors: Tensor, widths: Tensor) -> Tensor:
    """Return int64 codes ``[m, D]`` of ``widths`` ``[m]`` bits whose vectors are closest to ``vectors``."""
    x = unit_vectors(vectors) * math.sqrt(vectors.shape[1])
    spreads = torch.tensor(SPREADS, dtype=torch.float32, device=x.device)[:, None]  # all of them at once: few kernels
    codes = lloyd_max.codes(x * spreads[:, :, None], widths[:, None])  # [spreads, m, D]
    decoded = lloyd_max.values(codes, widths[:, None])
    lengths = (decoded * decoded).sum(-1).sqrt()
    cosines = torch.where(lengths > 0, (x * decoded).sum(-1) / lengths, 0.0)  # times sqrt(D)
    # As in NumPy's codec a smaller factor is tried where the one before was the best so far, or cut off an entry.
    better = torch.ones_like(cosines, dtype=torch.bool)
    better[1:] = cosines[1:] > cosines.cummax(dim=0).values[:-1]
    outermost = lloyd_max.values((1 << widths) - 1, widths)
    goes_on = better | (x.abs().amax(1) * spreads > outermost)
    tried = torch.ones_like(goes_on)
    tried[1:] = goes_on[:-1].cumprod(dim=0).bool()
    best = torch.where(tried, cosines, -math.inf).argmax(dim=0)
    return codes[best, torch.arange(len(x), device=x.device)]


def decoded_vectors(codes: Tensor, widths: Tensor) -> Tensor:
    """Return the vectors ``[m, D]``, of length one, or zero where codes have no bits."""
    return unit_vectors(lloyd_max.values(codes, widths[:, None]))


def unit_vectors(vectors: Tensor) -> Tensor:
    """Return the vectors ``[m, D]`` scaled to length one; zero stays zero."""
    lengths = (vectors * vectors).sum(1, keepdim=True).sqrt()
    return torch.where(lengths > 0, vectors / lengths, 0.0)
