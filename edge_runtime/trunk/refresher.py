"""Refreshes the engine with the trunk's weights, after every step or after every K steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from adc_edge.arrays import Weights
from adc_edge.edge_runtime.engines.base import Engine

if TYPE_CHECKING:  # the shim needs torch, which a frozen device lacks
    from adc_edge.edge_runtime.trunk.trainer import Shim

_ENGINE = "engine."
_TOLERANCE = 1e-3  # of the largest output; the same kernels compute both
_log = logging.getLogger(__name__)


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
        self._by_address = False  # the engine reads the shim's weights on the GPU, which both use
        self._old: dict[str, npt.NDArray[Any]] = {}  # the engine's own weights; empty: it reads the shim's

    def follow(self, engine: Engine) -> None:
        """Refresh this engine from now on."""
        self._engine = engine
        shared = self._shim.on_gpu and engine.reads_gpu and self.every == 1
        self._by_address = shared and _takes_addresses(engine, self._shim)
        if self._old:
            engine.refresh(self._old)
        else:
            self.now()

    def now(self) -> None:
        """Give the engine the current weights."""
        if self.every > 1:
            self._old = {name: value.copy() for name, value in self._shim.weights().items()}
        if self._engine is not None and self._by_address:
            self._engine.refresh_on_gpu(self._shim.tensors())
        elif self._engine is not None:
            self._engine.refresh(self._old or self._shim.weights())

    def take(self, weights: Weights) -> None:
        """Set the trunk's weights, and the engine's; the optimizer's state stays as it is."""
        self._shim.load(weights)
        self.now()

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


def _takes_addresses(engine: Engine, shim: Shim) -> bool:
    """Whether an engine computes the same with weights by their address on the GPU as with copies from host memory.

    Nobody has run this on a GPU, so each run tests it first. The engine gets other weights in between: a hand-over
    that changes nothing must show.
    """
    spec, weights = shim.trunk.spec, shim.weights()
    image = np.random.default_rng(0).standard_normal((1, spec.channels, *spec.image_size), np.float32)
    engine.refresh(weights)
    expected = engine.full_output(image)
    engine.refresh({name: np.multiply(weight, 0.5, dtype=np.float32) for name, weight in weights.items()})
    try:
        engine.refresh_on_gpu(shim.tensors())
        found = engine.full_output(image)
        if np.abs(found - expected).max() <= _TOLERANCE * np.abs(expected).max():
            return True
        fault = "it computes something else"
    except Exception as error:  # whatever the engine's library raises
        fault = str(error).partition("\n")[0]
    _log.warning("%s cannot read weights on the GPU (%s): they go through host memory", engine.name, fault)
    return False
