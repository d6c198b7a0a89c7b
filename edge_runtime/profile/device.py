"""The speed of this device with a bundle: engine, trunk in training, codec, images. No file of the bundle changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adc_edge.arrays import Float32, Int64
from adc_edge.codec.precision import PRECISIONS, decode, encode
from adc_edge.data.loader import Loader
from adc_edge.data.sources import load_dataset
from adc_edge.data.unreadable import check_images
from adc_edge.edge_runtime.engines.base import Engine
from adc_edge.edge_runtime.engines.factory import make_engine, make_shim
from adc_edge.edge_runtime.profile.fitted import TrunkSeconds, fit_forward, fit_passes
from adc_edge.edge_runtime.profile.parts import PassSeconds, forward_seconds, graph_bytes, median_pass, pass_seconds
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.edge_runtime.trunk.device import check_shim_device, choose_shim_device
from adc_edge.edge_runtime.trunk.refresher import Refresher
from adc_edge.machine.description import describe_machine
from adc_edge.machine.threads import divide_cores
from adc_edge.method.compressed import CompressedBatch
from adc_edge.method.ratio import Ratio, Shape
from adc_edge.planning.profile import CodecSeconds, DeviceProfile, Line
from adc_edge.planning.timing import finished, line, timed
from adc_edge.planning.work import block_operations, embedding_operations, last_operations
from adc_edge.storage.bundle import TRUNK, Bundle
from adc_edge.storage.run_dir import RunDir

if TYPE_CHECKING:  # a device with a frozen trunk has no torch
    from adc_edge.edge_runtime.trunk.trainer import Shim

_ROUNDS = 5
# Seconds for each measurement. A round that has begun is finished, and the first of two rounds warms up.
_TRUNK_S, _CODEC_S, _DATA_S, _UPDATE_S = 10.0, 3.0, 1.0, 1.0
_ROUND_S = 4.0  # of a round of forwards, recomputations and backwards: sets the largest micro-batch that is measured
_FORWARDS = 9  # forwards of the largest micro-batch that take as long as such a round
_ENCODING_S = 0.08  # longest encoding of a tensor in pca1
_DECODED = 32  # images to read
_FEWER = (4, 16)  # times fewer images in the smaller micro-batches


class Micro(NamedTuple):
    """A micro-batch to measure with, and its shape."""

    images: Float32
    shape: Shape


class DeviceMeasurement:
    """Measures this device.

    Args:
        settings: as `serve` has them; steps, data order and the trainer do not matter.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        settings.check_compute()
        self._trains = settings.trunk == "train"
        self._needs_torch = self._trains or settings.engine == "torch"
        self.bundle = Bundle.load(settings.bundle, (TRUNK,) if self._needs_torch else ())
        self._graph = None if settings.engine == "torch" else self.bundle.client(settings.computes)
        self._manifest = self.bundle.manifest
        self._ratio = self._manifest.ratio if settings.ratio == Ratio() else settings.ratio.check()
        self._batch_size = settings.batch_size or self._manifest.batch_size
        self._shape(self._batch_size)
        check_shim_device(settings.shim_device, not self._needs_torch)  # last: it may import torch

    def run(self, say: Callable[[str], object] = lambda text: None) -> DeviceProfile:
        """Measure, in less than half a minute unless a single micro-batch of two images takes seconds.

        Args:
            say: told what is being measured.
        """
        settings, manifest = self.settings, self._manifest
        threads = divide_cores(settings.threads)
        say("images")
        dataset = load_dataset(settings.data)
        check_images(dataset, allow_broken=False)
        loader = Loader(dataset.train, manifest.preprocessing, 1, workers=settings.workers)
        with ExitStack() as stack:
            stack.callback(loader.close)
            images, data_seconds, batch_seconds = self._read(
                loader, np.arange(min(_DECODED, self._batch_size, len(dataset.train.labels)))
            )
            shim = self._shim() if self._needs_torch else None
            engine = make_engine(settings.engine, self.bundle, settings, self._shape(len(images)), self._graph, shim)
            stack.enter_context(engine)
            refresher = Refresher(shim) if shim is not None and self._trains else None
            if refresher is not None:
                refresher.follow(engine)
            micros = self._micros(engine, images)
            say(f"the trunk, with up to {len(micros[0].images)} images")
            seconds = self._trunk(engine, shim, micros)
            update_seconds = 0.0
            if shim is not None and refresher is not None:
                update_seconds = _update(shim, refresher)
            say("the codec")
            codec = _codec([self._compress(engine, micro).activations for micro in micros[:-1]])
            return DeviceProfile(
                machine=describe_machine(
                    threads=threads, provider=engine.description, shim="" if shim is None else shim.device.type
                ),
                bundle=self.bundle.digest,
                model=manifest.model,
                split=manifest.split,
                tokens=manifest.tokens,
                dim=manifest.dim,
                engine=engine.name,
                compute=settings.computes,
                keeps_graph=engine.keeps_graph,
                images=len(micros[0].images),
                call_seconds=seconds.forward_call,
                embedding=seconds.embedding,
                blocks=seconds.blocks,
                update_seconds=update_seconds,
                data_seconds=data_seconds,
                codec=codec,
                last=seconds.last,
                mlp_dim=manifest.trunk.mlp_dim,
                recompute_call_seconds=seconds.recompute_call,
                backward_call_seconds=seconds.backward_call,
                batch_seconds=batch_seconds,
                trains=self._trains,
            )

    def _shape(self, images: int) -> Shape:
        return self._ratio.shape(images, self._manifest.tokens, self._manifest.prefix)

    def _shim(self) -> Shim:
        nowhere = RunDir(None, {}, {})
        device = choose_shim_device(self.settings.shim_device, nowhere)
        nowhere.close()
        return make_shim(self.bundle, self.settings, device)

    def _read(self, loader: Loader, some: Int64) -> tuple[Float32, float, float]:
        """A batch of images, the seconds to read one, and to put one into a batch."""
        found = finished(timed({"read": lambda: loader.plain(some)}, _ROUNDS, _DATA_S))
        images = loader.plain(some).images
        parts = list(images)
        stacked = finished(timed({"stack": lambda: np.stack(parts)}, _ROUNDS, _DATA_S))
        return _enlarged(images, self._batch_size), found["read"] / len(some), stacked["stack"] / len(some)

    def _micros(self, engine: Engine, images: Float32) -> list[Micro]:
        """Micro-batches of many images and of fewer, and one of many with another number of tokens."""
        few = Micro(images[:2], self._shape(2))
        self._compress(engine, few)  # the first call plans the memory
        start = time.perf_counter()
        self._compress(engine, few)
        each = (time.perf_counter() - start) / len(few.images)
        most = int(_ROUND_S / (_FORWARDS * max(each, 1e-9)))
        count = min(len(images), max(2, most))
        shape = self._shape(count)
        n, least = shape.tokens, self._manifest.prefix + 1
        other = max(least, n // 4) if 2 * shape.kept > n else n
        sizes = dict.fromkeys((count, *(max(2, count // fewer) for fewer in _FEWER)))
        same = [Micro(images[:size], self._shape(size)) for size in sizes]
        return [*same, Micro(images[:count], Shape(count, n, shape.clusters, other))]

    def _compress(self, engine: Engine, micro: Micro) -> CompressedBatch:
        shape = micro.shape
        return engine.compress(micro.images, np.arange(shape.clusters), shape.kept - self._manifest.prefix)

    def _trunk(self, engine: Engine, shim: Shim | None, micros: list[Micro]) -> TrunkSeconds:
        """Seconds of the trunk. Forward, recomputation and backward take turns, as in a step: caches hold the same."""
        sent = [self._compress(engine, micro) for micro in micros]
        passes: list[list[PassSeconds]] = [[] for _ in micros]
        cases: dict[tuple[str, int], Callable[[], object]] = {}
        for number, micro in enumerate(micros):
            cases["forward", number] = lambda micro=micro: self._compress(engine, micro)  # type: ignore[misc]
            if shim is not None and self._trains:
                cases["train", number] = lambda n=number: passes[n].append(  # type: ignore[misc]
                    _train(shim, micros[n], sent[n])
                )
            elif shim is not None:
                cases["drop", number] = shim.drop
        if shim is not None:
            shim.drop()
        found = finished(timed(cases, _ROUNDS, _TRUNK_S))
        shapes, spec = [micro.shape for micro in micros], self._manifest.trunk
        forwards = [found["forward", number] for number in range(len(micros))]
        seconds = fit_forward(spec, shapes, forwards, self._shares(shim, micros))
        if shim is None or not self._trains:
            return seconds
        sizes = graph_bytes(shim, micros[0].images, sent[0])
        return fit_passes(spec, shapes, [median_pass(each[1:] or each) for each in passes], sizes, seconds)

    def _shares(self, shim: Shim | None, micros: list[Micro]) -> list[float]:
        """The share of each part in a forward: PyTorch's, of a smaller micro-batch, or else by arithmetic."""
        images, shape = micros[min(1, len(micros) - 2)]
        if shim is None:
            spec = self._manifest.trunk
            block = block_operations(spec.tokens, spec.embed_dim, spec.mlp_dim)
            last = last_operations(shape, spec.embed_dim, spec.mlp_dim)
            parts = [embedding_operations(spec), *[block] * (spec.depth - 1), last]
        else:
            slots = shape.kept - self._manifest.prefix
            rows = np.arange(shape.clusters)
            parts = np.median([forward_seconds(shim, images, rows, slots) for _ in range(_ROUNDS)][1:], axis=0).tolist()
        return [part / sum(parts) for part in parts]


def _train(shim: Shim, micro: Micro, sent: CompressedBatch) -> PassSeconds:
    """Recompute and backpropagate a micro-batch; an engine that keeps its graph has left one, which is dropped."""
    shim.drop()
    return pass_seconds(shim, micro.images, sent)


def _enlarged(images: Float32, count: int) -> Float32:
    """Repeat images to a batch of ``count``, with noise, because k-means finds no clusters among equal images."""
    rng = np.random.default_rng(0)
    batch: Float32 = np.resize(images, (count, *images.shape[1:]))
    batch[len(images) :] += 0.3 * rng.standard_normal(batch[len(images) :].shape, np.float32)
    return batch


def _update(shim: Shim, refresher: Refresher) -> float:
    """Seconds of the optimizer and the engine's refresh. Gradients of zero leave the weights as they are."""

    def update() -> None:
        shim.update(0, 1)
        refresher.now()

    def zero() -> None:
        for parameter in shim.trunk.parameters():
            parameter.grad = parameter.detach() * 0.0

    def both() -> None:
        zero()
        update()

    shim.drop()
    found = finished(timed({"zero": zero, "both": both}, _ROUNDS, _UPDATE_S))
    return max(0.0, found["both"] - found["zero"])


def _codec(tensors: list[Float32]) -> dict[str, CodecSeconds]:
    """Seconds to encode and decode by rows, of the engine's own outputs."""
    most = _affordable(tensors[-1])
    cases: dict[tuple[str, str, int], Callable[[], object]] = {}
    for x in tensors:
        part = x[: max(1, most // x.shape[1])]  # [B, N, D]: whole images, since dct works on their grid of tokens
        rows = part.shape[0] * part.shape[1]
        for precision in PRECISIONS:
            data = bytes(encode(part, precision))
            cases["encode", precision, rows] = lambda x=part, p=precision: encode(x, p)  # type: ignore[misc]
            cases["decode", precision, rows] = lambda d=data, s=part.shape, p=precision: decode(d, s, p)  # type: ignore[misc]
    found = finished(timed(cases, _ROUNDS, _CODEC_S))

    def by_rows(way: str, precision: str) -> Line:
        return line({rows: seconds for (w, p, rows), seconds in found.items() if (w, p) == (way, precision)})

    return {p: CodecSeconds(by_rows("encode", p), by_rows("decode", p)) for p in PRECISIONS}


def _affordable(x: Float32) -> int:
    """Return the rows of the largest tensor to encode, by the time of a smaller one."""
    encode(x, "pca1")
    start = time.perf_counter()
    encode(x, "pca1")
    seconds = time.perf_counter() - start
    rows: int = len(x) * x.shape[1]
    return max(rows, int(rows * _ENCODING_S / seconds))
