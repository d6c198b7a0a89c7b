"""A fake of the CUDA runtime as cuda-python shows it: device memory with bounds, a stream that is lazy on purpose.

Nothing happens before the stream is synchronised. So a host array that is read, written or dropped too early, or a
copy in the wrong order, gives wrong results here, as it may on a GPU. What breaks CUDA's rules raises ``Misuse`` or,
where it comes from a destructor, is kept in ``misuses``.
"""

from __future__ import annotations

import ctypes
import enum
import os
from collections.abc import Callable
from typing import Any

import numpy as np

_FIRST_ADDRESS = 0x7000_0000_0000
_GUARD_BYTES = 4096  # between two allocations: an address a little too far belongs to none
_ALIGNMENT = 256
_UNREAD = 0xCD  # what a host array holds until its copy has really been made


class Misuse(AssertionError):
    """A use that CUDA or TensorRT forbids; on a GPU it may crash, or silently compute something else."""


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorIllegalAddress = 700


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaDeviceProp:
    def __init__(self, name: str, capability: str) -> None:
        self.name = name.encode()
        self.major, self.minor = map(int, capability.split("."))


class Gpu:
    """One device: its memory, its stream's queue, and what goes wrong on it."""

    def __init__(self, name: str = "Orin", capability: str = "8.7") -> None:
        self.name, self.capability = name, capability
        self.memory: dict[int, bytearray] = {}  # by address
        self.others: dict[int, int] = {}  # memory that another library has allocated on the device: address and bytes
        self.streams: set[int] = set()
        self.queue: list[Callable[[], None]] = []
        self.failing: dict[str, cudaError_t | Exception] = {}  # what a function returns, or raises, instead of working
        self.misuses: list[str] = []
        self.peak_allocations = 0
        self._next = _FIRST_ADDRESS

    def allocate(self, nbytes: int) -> int:
        address = self._next
        self.memory[address] = bytearray(os.urandom(nbytes))  # as it comes: never zeros
        self._next += -(-nbytes // _ALIGNMENT) * _ALIGNMENT + _GUARD_BYTES
        self.peak_allocations = max(self.peak_allocations, len(self.memory))
        return address

    def view(self, address: int, nbytes: int) -> memoryview:
        """Device memory, if it is allocated and large enough."""
        for start, content in self.memory.items():
            if start <= address < start + len(content):
                if address + nbytes > start + len(content):
                    raise Misuse(f"{nbytes} bytes of {start + len(content) - address} allocated")
                return memoryview(content)[address - start : address - start + nbytes]
        raise Misuse(f"no device memory at {address:#x}: freed, or never allocated")

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        if int(stream) not in self.streams:
            raise Misuse(f"no stream {stream}")
        self.queue.append(work)

    def drain(self) -> None:
        while self.queue:
            self.queue.pop(0)()


class Cudart:
    """The module ``cuda.bindings.runtime``. Every function returns its status first."""

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaDeviceProp = cudaDeviceProp
    cudaStreamNonBlocking = 1

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def cudaGetDevice(self) -> tuple[Any, ...]:
        return self._give("cudaGetDevice", lambda: 0)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        gpu = self._gpu
        return self._give("cudaGetDeviceProperties", lambda: cudaDeviceProp(gpu.name, gpu.capability))

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        def make() -> int:
            handle = 0x5000 + len(self._gpu.streams)
            self._gpu.streams.add(handle)
            return handle

        assert flags == self.cudaStreamNonBlocking
        return self._give("cudaStreamCreateWithFlags", make)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        return self._give("cudaStreamDestroy", lambda: self._gpu.streams.remove(stream))

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        if stream not in self._gpu.streams:
            raise Misuse(f"no stream {stream}")
        return self._give("cudaStreamSynchronize", self._gpu.drain)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._give("cudaMalloc", lambda: self._gpu.allocate(size))

    def cudaFree(self, devPtr: int) -> tuple[Any, ...]:
        def free() -> None:
            if self._gpu.queue:
                raise Misuse("memory freed while the stream is at work")
            if self._gpu.memory.pop(devPtr, None) is None:
                raise Misuse(f"{devPtr:#x} freed twice, or never allocated")

        return self._give("cudaFree", free)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: int, stream: int) -> tuple[Any, ...]:
        copies = {
            cudaMemcpyKind.cudaMemcpyHostToDevice: self._upload,
            cudaMemcpyKind.cudaMemcpyDeviceToHost: self._download,
            cudaMemcpyKind.cudaMemcpyDeviceToDevice: self._duplicate,
        }
        work = copies[cudaMemcpyKind(kind)](dst, src, count)
        return self._give("cudaMemcpyAsync", lambda: self._gpu.enqueue(stream, work))

    def _upload(self, target: int, source: int, count: int) -> Callable[[], None]:
        self._gpu.view(target, count)
        expected = ctypes.string_at(source, count)

        def work() -> None:
            if _host(source, count) != expected:
                raise Misuse("a host array was changed or dropped while it was copied to the device")
            self._gpu.view(target, count)[:] = expected

        return work

    def _duplicate(self, target: int, source: int, count: int) -> Callable[[], None]:
        self._gpu.view(target, count)
        if count > self._gpu.others.get(source, 0):
            raise Misuse(f"{count} bytes at {source:#x}, which is no memory of the device")
        expected = ctypes.string_at(source, count)

        def work() -> None:
            if _host(source, count) != expected:
                raise Misuse("memory was changed or freed while it was copied on the device")
            self._gpu.view(target, count)[:] = expected

        return work

    def _download(self, target: int, source: int, count: int) -> Callable[[], None]:
        self._gpu.view(source, count)
        unread = bytes([_UNREAD]) * count
        ctypes.memmove(target, unread, count)

        def work() -> None:
            if _host(target, count) != unread:
                raise Misuse("a host array was used or dropped before it had been copied from the device")
            ctypes.memmove(target, bytes(self._gpu.view(source, count)), count)

        return work

    def _give(self, name: str, work: Callable[[], Any]) -> tuple[Any, ...]:
        if name in self._gpu.failing:
            self._gpu.queue.clear()  # what was under way is lost
            failure = self._gpu.failing[name]
            if isinstance(failure, Exception):
                raise failure
            return (failure, None)
        result = work()
        return (cudaError_t.cudaSuccess,) if result is None else (cudaError_t.cudaSuccess, result)


def _host(address: int, count: int) -> bytes:
    """Host memory, read so that an address which is no longer mapped is an error and no crash."""
    handle = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        return os.pread(handle, count, address)
    except OSError:
        return b""
    finally:
        os.close(handle)


def read_array(gpu: Gpu, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """An array that lies on the device."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return np.frombuffer(bytes(gpu.view(address, nbytes)), dtype).reshape(shape)
