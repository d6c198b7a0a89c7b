"""Weights of the trunk that learns, on their way to an engine on the same GPU. Never run on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from adc_edge.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor


def converted(weights: Mapping[str, Tensor], dtypes: Mapping[str, npt.DTypeLike]) -> dict[str, Tensor]:
    """Return contiguous tensors of these types, float32 or float16, once all of them have been computed.

    Raises:
        EngineError: a weight too large for its type.
    """
    import torch

    halves = {name: np.dtype(dtypes[name]) == np.float16 for name in weights}
    ready = {name: (w.half() if halves[name] else w).contiguous() for name, w in weights.items()}
    for name in (name for name, half in halves.items() if half and bool(ready[name].isinf().any())):
        raise beyond(name, float(weights[name].abs().max()), np.float16)
    if any(w.is_cuda for w in ready.values()):
        torch.cuda.synchronize()  # the engine reads them on a stream of its own
    return ready


def is_float32(weight: Any) -> bool:
    """Return whether an array or a tensor is in float32."""
    return str(weight.dtype) in ("float32", "torch.float32")


def beyond(name: str, largest: float, dtype: npt.DTypeLike) -> EngineError:
    """Return the error of a weight that is too large for an engine's type."""
    kind = np.dtype(dtype)
    return EngineError(
        f"{name} holds {largest:.3g}, beyond what {kind} can",
        f"weights up to {np.finfo(kind).max}",
        "the trunk diverges: a smaller --lr, --clip-norm; or --compute fp32",
    )
