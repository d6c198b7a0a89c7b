"""CUDA as far as an engine needs it: a stream, device memory, copies. Uses cuda-python, not torch.

Every call's result is checked. Never run on a GPU: tests/edge_runtime/engines/tensorrt/test_contract.py holds the
names to cuda-python 12.6 and 13.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

from adc_edge.arrays import Array
from adc_edge.errors import EngineError

_MODULES = ("cuda.bindings.runtime", "cuda.cudart")  # the second up to cuda-python 12.5
_INSTALL = "pip install 'adc-edge[tensorrt]', with a cuda-python no newer than the driver's CUDA: 12.6 for JetPack 6"
_REMEDIES = {
    "cudaErrorMemoryAllocation": "end what else uses the GPU's memory, or cut the batch: more --micro-batches",
    "cudaErrorInsufficientDriver": _INSTALL,
}
_REMEDY = "see that nvidia-smi or tegrastats shows the GPU; a container needs --runtime nvidia"


class Device(NamedTuple):
    """A GPU."""

    name: str
    capability: str  # such as "8.7"


def load_cuda() -> Any:
    """cuda-python's module of the CUDA runtime; raises EngineError where there is none."""
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise EngineError("no cuda-python here", "Python's way to the CUDA runtime", _INSTALL)


class Buffer:
    """Device memory that grows and never shrinks; ``address`` is 0 until something is reserved."""

    def __init__(self) -> None:
        self.address = self.nbytes = 0


class Cuda:
    """A stream on the current device, with the buffers that it works on. Copies and kernels run in the order they came.

    Host arrays under way are kept alive until ``synchronise``; nobody may write to them, or read them, before.

    Raises:
        EngineError: no cuda-python, no GPU, or any call that fails later on.
    """

    def __init__(self) -> None:
        cudart = self._cudart = load_cuda()
        number = self._call(cudart.cudaGetDevice)
        properties = self._call(cudart.cudaGetDeviceProperties, number)
        name: bytes = properties.name
        self.device = Device(name.decode().partition("\0")[0], f"{properties.major}.{properties.minor}")
        # Not the default stream: TensorRT would synchronise the whole device around each of its calls there.
        self._stream = self._call(cudart.cudaStreamCreateWithFlags, cudart.cudaStreamNonBlocking)
        self.stream = int(self._stream)  # its handle
        self._buffers: list[Buffer] = []
        self._held: list[Array] = []

    def buffer(self, nbytes: int = 0) -> Buffer:
        """A buffer, freed by ``close`` at the latest."""
        buffer = Buffer()
        self._buffers.append(buffer)
        self.reserve(buffer, nbytes)
        return buffer

    def reserve(self, buffer: Buffer, nbytes: int) -> bool:
        """Reserve ``nbytes``; return whether the buffer has moved and lost its content. The stream must be idle."""
        if nbytes <= buffer.nbytes:
            return False
        self._free(buffer)
        buffer.address = int(self._call(self._cudart.cudaMalloc, nbytes))
        buffer.nbytes = nbytes
        return True

    def upload(self, buffer: Buffer, array: Array) -> None:
        """Enqueue a copy to the device; the array must be contiguous."""
        self._copy(buffer, array, buffer.address, array.ctypes.data, self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def download(self, array: Array, buffer: Buffer) -> None:
        """Enqueue a copy from the device into a contiguous array."""
        self._copy(buffer, array, array.ctypes.data, buffer.address, self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def duplicate(self, buffer: Buffer, address: int, nbytes: int) -> None:
        """Enqueue a copy of other device memory, which must stay as it is until ``synchronise``."""
        assert nbytes <= buffer.nbytes, "reserve first"
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call(self._cudart.cudaMemcpyAsync, buffer.address, address, nbytes, kind, self._stream)

    def synchronise(self) -> None:
        """Wait until everything enqueued is done; what went wrong meanwhile is raised here."""
        try:
            self._call(self._cudart.cudaStreamSynchronize, self._stream)
        finally:
            self._held.clear()

    def free(self, buffer: Buffer) -> None:
        """Free a buffer; the stream must be idle."""
        self._buffers.remove(buffer)
        self._free(buffer)

    def close(self) -> None:
        """Free everything, also where some calls fail."""
        with ExitStack() as stack:
            stack.callback(self._call, self._cudart.cudaStreamDestroy, self._stream)
            for buffer in self._buffers:
                stack.callback(self._free, buffer)
            stack.callback(self._buffers.clear)
            stack.callback(self.synchronise)  # callbacks run last in, first out

    def _copy(self, buffer: Buffer, array: Array, target: int, source: int, kind: Any) -> None:
        assert array.flags.c_contiguous
        assert array.nbytes <= buffer.nbytes, "reserve first"
        self._held.append(array)
        self._call(self._cudart.cudaMemcpyAsync, target, source, array.nbytes, kind, self._stream)

    def _free(self, buffer: Buffer) -> None:
        address, buffer.address, buffer.nbytes = buffer.address, 0, 0
        if address:
            self._call(self._cudart.cudaFree, address)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function, check its status, and return its value."""
        try:
            status, *values = function(*arguments)
        except RuntimeError as error:  # cuda-python up to 12.8 without a driver
            raise EngineError(f"CUDA: {error}", "a GPU with its driver", _REMEDY) from None
        if status != self._cudart.cudaError_t.cudaSuccess:
            name = getattr(status, "name", str(status))
            raise EngineError(
                f"CUDA: {function.__name__} failed with {name}", "cudaSuccess", _REMEDIES.get(name, _REMEDY)
            )
        return values[0] if values else None
