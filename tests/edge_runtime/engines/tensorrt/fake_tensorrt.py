"""A fake of the parts of TensorRT that edge_runtime uses, for machines without a GPU.

It enforces the order of calls and what TensorRT's documentation demands of them, and really computes: an engine's bytes
are the ONNX file and the options, which ONNX Runtime runs on the CPU, on "device memory" (fake_cuda.py). ``Faults``
switches on what TensorRT is known to do wrong. test_tensorrt_contract.py holds every name and parameter here to the
real bindings.

``with installed(Machine()) as machine:`` puts it where ``import tensorrt`` finds it.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
import sys
import types
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime as ort

from tests.edge_runtime.engines.tensorrt.fake_cuda import Cudart, Gpu, Misuse, read_array

Shape = tuple[int, ...]
_MAGIC = b"fake plan "


@dataclass
class Faults:
    """Faults to simulate; names are those of weights."""

    parse: list[tuple[str, str, str]] = field(default_factory=list)  # operator, node, description
    build: str = ""  # an error: the builder returns None
    unmarked: tuple[str, ...] = ()  # the parser has not kept their names
    unlisted: tuple[str, ...] = ()  # dropped: computed as zero, and not offered by the refitter (TensorRT 11.3)
    stuck: tuple[str, ...] = ()  # a refit says that it went well and leaves them as they were
    wanted: tuple[str, ...] = ()  # weights without a name of ours that a refit wants too
    fixed: bool = False  # the engine is not refittable at all
    wrong: float = 0.0  # added to the activations
    no_context: bool = False
    runs_fail: bool = False


class Machine:
    """A board: GPU, TensorRT's version, faults, and what has happened."""

    def __init__(self, version: str = "10.3.0", gpu: Gpu | None = None) -> None:
        self.version, self.gpu, self.faults = version, gpu or Gpu(), Faults()
        self.builds: list[dict[str, Any]] = []  # options of every engine that was built
        self.timed = 0  # kernels that had to be timed, for want of a timing cache
        self.runs = self.refits = 0


_now = Machine()


@contextmanager
def installed(machine: Machine) -> Iterator[Machine]:
    """Put the machine's TensorRT and CUDA into ``sys.modules``; at the end all device memory must have been freed."""
    global _now
    before, _now = _now, machine
    module = types.ModuleType("tensorrt")
    vars(module).update({name: value for name, value in globals().items() if name in PUBLIC})
    vars(module)["__version__"] = machine.version
    names: Any = {"tensorrt": module, "cuda.bindings.runtime": Cudart(machine.gpu)}
    try:
        with patch.dict(sys.modules, names):
            yield machine
    finally:
        _now = before
    assert machine.gpu.misuses == []


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    TF32 = 0
    REFIT = 1
    REFIT_IDENTICAL = 2
    REFIT_INDIVIDUAL = 3


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class DataType(enum.Enum):
    FLOAT = onnx.TensorProto.FLOAT
    HALF = onnx.TensorProto.FLOAT16
    INT64 = onnx.TensorProto.INT64
    INT8 = onnx.TensorProto.INT8


def nptype(trt_type: DataType) -> Any:
    return onnx.helper.tensor_dtype_to_np_dtype(trt_type.value).type


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3

    INTERNAL_ERROR, ERROR, WARNING, INFO = Severity

    def __init__(self) -> None:
        self._made = True

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class _Object:
    """An object that is made with a logger."""

    def __init__(self, logger: ILogger) -> None:
        if not getattr(logger, "_made", False):
            raise TypeError("__init__() of the logger's base was never called")
        self._logger = logger

    def _error(self, text: str) -> None:
        self._logger.log(ILogger.ERROR, text)


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class ITensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self._value = value

    @property
    def name(self) -> str:
        return str(self._value.name)


class ParserError:
    def __init__(self, index: int, operator: str, name: str, desc: str) -> None:
        self._told = (index, operator, name, desc)

    def node(self) -> int:
        return self._told[0]

    def node_operator(self) -> str:
        return self._told[1]

    def node_name(self) -> str:
        return self._told[2]

    def desc(self) -> str:
        return self._told[3]


class INetworkDefinition:
    def __init__(self) -> None:
        self._model: onnx.ModelProto | None = None
        self._parser: weakref.ref[OnnxParser] | None = None
        self._outputs: list[ITensor] = []
        self._marked: list[str] = []

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_output(self, index: int) -> ITensor:
        return self._outputs[index]

    def unmark_output(self, tensor: ITensor) -> None:
        self._outputs.remove(tensor)

    def mark_weights_refittable(self, name: str) -> bool:
        if self._model is None:
            raise Misuse("weights are marked once there are some: parse first")
        if name in _now.faults.unmarked or name not in {i.name for i in self._model.graph.initializer}:
            return False
        self._marked.append(name)
        return True


class OnnxParser(_Object):
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        super().__init__(logger)
        if network._parser is not None:
            raise Misuse("a second parser for one network")
        self._network, self._errors = network, list[ParserError]()
        network._parser = weakref.ref(self)

    def parse(self, model: bytes, path: str | None = None) -> bool:
        if self._network._model is not None:
            raise Misuse("a second model for one network")
        self._errors = [ParserError(i, *fault) for i, fault in enumerate(_now.faults.parse)]
        if self._errors:
            return False
        parsed = self._network._model = onnx.load_model_from_string(model)
        self._network._outputs = [ITensor(value) for value in parsed.graph.output]
        return True

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[Shape, Shape, Shape]] = {}

    def set_shape(self, input: str, min: Shape, opt: Shape, max: Shape) -> None:
        if not len(min) == len(opt) == len(max) or not all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
            raise ValueError(f"{input}: {min} <= {opt} <= {max} does not hold")
        self._shapes[input] = (tuple(min), tuple(opt), tuple(max))


class ITimingCache:
    def __init__(self, known: list[str]) -> None:
        self._known = known

    def serialize(self) -> IHostMemory:
        return IHostMemory(json.dumps([_now.gpu.name, self._known]).encode())


class IBuilderConfig:
    def __init__(self) -> None:
        self._flags = {BuilderFlag.TF32}  # on by default
        self._profiles: list[IOptimizationProfile] = []
        self._timing: weakref.ref[ITimingCache] | None = None
        self._pools: dict[MemoryPoolType, int] = {}

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        if not serialized_timing_cache:
            return ITimingCache([])
        gpu, known = json.loads(serialized_timing_cache)
        cache = ITimingCache(known)
        cache._gpu = gpu  # type: ignore[attr-defined]
        return cache

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if not ignore_mismatch and getattr(cache, "_gpu", _now.gpu.name) != _now.gpu.name:
            return False
        self._timing = weakref.ref(cache)
        return True


class Builder(_Object):
    def create_network(self, flags: int = 0) -> INetworkDefinition:
        if not flags & 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED) and _now.version < "11":
            raise Misuse("a network that is not strongly typed")
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        model = network._model
        if model is None:
            raise Misuse("a network without a model: parse first")
        if network._parser is None or network._parser() is None:
            raise Misuse("the parser is gone, and with it the weights that the network points into")
        if config._timing is not None and config._timing() is None:
            raise Misuse("the timing cache is gone before the build")
        refits = config._flags & {BuilderFlag.REFIT, BuilderFlag.REFIT_IDENTICAL, BuilderFlag.REFIT_INDIVIDUAL}
        if len(refits) > 1 or BuilderFlag.REFIT_IDENTICAL in refits:
            raise Misuse(f"{refits} cannot be: weights will differ")
        if _now.faults.build:
            self._error(_now.faults.build)
            return None
        weights = {i.name for i in model.graph.initializer}
        inputs = {v.name: v for v in model.graph.input if v.name not in weights}
        profile = _checked_profile(inputs, config)
        everything = sorted(name for name in weights if not _integer(model, name))
        options = {
            "version": _now.version,
            "gpu": [_now.gpu.name, _now.gpu.capability],
            "inputs": list(inputs),
            "outputs": [network.get_output(number).name for number in range(network.num_outputs)],
            "profile": profile,
            "tf32": BuilderFlag.TF32 in config._flags,
            "refit": everything if BuilderFlag.REFIT in refits else network._marked if refits else [],
            "workspace": config._pools.get(MemoryPoolType.WORKSPACE),
        }
        self._time(model, config)
        _now.builds.append(options)
        return IHostMemory(_MAGIC + json.dumps(options).encode() + b"\n" + model.SerializeToString())

    def _time(self, model: onnx.ModelProto, config: IBuilderConfig) -> None:
        cache = config._timing() if config._timing is not None else None
        digest = hashlib.sha256(model.SerializeToString()).hexdigest()
        if cache is None or digest not in cache._known:
            _now.timed += 1
        if cache is not None:
            cache._known = [*cache._known, digest]


def _integer(model: onnx.ModelProto, name: str) -> bool:
    return any(i.name == name and i.data_type == onnx.TensorProto.INT64 for i in model.graph.initializer)


def _checked_profile(inputs: dict[str, onnx.ValueInfoProto], config: IBuilderConfig) -> dict[str, Any]:
    """The one profile, in which every dynamic input has its shapes."""
    if len(config._profiles) != 1:
        raise Misuse(f"{len(config._profiles)} profiles before the build, expected one")
    shapes = config._profiles[0]._shapes
    if not {*shapes} <= {*inputs}:
        raise Misuse(f"shapes for {sorted({*shapes} - {*inputs})}, which are no inputs")
    for name, value in inputs.items():
        real = [d.dim_value or -1 for d in value.type.tensor_type.shape.dim]
        if -1 not in real:
            continue
        if name not in shapes:
            raise Misuse(f"no shapes for the dynamic input {name}")
        for shape in shapes[name]:
            if len(shape) != len(real) or any(r not in (-1, s) for r, s in zip(real, shape, strict=True)):
                raise Misuse(f"{name} is {real}, the profile says {shape}")
    return dict(shapes)


class Runtime(_Object):
    def __init__(self, logger: ILogger) -> None:
        super().__init__(logger)
        self._engines: weakref.WeakSet[ICudaEngine] = weakref.WeakSet()
        self._gpu = _now.gpu

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if not serialized_engine.startswith(_MAGIC):
            self._error("magicTag")
            return None
        options, _, model = serialized_engine[len(_MAGIC) :].partition(b"\n")
        found = json.loads(options)
        if [found["version"], found["gpu"]] != [_now.version, [_now.gpu.name, _now.gpu.capability]]:
            self._error("The engine plan file is not compatible with this version of TensorRT or this GPU")
            return None
        engine = ICudaEngine(found, onnx.load_model_from_string(model), self._logger)
        self._engines.add(engine)
        return engine

    def __del__(self) -> None:
        if len(getattr(self, "_engines", ())):
            self._gpu.misuses.append("a runtime was destroyed before its engine")


class ICudaEngine:
    def __init__(self, options: dict[str, Any], model: onnx.ModelProto, logger: ILogger) -> None:
        self._options, self._gpu, self._faults, self._logger = options, _now.gpu, _now.faults, logger
        values = {v.name: v for v in [*model.graph.input, *model.graph.output]}
        self._io = {name: values[name] for name in [*options["inputs"], *options["outputs"]]}
        self._weights = {i.name: i for i in model.graph.initializer}
        self._fed: dict[str, Any] = {}  # what a refit has brought
        self._users: weakref.WeakSet[Any] = weakref.WeakSet()
        for name in self._faults.unlisted if self.refittable else ():
            self._fed[name] = np.zeros_like(onnx.numpy_helper.to_array(self._weights[name]))
        settings = ort.SessionOptions()
        settings.log_severity_level, settings.intra_op_num_threads = 3, 1
        self._session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])

    @property
    def num_io_tensors(self) -> int:
        return len(self._io)

    @property
    def refittable(self) -> bool:
        return bool(self._options["refit"]) and not self._faults.fixed

    def get_tensor_name(self, index: int) -> str:
        return str([*self._io][index])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._options["inputs"] else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self._io[name].type.tensor_type.elem_type)

    def get_tensor_shape(self, name: str) -> Shape:
        return tuple(d.dim_value or -1 for d in self._io[name].type.tensor_type.shape.dim)

    def create_execution_context(self) -> IExecutionContext | None:
        if self._faults.no_context:
            self._logger.log(ILogger.ERROR, "out of memory")
            return None
        context = IExecutionContext(self)
        self._users.add(context)
        return context

    def __del__(self) -> None:
        if len(getattr(self, "_users", ())):
            self._gpu.misuses.append("an engine was destroyed before its context or refitter")


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._owner = weakref.ref(engine)
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}

    @property
    def _engine(self) -> ICudaEngine:
        engine = self._owner()
        if engine is None:
            raise Misuse("the engine is gone")
        return engine

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        engine = self._engine
        if engine.get_tensor_mode(name) != TensorIOMode.INPUT:
            raise Misuse(f"{name} is no input")
        smallest, _, largest = engine._options["profile"][name]
        if len(shape) != len(largest) or not all(a <= s <= b for a, s, b in zip(smallest, shape, largest, strict=True)):
            engine._logger.log(ILogger.ERROR, f"{name} {shape} is not within the profile {smallest} to {largest}")
            return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> Shape:
        """Dimensions are a name, a name and a number, or a number."""
        known: dict[str, int] = {}
        for input_name, shape in self._shapes.items():
            dims = self._engine._io[input_name].type.tensor_type.shape.dim
            known |= {d.dim_param: length for d, length in zip(dims, shape, strict=True) if d.dim_param}
        lengths = []
        for dim in self._engine._io[name].type.tensor_type.shape.dim:
            base, _, more = dim.dim_param.partition(" + ")
            assert re.fullmatch(r"[BTS]?", base), f"the fake cannot work out {dim.dim_param}"
            length = dim.dim_value if not base else known.get(base, -1)
            lengths.append(length + int(more) if more and length >= 0 else length)
        return tuple(lengths)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine._io:
            raise Misuse(f"{name} is neither input nor output")
        if memory % 256:
            raise Misuse("device memory must be aligned")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine = self._engine
        if engine._faults.runs_fail:
            engine._logger.log(ILogger.ERROR, "Cuda Runtime (an illegal memory access was encountered)")
            return False
        shapes = {
            name: self.get_tensor_shape(name) if name not in self._shapes else self._shapes[name] for name in engine._io
        }
        for name, shape in shapes.items():
            if min(shape, default=1) < 0:
                raise Misuse(f"the shape of {name} is not set")
            if name not in self._addresses:
                raise Misuse(f"the address of {name} is not set")
            dtype = np.dtype(nptype(engine.get_tensor_dtype(name)))
            engine._gpu.view(self._addresses[name], int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        addresses = dict(self._addresses)
        engine._gpu.enqueue(stream_handle, lambda: self._run(shapes, addresses))
        return True

    def _run(self, shapes: dict[str, Shape], addresses: dict[str, int]) -> None:
        engine, outputs = self._engine, self._engine._options["outputs"]
        feeds = {
            name: read_array(engine._gpu, addresses[name], shapes[name], nptype(engine.get_tensor_dtype(name)))
            for name in engine._options["inputs"]
        }
        _now.runs += 1
        for name, value in zip(outputs, engine._session.run(outputs, feeds | engine._fed), strict=True):
            assert value.shape == shapes[name], f"{name}: {value.shape}, announced as {shapes[name]}"
            if name == "activations":
                value = value + np.float32(engine._faults.wrong + 0.1 * engine._options["tf32"])
            engine._gpu.view(addresses[name], value.nbytes)[:] = value.tobytes()


class Weights:
    def __init__(self, type: DataType = DataType.FLOAT, ptr: int = 0, count: int = 0) -> None:
        self._type, self._ptr, self._count = type, ptr, count

    @property
    def dtype(self) -> DataType:
        return self._type

    @property
    def size(self) -> int:
        return self._count


class Refitter(_Object):
    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        super().__init__(logger)
        if not engine.refittable:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._owner = weakref.ref(engine)
        self._set: dict[str, Weights] = {}
        engine._users.add(self)

    @property
    def _engine(self) -> ICudaEngine:
        engine = self._owner()
        if engine is None:
            raise Misuse("the engine is gone")
        return engine

    def get_all_weights(self) -> list[str]:
        engine = self._engine
        return [n for n in [*engine._options["refit"], *engine._faults.wanted] if n not in engine._faults.unlisted]

    def get_weights_prototype(self, weights_name: str) -> Weights:
        if weights_name not in self.get_all_weights():
            return Weights(DataType.FLOAT, 0, -1)
        initializer = self._engine._weights[weights_name]
        return Weights(DataType(initializer.data_type), 0, int(np.prod(initializer.dims, dtype=np.int64)))

    def set_named_weights(self, name: str, weights: Weights, location: TensorLocation = TensorLocation.HOST) -> bool:
        prototype = self.get_weights_prototype(name)
        if (prototype.dtype, prototype.size) != (weights.dtype, weights.size):
            return False
        if location == TensorLocation.DEVICE:
            self._engine._gpu.view(weights._ptr, weights.size * np.dtype(nptype(weights.dtype)).itemsize)
        else:
            raise Misuse("host weights: the fake knows device weights only")
        self._set[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        return [name for name in self.get_all_weights() if name not in self._set] if self._set else []

    def refit_cuda_engine_async(self, stream_handle: int) -> bool:
        if not self._set or self.get_missing_weights():
            self._error("missing weights")
            return False
        engine = self._engine
        engine._gpu.enqueue(stream_handle, lambda: self._refit(engine))
        return True

    def _refit(self, engine: ICudaEngine) -> None:
        _now.refits += 1
        for name, weights in self._set.items():
            if name not in engine._faults.stuck:
                shape = tuple(engine._weights[name].dims)
                engine._fed[name] = read_array(engine._gpu, weights._ptr, shape, nptype(weights.dtype))


PUBLIC = {
    name
    for name, value in globals().items()
    if getattr(value, "__module__", "") == __name__
    and not name.startswith("_")
    and name not in {"Faults", "Machine", "installed"}
}
