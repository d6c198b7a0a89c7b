"""The time that parts of the first batch take on this device, and the error of the codec on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from adc_edge.arrays import Float32
from adc_edge.codec.precision import component_bits, decode, encode
from adc_edge.data.loader import Loader
from adc_edge.defaults import Precision
from adc_edge.edge_runtime.choosing.link import LinkTimes
from adc_edge.edge_runtime.engines.base import Engine
from adc_edge.method.compressed import CompressedBatch, Compressor
from adc_edge.method.ratio import Shape
from adc_edge.planning.schedule import Costs

if TYPE_CHECKING:
    from adc_edge.edge_runtime.trunk.trainer import Shim

_R = TypeVar("_R")
_ROUNDS = 2  # the first one also warms up
_MESSAGE_SECONDS = 2e-3  # that a message costs beyond its bytes: benchmarks/wire.py


class DeviceSeconds(NamedTuple):
    """Seconds of one micro-batch on the device."""

    forward: float
    recompute: float = 0.0
    backward: float = 0.0
    encode: float = 0.0
    decode: float = 0.0
    with_graph: float = 0.0  # PyTorch's forward, which leaves nothing to recompute

    def costs(self, link: LinkTimes, up_bytes: int, down_bytes: int, torch: bool = False) -> Costs:
        """Return the costs of a micro-batch; those of the trainer are not known, and taken to be nothing."""
        forward, recompute = (self.with_graph, 0.0) if torch else (self.forward, self.recompute)
        return Costs(
            forward=forward + self.encode + _MESSAGE_SECONDS,
            recompute=recompute,
            backward=self.backward + self.decode,
            up=link.up_byte * up_bytes,
            cloud=0.0,
            down=link.down_byte * down_bytes,
        )


def at_size(measured: Mapping[int, DeviceSeconds], images: int) -> DeviceSeconds:
    """Return the seconds of ``images`` images: those of a call, and those of each image, from one or two sizes."""
    small, large = min(measured), max(measured)
    if small == large:
        return DeviceSeconds(*(value * images / large for value in measured[large]))
    found = []
    for less, more in zip(measured[small], measured[large], strict=True):
        each = min(max(0.0, (more - less) / (large - small)), more / large)
        found.append(more + each * (images - large))
    return DeviceSeconds(*found)


class FirstBatch:
    """The first batch of a run, to measure with. Neither weights nor the order of data change.

    Args:
        engine: computes what is sent; it is entered.
        shim: trains the trunk; None if it is frozen.
        loader: loads the training split.
        step: the first step.
        prefix: tokens that are always kept.
        precisions: of activations and of gradients; the latter None if none come.
    """

    def __init__(
        self,
        engine: Engine,
        shim: Shim | None,
        loader: Loader,
        step: int,
        prefix: int,
        precisions: tuple[Precision, Precision | None],
    ) -> None:
        self._engine, self._shim, self._loader, self._step, self._prefix = engine, shim, loader, step, prefix
        self._precisions = precisions
        self._images = loader.look_ahead(step).images
        self._rows: Float32 | None = None  # [B, k, D], where nothing is merged

    def compress(self, shape: Shape, number: int = 0, compressor: Compressor | None = None) -> CompressedBatch:
        """Compress micro-batch ``number``."""
        part = self._images[number * shape.images : (number + 1) * shape.images]
        init_rows = self._loader.init_rows(self._step, shape.clusters, shape.images, number)
        return (compressor or self._engine).compress(part, init_rows, shape.kept - self._prefix)

    def seconds(self, shape: Shape, with_graph: bool = False) -> DeviceSeconds:
        """Return what a micro-batch takes; ``with_graph`` also PyTorch's own forward."""
        rounds = [self._round(shape, with_graph) for _ in range(_ROUNDS)]
        return DeviceSeconds(*map(min, zip(*rounds, strict=True)))

    def _round(self, shape: Shape, with_graph: bool) -> DeviceSeconds:
        forward, sent = _timed(lambda: self.compress(shape))
        up, down = self._precisions
        encoding, _ = _timed(lambda: encode(sent.activations, up))
        shim = self._shim
        if shim is None or down is None:
            return DeviceSeconds(forward, encode=encoding)
        recompute = 0.0
        if not self._engine.keeps_graph:
            part = self._images[: shape.images]
            recompute, _ = _timed(lambda: shim.recompute(part, sent))
        body, size = encode(sent.activations, down), sent.activations.shape
        decoding, gradient = _timed(lambda: decode(body, size, down))
        backward, _ = _timed(lambda: shim.backward(np.zeros_like(gradient)))
        shim.drop()  # never two graphs at once
        graph = _timed(lambda: self.compress(shape, compressor=shim))[0] if with_graph else 0.0
        shim.drop()
        return DeviceSeconds(forward, recompute, backward, encoding, decoding, graph)

    def codec_errors(self, shape: Shape) -> list[float]:
        """Return the relative error of the codec over the batch, cut into micro-batches, in each precision.

        Only principal components are common to a micro-batch; other precisions scale each token by itself, and their
        error does not depend on the cut.
        """
        chosen = [precision for precision in self._precisions if precision is not None and component_bits(precision)]
        if not chosen:
            return []
        parts = self._activations(shape)
        return [_relative_error(parts, precision) for precision in dict.fromkeys(chosen)]

    def _activations(self, shape: Shape) -> list[Float32]:
        """Return the activations of each micro-batch, ``[T, k, D]``; the same rows for any cut if nothing is merged."""
        count = len(self._images) // shape.images
        merged = shape.clusters < shape.images
        if merged or self._rows is None or self._rows.shape[1] != shape.kept:
            parts = [self.compress(shape, number).activations for number in range(count)]
            if self._shim is not None:
                self._shim.drop()  # of an engine that keeps graphs
            if merged:
                return parts
            self._rows = np.concatenate(parts)
        return np.array_split(self._rows, count)


def _timed(work: Callable[[], _R]) -> tuple[float, _R]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _relative_error(parts: list[Float32], precision: Precision) -> float:
    error = total = 0.0
    for part in parts:
        again = decode(encode(part, precision), part.shape, precision)
        error += float(np.square(part - again, dtype=np.float64).sum())
        total += float(np.square(part, dtype=np.float64).sum())
    return (error / total) ** 0.5 if total else 0.0
