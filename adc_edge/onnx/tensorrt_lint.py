"""Which releases of TensorRT a graph fits, found without TensorRT and without a GPU.

``lint`` holds every node against the table of ``tensorrt_support.py``. A clean report means that no rule of the table
is broken, not that an engine will build. A type that shape inference does not find is no fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx.shape_inference
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper
from onnx.helper import get_attribute_value

from adc_edge.arrays import Array
from adc_edge.onnx.tensorrt_support import LINES, MAX_TOPK, SIGNATURES, Fault, fits, opset_window_of, summary

__all__ = ["LINES", "Fault", "fits", "lint", "summary"]

_LETTERS = {0: "", 1: "f", 10: "h", 7: "l", 6: "i", 3: "c", 9: "o", 2: "u"}  # of TensorProto.DataType; "": unknown
_ALL = "".join(_LETTERS.values())
_STANDARD = ("", "ai.onnx")
_ADD = "or add it to adc_edge/onnx/tensorrt_support.py if TensorRT has it"
_Finding = tuple[str, str]  # what, remedy


def lint(model: onnx.ModelProto) -> dict[str, list[Fault]]:
    """Return the faults that keep a model from each release in ``LINES``, in the order of the graph; none: it fits."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    opset = max((o.version for o in model.opset_import if o.domain in _STANDARD), default=0)
    names = _Names(graph)
    faults = [*_tensors(graph, names)]
    for node in graph.node:
        name = node.name or next(filter(None, node.output), "")
        faults += [Fault(name, node.op_type, what, remedy) for what, remedy in _node(node, names)]
    return {line: [*_opset(opset, line), *faults] for line in LINES}


class _Names:
    """Types, initializers and producers of a graph's values, by name."""

    def __init__(self, graph: GraphProto) -> None:
        values = [*graph.value_info, *graph.input, *graph.output]
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        shapes = {value.name: value.type.tensor_type.shape.dim for value in values}
        self.dynamic = {name for name, axes in shapes.items() if not all(axis.HasField("dim_value") for axis in axes)}

    def misfit(self, name: str, letters: str) -> str | None:
        """Return what a value is, if it is of none of these types."""
        dtype = self.types.get(name, 0)
        return None if _LETTERS.get(dtype, "-") in letters else f"{name} is {TensorProto.DataType.Name(dtype)}"

    def value(self, name: str) -> Array:
        """Return an initializer that is in the file; for anything else an empty array."""
        tensor = self.weights.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return np.array([])
        return numpy_helper.to_array(tensor)

    def is_data(self, name: str) -> bool:
        """Return whether a value depends on more than initializers, shapes and integer inputs (read on the host)."""
        pending, seen = [name], {"", *self.weights}
        while pending:
            if (name := pending.pop()) in seen:
                continue
            seen.add(name)
            node = self.makers.get(name)
            if node is None and self.misfit(name, "il"):
                return True
            pending += node.input if node is not None and node.op_type != "Shape" else ()
        return False


def _opset(opset: int, line: str) -> list[Fault]:
    low, high = opset_window_of(line)
    fault = Fault("model", "opset_import", f"opset {opset}", f"export with an opset of {low} to {high}")
    return [] if low <= opset <= high else [fault]


def _tensors(graph: GraphProto, names: _Names) -> Iterator[Fault]:
    """Yield faults of the network's inputs, outputs and initializers."""
    inputs = [value for value in graph.input if value.name not in names.weights]
    for op, values in (("input", inputs), ("output", graph.output), ("initializer", graph.initializer)):
        for name in (value.name for value in values):
            if what := names.misfit(name, _ALL):
                yield Fault(name, op, what, f"use {_choice(_ALL)}")
    for tensor in (each for each in graph.initializer if each.data_location == TensorProto.EXTERNAL):
        what = "its data are in another file and were not loaded"
        yield Fault(tensor.name, "initializer", what, "load the model with its external data")


def _node(node: NodeProto, names: _Names) -> Iterator[_Finding]:
    if node.domain not in _STANDARD:
        yield f"it is of the domain {node.domain}", "use operators of ONNX's own domain"
    elif node.op_type not in SIGNATURES:
        yield "unknown operator", f"write it with known ones, {_ADD}"
    else:
        inputs, outputs, attributes = SIGNATURES[node.op_type]
        yield from _attributes(node, dict(known.partition("=")[::2] for known in attributes))
        yield from _values(node.input, inputs, names)
        yield from _values(node.output, outputs, names)
        yield from _restrictions(node, names)


def _attributes(node: NodeProto, known: Mapping[str, str]) -> Iterator[_Finding]:
    for name, value in ((each.name, get_attribute_value(each)) for each in node.attribute):
        if name not in known:
            yield f"unknown attribute {name}", f"leave it out, {_ADD}"
        elif known[name] and str(value) != known[name]:
            yield f"{name} is {value}", f"TensorRT has {name} {known[name]}"


def _values(given: Sequence[str], known: Sequence[str], names: _Names) -> Iterator[_Finding]:
    """Yield faults of a node's inputs or outputs."""
    for position, name in enumerate(given):
        letters = known[min(position, len(known) - 1)]
        if position >= len(known) and "*" not in letters:
            yield f"unknown input or output {name}", f"leave it out, {_ADD}"
        elif what := names.misfit(name, letters):
            yield what, f"make it {_choice(letters)}"
        elif "!" in letters and name and name not in names.weights:
            yield f"{name} is computed", "make it an initializer"


def _restrictions(node: NodeProto, names: _Names) -> Iterator[_Finding]:
    """Yield faults that only some operators can have."""
    first, second, third = [*node.input, "", ""][:3]
    if node.op_type == "Squeeze" and not second and first in names.dynamic:
        yield f"no axes are given, and {first} has a dynamic shape", "give the axes"
    if node.op_type == "TopK" and names.is_data(second):
        yield f"K is computed from data ({second})", "make K a constant, an input, or the length of an axis"
    if node.op_type == "TopK" and (names.value(second) > MAX_TOPK).any():
        yield f"K is {names.value(second).max()}", f"choose at most {MAX_TOPK}"
    if "quantize" in node.op_type.lower() and not (names.value(second) > 0).all():
        yield "a scale is not positive", "calibrate again"
    if "quantize" in node.op_type.lower() and names.value(third).any():
        yield "zero point is not 0", "quantise symmetrically: INT8, zero point 0"


def _choice(letters: str) -> str:
    return " or ".join(TensorProto.DataType.Name(dtype) for dtype, each in _LETTERS.items() if each and each in letters)
