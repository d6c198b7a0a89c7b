"""A TensorRT engine at work: its tensors on the device, its runs, and new weights for it. Never run on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from adc_edge.arrays import Array, Weights
from adc_edge.edge_runtime.engines.on_gpu import beyond, converted, is_float32
from adc_edge.edge_runtime.engines.tensorrt.build import NotRefittable
from adc_edge.edge_runtime.engines.tensorrt.cuda import Buffer, Cuda
from adc_edge.edge_runtime.engines.tensorrt.library import why
from adc_edge.errors import EngineError, SettingError

if TYPE_CHECKING:
    from torch import Tensor

_MEMORY = "end what else uses the GPU's memory, or cut the batch: more --micro-batches"


class _Place(NamedTuple):
    """Where an input or output of the engine lies."""

    dtype: npt.DTypeLike
    is_input: bool
    buffer: Buffer


class _Slot(NamedTuple):
    """A weight's places: one to convert it in, one on the device that the engine reads."""

    host: Array
    buffer: Buffer


class TensorRtSession:
    """A deserialized engine on one stream.

    TensorRT's objects have no other names than its attributes: an error's traceback would keep those from ``close``.

    Args:
        trt: the module.
        logger: of ``make_logger``.
        cuda: the stream; it lives longer than the session.
        plan: the serialized engine.

    Raises:
        EngineError: TensorRT does not take the plan, or there is no memory for it.
    """

    def __init__(self, trt: Any, logger: Any, cuda: Cuda, plan: bytes) -> None:
        self._trt, self._logger, self._cuda = trt, logger, cuda
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._refitter: Any = None
        self._buffers: list[Buffer] = []
        self._places: dict[str, _Place] = {}
        self._slots: dict[str, _Slot] = {}
        try:
            self._open(plan)
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Mapping[str, Array], outputs: list[str]) -> list[Any]:
        """Run the engine; feeds are contiguous, of the engine's types, within its profile.

        Raises:
            EngineError: TensorRT or CUDA refuses.
        """
        for name, array in feeds.items():
            if not self._context.set_input_shape(name, tuple(array.shape)):
                raise self._refused(f"{name} {list(array.shape)}")
            self._reserve(name, array.nbytes)
        results: dict[str, Array] = {}
        for name, place in self._places.items():
            if not place.is_input:
                results[name] = np.empty(self._shape(name), place.dtype)
                self._reserve(name, results[name].nbytes)
        for name, array in feeds.items():
            self._cuda.upload(self._places[name].buffer, array)
        if not self._context.execute_async_v3(self._cuda.stream):
            raise self._refused("a run")
        for name in outputs:
            self._cuda.download(results[name], self._places[name].buffer)
        self._cuda.synchronise()
        return [results[name] for name in outputs]

    def take_weights(self, weights: Weights, way: Literal["refit", "inputs"]) -> None:
        """Reserve device memory for these weights, once; ``refresh`` fills it.

        Raises:
            NotRefittable: the engine does not know them all, or wants others besides.
        """
        if way == "refit":
            self._take_by_refit(weights)
        else:
            self._take_as_inputs(weights)

    def refresh(self, weights: Weights) -> None:
        """Compute with these weights from now on.

        Raises:
            SettingError: they are not those of ``take_weights``.
            EngineError: one is too large for fp16, or TensorRT refuses.
        """
        self._check(weights)
        for name, slot in self._slots.items():  # all of them before any is uploaded: all change, or none
            _convert(name, weights[name], slot.host)
        for slot in self._slots.values():
            self._cuda.upload(slot.buffer, slot.host)
        self._refit()

    def refresh_on_gpu(self, weights: Mapping[str, Tensor]) -> None:
        """Compute with these weights, which lie on the GPU, from now on; raises as ``refresh``."""
        self._check(weights)
        ready = converted(weights, {name: slot.host.dtype for name, slot in self._slots.items()})
        for name, slot in self._slots.items():
            self._cuda.duplicate(slot.buffer, ready[name].data_ptr(), slot.host.nbytes)
        self._refit()  # it ends when the copies are made: until then ``ready`` lives

    def _check(self, weights: Mapping[str, Any]) -> None:
        """Raise SettingError unless these are the weights of ``take_weights``, in float32."""
        wrong = {*self._slots} ^ {*weights} | {
            name
            for name, slot in self._slots.items()
            if name in weights and (tuple(weights[name].shape) != slot.host.shape or not is_float32(weights[name]))
        }
        if wrong:
            raise SettingError(
                f"weights that the engine does not have, or lacks: {sorted(wrong)[:4]}",
                "the trunk's float32 weights, all of them",
                "use the bundle's trunk",
            )

    def _refit(self) -> None:
        # On the stream of the runs: a refit must not meet a run under way on another one.
        if self._refitter is not None and not self._refitter.refit_cuda_engine_async(self._cuda.stream):
            raise self._refused("new weights")
        self._cuda.synchronise()

    def close(self) -> None:
        """Release the engine: first what was made from it, then what made it, then its memory."""
        try:
            self._cuda.synchronise()  # an error may have left work behind
        finally:
            self._refitter = None
            self._context = None
            self._engine = None
            self._runtime = None
            self._places, self._slots = {}, {}
            while self._buffers:
                self._cuda.free(self._buffers.pop())

    def _open(self, plan: bytes) -> None:
        trt = self._trt
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(
                f"TensorRT {trt.__version__} does not take its engine{why(self._logger)}",
                "an engine of this TensorRT and GPU",
                "delete the bundle's engines/ (or --engine-cache): it will be built again",
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"TensorRT cannot run its engine{why(self._logger)}", "memory for it", _MEMORY)
        for name in [self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)]:
            if self._engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise EngineError(
                    f"TensorRT takes {name} for a shape, on the host", "a tensor on the device", "report this"
                )
            dtype = trt.nptype(self._engine.get_tensor_dtype(name))
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            self._places[name] = _Place(dtype, is_input, self._buffer())

    def _shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an output; the shapes of all inputs must be set."""
        shape = tuple(self._context.get_tensor_shape(name))
        if any(length < 0 for length in shape):
            raise self._refused(f"the shape of {name}, {list(shape)},")
        return shape

    def _reserve(self, name: str, nbytes: int) -> None:
        """Reserve memory for a tensor, and tell the engine its address if that has changed."""
        buffer = self._places[name].buffer
        if self._cuda.reserve(buffer, nbytes) and not self._context.set_tensor_address(name, buffer.address):
            raise self._refused(f"the address of {name}")

    def _take_by_refit(self, weights: Weights) -> None:
        trt = self._trt
        if not self._engine.refittable:
            raise NotRefittable("TensorRT has built an engine that cannot be refitted")
        self._refitter = trt.Refitter(self._engine, self._logger)
        unknown = sorted({*weights} - {*self._refitter.get_all_weights()})
        if unknown:
            raise NotRefittable(f"TensorRT offers no {', '.join(unknown[:4])} to refit ({len(unknown)} in all)")
        for name, value in weights.items():
            prototype = self._refitter.get_weights_prototype(name)
            host = np.empty(value.shape, trt.nptype(prototype.dtype))
            slot = self._slots[name] = _Slot(host, self._buffer(host.nbytes))
            values = trt.Weights(prototype.dtype, slot.buffer.address, value.size)
            if prototype.size != value.size or not self._refitter.set_named_weights(
                name, values, trt.TensorLocation.DEVICE
            ):
                raise NotRefittable(f"TensorRT refuses {name} {list(value.shape)}{why(self._logger)}")
        missing = self._refitter.get_missing_weights()
        if missing:
            raise NotRefittable(f"TensorRT wants other weights too: {', '.join(missing[:4])} ({len(missing)} in all)")

    def _take_as_inputs(self, weights: Weights) -> None:
        for name, value in weights.items():
            place = self._places.get(name)
            if place is None or tuple(self._engine.get_tensor_shape(name)) != value.shape:
                raise NotRefittable(f"the engine has no input {name} {list(value.shape)}")
            host = np.empty(value.shape, place.dtype)
            self._reserve(name, host.nbytes)
            self._slots[name] = _Slot(host, place.buffer)

    def _buffer(self, nbytes: int = 0) -> Buffer:
        buffer = self._cuda.buffer(nbytes)
        self._buffers.append(buffer)
        return buffer

    def _refused(self, what: str) -> EngineError:
        return EngineError(
            f"TensorRT refuses {what}{why(self._logger)}",
            "what the engine was built for",
            "delete the bundle's engines/ (or --engine-cache) to have it built again; if it persists, report this and "
            "use --engine onnxruntime",
        )


def _convert(name: str, weight: Array, host: Array) -> None:
    try:
        with np.errstate(over="raise"):
            np.copyto(host, weight, casting="same_kind")
    except FloatingPointError:
        raise beyond(name, np.abs(weight).max(), host.dtype) from None
