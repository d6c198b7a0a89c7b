"""Refreshes the engine with the trunk's weights, after every step or after every K steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from adc_edge.arrays import Weights
from adc_edge.edge_runtime.engines.base import Engine

if TYPE_CHECKING:  # the shim needs torch, which a frozen device lacks
    from adc_edge.edge_runtime.trunk.trainer import Shim

_ENGINE = "engine."


class Refresher:
    """A trunk that learns, and the engine's copy of its weights.

    Between two refreshes the engine computes with old weights, so its output and the shim's recomputation drift
    apart. A checkpoint keeps the old weights, so that a resumed run sends what an undisturbed one would send.

    Args:
        shim: trains the trunk.
        every: K, steps between refreshes.
    """

    def __init__(self, shim: Shim, every: int = 1) -> None:
        self._shim, self.every = shim, every
        self._engine: Engine | None = None
        self._old: dict[str, npt.NDArray[Any]] = {}  # the engine's own weights; empty: it reads the shim's

    def follow(self, engine: Engine) -> None:
        """Refresh this engine from now on."""
        self._engine = engine
        if self._old:
            engine.refresh(self._old)
        else:
            self.now()

    def now(self) -> None:
        """Give the engine the current weights."""
        if self.every > 1:
            self._old = {name: value.copy() for name, value in self._shim.weights().items()}
        if self._engine is not None:
            self._engine.refresh(self._old or self._shim.weights())

    def engine_weights(self) -> Weights:
        """The weights that the engine computes with, by timm name."""
        own = self._engine is None or self._engine.keeps_graph
        return self._shim.weights() if own else self._old or self._shim.weights()

    def due(self, step: int) -> bool:
        """Whether the engine is refreshed after ``step``."""
        return (step + 1) % self.every == 0

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays for a checkpoint: the trunk, its optimizer, and the engine's weights where they differ."""
        return self._shim.arrays() | {_ENGINE + name: value for name, value in self._old.items()}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Restore the arrays of a checkpoint, and drop micro-batches in progress."""
        self._shim.drop()
        self._shim.restore(arrays)
        old = {name[len(_ENGINE) :]: value for name, value in arrays.items() if name.startswith(_ENGINE)}
        self._old = {name: np.array(value) for name, value in old.items()} if self.every > 1 else {}
        if not self._old:
            self.now()
        elif self._engine is not None:
            self._engine.refresh(self._old)
