"""Type aliases of arrays and bytes: no module imports another for an alias alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
UInt32 = npt.NDArray[np.uint32]
Labels = Int64  # [B], class of each image
Weights = Mapping[str, Float32]  # by timm's parameter name
Body = bytes | bytearray | memoryview  # raw tensors of a message
