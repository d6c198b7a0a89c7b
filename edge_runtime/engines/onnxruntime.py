"""Trunk + ADC under ONNX Runtime, from one of the bundle's graphs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from adc_edge.arrays import Float32, Int64, Weights
from adc_edge.edge_runtime.engines.base import GraphEngine, check_input
from adc_edge.edge_runtime.engines.on_gpu import converted, is_float32
from adc_edge.edge_runtime.engines.providers import Provider, open_session
from adc_edge.errors import SettingError
from adc_edge.machine.processor import SLOW_INT8, int8_saturates, processor_name
from adc_edge.method.spec import TrunkSpec
from adc_edge.storage.bundle import CLIENT_INT8

if TYPE_CHECKING:
    from torch import Tensor

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_BY_SIZE = {4: np.float32, 2: np.float16}
_log = logging.getLogger(__name__)


class OnnxEngine(GraphEngine):
    """ONNX Runtime, on the CPU or another of its providers.

    Weights are fed with each run, as they lie in memory: no session is rebuilt and nothing is copied. A graph in fp16
    is fed copies in fp16; one in int8 has none to feed.

    Args:
        path: client.onnx, or its fp16 or int8 variant.
        spec: the trunk's architecture.
        threads: the session's; 0: all usable cores.
        freeze_first: K blocks that do not learn; with K > 0 ``CompressedBatch.hidden`` holds what leaves block K.
        provider: ONNX Runtime's provider, or auto.

    Raises:
        SettingError: K leaves no block to train; on entering, a provider that does not work here, or a bundle too old
            to give hidden states.
    """

    name = "onnxruntime"

    def __init__(
        self,
        path: Path,
        spec: TrunkSpec,
        threads: int = 0,
        freeze_first: int = 0,
        provider: Provider | Literal["auto"] = "cpu",
    ) -> None:
        super().__init__(spec, freeze_first)
        self._path, self._threads, self._provider = path, threads, provider
        self.description: str = provider
        self._session: ort.InferenceSession | None = None
        self._weights: dict[str, npt.NDArray[Any]] = {}
        self._on_gpu: dict[str, Tensor] = {}  # weights that are read where they lie
        self.reads_gpu = False

    def __enter__(self) -> OnnxEngine:
        """Make the session."""
        opened = open_session(str(self._path), self._provider, self._threads)
        self._session = opened.session
        self.reads_gpu = opened.provider == "cuda"
        self.description = f"{opened.provider}: {opened.reason}" if self._provider == "auto" else opened.provider
        if opened.provider == "cpu" and self._path.name == CLIENT_INT8 and int8_saturates():
            self.description += f": {SLOW_INT8}"
            _log.warning(f"{processor_name()}: {SLOW_INT8}; compare `adc-edge bench --compute int8 --compute fp32`")
        if not {*self._hidden} <= {output.name for output in self._session.get_outputs()}:
            self._session = None
            raise SettingError(
                f"{self._path.name} has no output {self._hidden[0]}, as --freeze-first needs it",
                "a bundle of this version of adc-edge",
                "export the model again, or leave --freeze-first out",
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the session."""
        self._session = None

    def refresh(self, weights: Weights) -> None:
        """Feed these weights from now on; float32, contiguous, timm's names and layouts.

        Raises:
            SettingError: a name or shape that the graph does not have.
        """
        dtypes = self._dtypes(weights)
        self._on_gpu = {}
        self._weights = {n: np.ascontiguousarray(w, dtypes[n]) for n, w in weights.items()}

    def refresh_on_gpu(self, weights: Mapping[str, Tensor]) -> None:
        """Read these weights where they lie from now on; a graph in fp16 reads copies in fp16.

        Raises:
            SettingError: as ``refresh``.
            EngineError: a weight too large for fp16.
        """
        self._on_gpu = converted(weights, self._dtypes(weights))
        self._weights = {}

    def _dtypes(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """The graph's types of these float32 weights; raises SettingError if they do not fit it."""
        assert self._session is not None, "enter the engine first"
        known = {i.name: (i.shape, i.type) for i in self._session.get_overridable_initializers()}
        wrong = [
            name
            for name, weight in weights.items()
            if known.get(name, ([], ""))[0] != list(weight.shape) or not is_float32(weight)
        ]
        if wrong:
            raise SettingError(
                f"weights that the graph does not have: {wrong[:4]}",
                "the trunk's float32 weights",
                "use the bundle's trunk",
            )
        return {name: _DTYPES[known[name][1]] for name in weights}

    def _run(self, outputs: list[str], images: Float32, init_rows: Int64, slots: int) -> list[Any]:
        check_input(self._spec, images, init_rows, slots)
        assert self._session is not None, "enter the engine first"
        feeds = {"images": images, "seeds": init_rows, "slots": np.zeros(slots, np.int64), **self._weights}
        if self._on_gpu:
            return self._run_bound(self._session, outputs, feeds)
        return self._session.run(outputs, feeds)  # type: ignore[no-any-return]

    def _run_bound(self, session: ort.InferenceSession, outputs: list[str], feeds: Mapping[str, Any]) -> list[Any]:
        """Run with the weights on the GPU; images come from host memory, and outputs return to it."""
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, w in self._on_gpu.items():
            place = w.device.type, w.device.index or 0
            binding.bind_input(name, *place, _BY_SIZE[w.element_size()], tuple(w.shape), w.data_ptr())
        for name in outputs:
            binding.bind_output(name)  # in host memory
        binding.synchronize_inputs()
        session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()  # type: ignore[no-any-return]
