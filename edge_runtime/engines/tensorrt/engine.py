"""Trunk + ADC under TensorRT, from one of the bundle's graphs: built on the device, kept for the next start.

A trunk that trains needs its weights replaced after every step. Two ways, tried in this order, each tested before it is
used (check.py): *refit*, which writes them into the engine; and *weights as network inputs*, from the graph
that has none of its own. What failed on a GPU is remembered with the engines there.

Never run on a GPU: tests/edge_runtime runs it against a fake TensorRT that computes with ONNX Runtime.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
from safetensors.numpy import load_file

from adc_edge.arrays import Array, Float32, Int64, Weights
from adc_edge.edge_runtime.engines.base import GraphEngine, check_input
from adc_edge.edge_runtime.engines.tensorrt import cache
from adc_edge.edge_runtime.engines.tensorrt.build import BuildShape, NotRefittable, Order, build
from adc_edge.edge_runtime.engines.tensorrt.check import Check
from adc_edge.edge_runtime.engines.tensorrt.cuda import Cuda
from adc_edge.edge_runtime.engines.tensorrt.library import load_tensorrt, make_logger
from adc_edge.edge_runtime.engines.tensorrt.session import TensorRtSession
from adc_edge.errors import EngineError, SettingError
from adc_edge.files import sha256
from adc_edge.storage.bundle import CLIENT_BARE, ENGINES, OUTPUTS, TRUNK, Bundle, Compute

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHTS_DTYPE = "fp16"  # of the graph without weights
_log = logging.getLogger(__name__)

Way = Literal["frozen", "refit", "inputs"]  # how weights are replaced
_WORDS: dict[Way, str] = {
    "frozen": "weights built in",
    "refit": "weights refitted",
    "inputs": "weights as network inputs",
}


class TensorRtEngine(GraphEngine):
    """TensorRT on the current GPU.

    Args:
        bundle: verified as its files are used.
        largest: B, images of a batch at most, evaluations included.
        opt: T and S of the run: what the engine is fastest at. It takes any T <= B and any S.
        compute: which of the bundle's graphs.
        trains: weights will be replaced; int8 has none to replace.
        freeze_first: K blocks that do not learn; with K > 0 ``CompressedBatch.hidden`` holds what leaves block K.
        directory: for built engines; None: ``engines/`` in the bundle.

    Raises:
        SettingError: settings that do not fit each other; on entering, no TensorRT, an opset that it does not take, a
            directory that cannot be written to.
        BundleError: on entering, a graph that the bundle lacks.
        EngineError: on entering, no GPU, an engine that cannot be built or trusted, a damaged one on disk.
    """

    name = "tensorrt"
    reads_gpu = True

    def __init__(
        self,
        bundle: Bundle,
        largest: int,
        opt: tuple[int, int],
        compute: Compute = "fp16",
        trains: bool = True,
        freeze_first: int = 0,
        directory: Path | None = None,
    ) -> None:
        super().__init__(bundle.manifest.trunk, freeze_first)
        self._usual = BuildShape(largest, *opt)
        self._usual.check(self._spec)
        if compute == "int8" and trains:
            raise SettingError(
                "an int8 engine for a trunk that trains",
                "int8 is forward only: its scales would have to follow the weights",
                "add --trunk frozen, or use --compute fp16",
            )
        self._bundle, self._compute, self._trains = bundle, compute, trains
        self._directory = directory or bundle.path / ENGINES
        self._weights: Weights | None = None  # the bundle's, of a trunk that trains
        self._session: TensorRtSession | None = None
        self._stack = ExitStack()
        self.description = "tensorrt"

    def __enter__(self) -> TensorRtEngine:
        """Load the engine, or build and test one: minutes, once."""
        trt = load_tensorrt()
        logger = make_logger(trt)
        with ExitStack() as stack:
            cuda = Cuda()
            stack.callback(cuda.close)
            self._weights = load_file(self._bundle.file(TRUNK)) if self._trains else None
            stack.callback(self._close_session)
            way = self._open(trt, logger, cuda)
            self._weights = None  # the engine has its own
            self._stack = stack.pop_all()
        self.description = f"TensorRT {trt.__version__} on {cuda.device.name}, {self._compute}, {_WORDS[way]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the engine and all of its memory."""
        self._stack.close()

    def refresh(self, weights: Weights) -> None:
        """Compute with these weights from now on; float32, timm's names and layouts, all of them.

        Raises:
            SettingError: a name or shape that the engine does not have, or a trunk that was said to stay as it is.
            EngineError: a weight too large for fp16, or TensorRT refuses.
        """
        assert self._session is not None, "enter the engine first"
        if not self._trains:
            raise SettingError("new weights for a frozen trunk", "none", "make the engine with trains=True")
        self._session.refresh(weights)

    def refresh_on_gpu(self, weights: Mapping[str, Tensor]) -> None:
        """Compute with these weights on the GPU from now on; they are copied there, so they may change later.

        Raises:
            SettingError, EngineError: as ``refresh``.
        """
        assert self._session is not None, "enter the engine first"
        self._session.refresh_on_gpu(weights)

    def _run(self, outputs: list[str], images: Float32, init_rows: Int64, slots: int) -> list[Any]:
        check_input(self._spec, images, init_rows, slots)
        if len(images) > self._usual.images:
            raise SettingError(
                f"{len(images)} images at once",
                f"at most {self._usual.images}, which the TensorRT engine was built for",
                "make the engine for the largest batch, evaluations included",
            )
        assert self._session is not None, "enter the engine first"
        arrays: dict[str, Array] = {"images": images, "seeds": init_rows, "slots": np.zeros(slots, np.int64)}
        return self._session.run({name: np.ascontiguousarray(array) for name, array in arrays.items()}, outputs)

    def _open(self, trt: Any, logger: Any, cuda: Cuda) -> Way:
        """Use the first engine that passes its test, and return the way its weights are replaced."""
        ways: list[Way] = ["refit", "inputs"] if self._trains else ["frozen"]
        fault = None
        for way in ways:
            order = self._order(way, fault)
            key = self._key(trt, cuda, order, way)
            kept = cache.load_engine(self._directory, key)
            if kept is None:
                fault = self._make(trt, logger, cuda, order, way, key)
            elif kept.verdict == cache.GOOD:
                fault = self._use(TensorRtSession(trt, logger, cuda, kept.engine), way)
            else:
                fault = f"{kept.verdict}; found at an earlier start, delete {self._directory} to try again"
            if fault is None:
                return way
            self._close_session()
            if way == "refit":
                _log.warning(
                    f"TensorRT cannot be trusted to refit here ({fault}): using weights as network inputs instead"
                )
        raise EngineError(
            f"the TensorRT engine fails its test, {_WORDS[ways[-1]]}: {fault}",
            "what ONNX Runtime computes on the CPU",
            "do not train with it; use --engine onnxruntime, and report the board and its versions",
        )

    def _order(self, way: Way, fault: str | None) -> Order:
        """Return the build order; raises EngineError if the graph without weights is needed and missing."""
        manifest = self._bundle.manifest
        if way != "inputs":
            graph = self._bundle.client(self._compute)
        elif CLIENT_BARE in manifest.files and self._compute == _WEIGHTS_DTYPE:
            graph = self._bundle.file(CLIENT_BARE)
        else:
            raise EngineError(
                f"TensorRT cannot refit this engine ({fault}), and there is no {self._compute} graph without weights",
                f"a bundle with {CLIENT_BARE}, and --compute {_WEIGHTS_DTYPE}",
                "export it again with --tensorrt; or use --engine onnxruntime",
            )
        return Order(
            graph,
            manifest.opset,
            self._usual.shapes(self._spec),
            (*OUTPUTS, *self._hidden),
            tuple(self._weights or ()) if way == "refit" else (),
        )

    def _key(self, trt: Any, cuda: Cuda, order: Order, way: Way) -> cache.EngineKey:
        build = {"way": way, "shapes": order.shapes, "outputs": order.outputs, "workspace": None}
        return cache.EngineKey(
            sha256(order.graph), trt.__version__, *cuda.device, msgspec.json.encode(build, order="sorted").decode()
        )

    def _make(self, trt: Any, logger: Any, cuda: Cuda, order: Order, way: Way, key: cache.EngineKey) -> str | None:
        """Build an engine, test it and keep it; return its fault, which is kept in its place, or None."""
        cache.check_writable(self._directory)
        note = cache.foreign(self._directory, cuda.device)
        if note:
            _log.info(note)
        _log.info(f"building a TensorRT engine from {order.graph.name}, {_WORDS[way]}: minutes, but only once")
        try:
            built = build(trt, logger, order, cache.load_timing(self._directory, key))
        except NotRefittable as error:
            fault: str | None = str(error)
        else:
            self._keep(lambda: cache.store_timing(self._directory, key, built.timing))
            fault = self._use(TensorRtSession(trt, logger, cuda, built.engine), way)
            fault = fault or Check(self._bundle, self._compute, self._usual.images).fault(self, self._weights)
        if fault is None:
            self._keep(lambda: cache.store_engine(self._directory, key, built.engine))
        elif way == "refit":
            self._keep(lambda: cache.store_engine(self._directory, key, b"", fault))
        return fault

    def _use(self, session: TensorRtSession, way: Way) -> str | None:
        """Use a session; return why its weights cannot be replaced, or None."""
        self._session = session
        if way != "frozen":
            assert self._weights is not None
            try:
                session.take_weights(self._weights, way)
            except NotRefittable as error:
                return str(error)
            session.refresh(self._weights)
        return None

    def _keep(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:  # a full disk: this run goes on, the next one builds again
            _log.warning(f"the engine is not kept: {error}")

    def _close_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
