"""Which TensorRT a graph fits, told without TensorRT and without a GPU.

``lint`` holds every node of an ONNX graph, those of branches and loops included, against the tables of
``tensorrt_support.py`` (which says where they come from): opset, domain, operator, types, and the restrictions that
can be seen in a file. A clean report means that no rule of the tables is broken, not that an engine will build. A type
that shape inference does not know is no fault.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx.inliner
import onnx.shape_inference
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, TypeProto, numpy_helper
from onnx.helper import get_attribute_value, make_tensor_type_proto

from adc_edge.onnx import tensorrt_support as tables
from adc_edge.onnx.tensorrt_support import LINES, Fault, fits, opset_window, summary

__all__ = ["LINES", "Fault", "fits", "lint", "opset_window", "summary"]

# TensorProto.DataType to the tables' letters; by number, since older onnx has no name for FP4.
_LETTERS = {1: "f", 10: "h", 16: "b", 17: "e", 23: "x", 7: "l", 6: "i", 3: "c", 22: "n", 9: "o", 2: "u"}
_STANDARD = ("", "ai.onnx")
_SYMMETRIC = "quantise symmetrically: INT8, zero point 0"
_MASK = "keep the size: Where, or a product with a mask"
_REMEDIES = {"Compress": _MASK, "NonZero": _MASK, "Unique": "sort with TopK, or count with Equal and ReduceSum"}
_Finding = tuple[str, str]  # what, remedy


@dataclass(frozen=True)
class _Scope:
    """What the names of a graph stand for; those of the graphs around it are seen through it."""

    opset: int
    types: ChainMap[str, TypeProto.Tensor]
    weights: ChainMap[str, TensorProto]
    makers: ChainMap[str, NodeProto]  # of a value: the node that computes it

    def inner(self, graph: GraphProto) -> _Scope:
        """The scope of a graph within this one."""
        scope = _Scope(self.opset, self.types.new_child(), self.weights.new_child(), self.makers.new_child())
        for value in (*graph.value_info, *graph.input, *graph.output):
            scope.types[value.name] = value.type.tensor_type
        for node in graph.node:
            scope.makers.update(dict.fromkeys(node.output, node))
            scope.weights.update((node.output[0], tensor) for tensor in _constant(node))
        scope.weights.update({tensor.name: tensor for tensor in graph.initializer})
        for name, tensor in scope.weights.maps[0].items():
            scope.types[name] = make_tensor_type_proto(tensor.data_type, list(tensor.dims)).tensor_type
        return scope

    def dtype(self, name: str) -> int:
        """Its ``TensorProto.DataType``; 0 (UNDEFINED) where it is not known."""
        return self.types[name].elem_type if name in self.types else TensorProto.UNDEFINED

    def shape(self, name: str) -> list[int | None] | None:
        """The length of each axis (None: dynamic), where it is known how many there are."""
        if name not in self.types or not self.types[name].HasField("shape"):
            return None
        return [d.dim_value if d.HasField("dim_value") else None for d in self.types[name].shape.dim]

    def value(self, name: str) -> npt.NDArray[Any] | None:
        """What it is, if it is a constant of numbers that are in the file."""
        tensor = self.weights.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL or tensor.data_type == TensorProto.STRING:
            return None
        return numpy_helper.to_array(tensor)

    def is_known(self, name: str, at_run_time: bool = False) -> bool:
        """Whether it is computed from constants and static shapes alone; at run time: from any shapes, and integers."""
        pending, seen = [name], {""}
        while pending:
            name = pending.pop()
            if name in seen or name in self.weights:
                continue
            seen.add(name)
            node = self.makers.get(name)
            if node is not None and node.op_type in ("Shape", "Size"):
                if not at_run_time and None in (self.shape(node.input[0]) or [None]):
                    return False
            elif node is not None and node.input and not any(_subgraphs(node)):
                pending += node.input
            elif node is not None or not at_run_time or self.dtype(name) not in (TensorProto.INT32, TensorProto.INT64):
                return False  # at run time, TensorRT reads integer inputs of the network on the host if it must
        return True


def lint(model: onnx.ModelProto, lines: Sequence[str] = LINES) -> dict[str, list[Fault]]:
    """What keeps a model from each line of TensorRT.

    Args:
        model: with its weights; it is not changed. Its local functions are looked into.
        lines: some of ``LINES``.

    Returns:
        The faults of each line, in the order of the graph; none: it fits.

    Raises:
        SettingError: a line that is not known.
    """
    tables.check_lines(lines)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    opset = max((o.version for o in model.opset_import if o.domain in _STANDARD), default=0)
    nodes = list(_nodes(graph, _Scope(opset, ChainMap(), ChainMap(), ChainMap())))
    everywhere = [*_ends(graph), *_initializers(graph)]
    return {
        line: [*_opset(opset, line), *everywhere, *(f for node, scope in nodes for f in _node(node, scope, line))]
        for line in lines
    }


def _nodes(graph: GraphProto, outer: _Scope) -> Iterator[tuple[NodeProto, _Scope]]:
    scope = outer.inner(graph)
    for node in graph.node:
        yield node, scope
        for inner in _subgraphs(node):
            yield from _nodes(inner, scope)


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    yield from (a.g for a in node.attribute if a.type == AttributeProto.GRAPH)


def _constant(node: NodeProto) -> Iterator[TensorProto]:
    """The tensor of a Constant node; numbers become one."""
    for attribute in node.attribute if node.op_type == "Constant" else ():
        value = get_attribute_value(attribute)
        if attribute.name == "value":
            yield value
        elif attribute.name.startswith(("value_int", "value_float")):
            yield numpy_helper.from_array(np.array(value, np.int64 if "int" in attribute.name else np.float32))


def _is_one_of(dtype: int, letters: str) -> bool:
    """Also where it is not known."""
    return dtype == TensorProto.UNDEFINED or _LETTERS.get(dtype, "-") in letters


def _name(dtype: int) -> str:
    return str(TensorProto.DataType.Name(dtype))


def _opset(opset: int, line: str) -> Iterator[Fault]:
    low, high = opset_window(line)
    if not low <= opset <= high:
        yield Fault("model", "opset_import", f"opset {opset}", f"export with an opset of {low} to {high}")


def _ends(graph: GraphProto) -> Iterator[Fault]:
    """Inputs and outputs of the network, the only place for UINT8."""
    weights = {tensor.name for tensor in graph.initializer}
    for op, values in (("input", graph.input), ("output", graph.output)):
        for value in (v for v in values if v.name not in weights):
            kind, dtype = value.type.WhichOneof("value"), value.type.tensor_type.elem_type
            if kind not in (None, "tensor_type"):
                yield Fault(value.name, op, f"it is no tensor ({kind})", "use tensors only")
            elif not _is_one_of(dtype, tables.NATIVE + "u"):
                yield Fault(value.name, op, f"it is {_name(dtype)}", "use FP32, FP16, INT64, INT32 or BOOL")


def _initializers(graph: GraphProto) -> Iterator[Fault]:
    for tensor in graph.initializer:
        if not _is_one_of(tensor.data_type, tables.NATIVE + "u"):  # UINT8: left to the operator that takes it
            remedy = "store it as FP32, FP16, INT64 or INT32"
            yield Fault(tensor.name, "initializer", f"it is {_name(tensor.data_type)}", remedy)
        if tensor.data_location == TensorProto.EXTERNAL:
            what = "its data are in another file and were not loaded"
            yield Fault(tensor.name, "initializer", what, "load the model with its external data")
    for inner in (inner for node in graph.node for inner in _subgraphs(node)):
        yield from _initializers(inner)


def _node(node: NodeProto, scope: _Scope, line: str) -> Iterator[Fault]:
    name = node.name or next(filter(None, node.output), "")
    for what, remedy in _findings(node, scope, line):
        yield Fault(name, node.op_type, what, remedy)


def _findings(node: NodeProto, scope: _Scope, line: str) -> Iterator[_Finding]:
    op = node.op_type
    if node.domain not in (*_STANDARD, tables.OWN_DOMAIN):
        yield f"it is of the domain {node.domain}", "use operators of ONNX's own domain"
    elif tables.is_own(op, line):
        return
    elif node.domain == tables.OWN_DOMAIN or tables.types_of(op, line) is None:
        first = tables.first_release(op)
        remedy = _REMEDIES.get(op, "write it with operators that TensorRT has")
        yield "not supported", f"TensorRT {first} brought it" if first else remedy
    elif op in tables.DATA_DEPENDENT:
        yield "the size of its output depends on data", _REMEDIES.get(op, "do it outside of the graph")
    else:
        for rule in (_limits, _constants, _SPECIAL.get(op, _types)):
            yield from rule(node, scope, line)


def _types(node: NodeProto, scope: _Scope, line: str) -> Iterator[_Finding]:
    allowed = tables.types_of(node.op_type, line) or ""
    wrong = {
        name: f"{name} is {_name(scope.dtype(name))}"
        for name, subject in _values(node, scope.opset)
        if not _is_one_of(scope.dtype(name), allowed if subject else tables.NATIVE)
    }
    if wrong:
        choice = ", ".join(_name(dtype) for dtype, letter in _LETTERS.items() if letter in allowed)
        yield ", ".join(wrong.values()), f"cast to one of {choice}"


def _values(node: NodeProto, opset: int) -> Iterator[tuple[str, bool]]:
    """Inputs and outputs, and whether the table's types speak of them."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:  # operators of old that ONNX has dropped and TensorRT has not
        yield from ((name, True) for name in (*node.input, *node.output))
        return
    subjects = tables.SUBJECTS.get(node.op_type) or ((*schema.inputs, *schema.outputs)[0].type_str,)
    for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for index, name in enumerate(names if formals else ()):
            yield name, formals[min(index, len(formals) - 1)].type_str in subjects


def _limits(node: NodeProto, scope: _Scope, line: str) -> Iterator[_Finding]:
    attributes = {a.name: get_attribute_value(a) for a in node.attribute}
    texts = {name: value.decode() for name, value in attributes.items() if isinstance(value, bytes)}
    yield from tables.wrong_attributes(node.op_type, attributes | texts, line)
    shape = scope.shape(node.input[0]) if node.input else None
    rank = None if shape is None else len(shape)
    yield from tables.wrong_sizes(node.op_type, node.input, node.output, rank, line)


def _constants(node: NodeProto, scope: _Scope, line: str) -> Iterator[_Finding]:
    for position, name, folded, free, zero in tables.CONSTANT_INPUTS.get(node.op_type, ()):
        source = node.input[position] if position < len(node.input) else ""
        value = scope.value(source)
        if zero and value is not None and value.astype(np.float32).any():
            yield f"{name} is not 0", f"export or quantise so that {name} is 0"
        may_be_folded = tables.reached(line, folded) and scope.is_known(source)
        if source and source not in scope.weights and not may_be_folded and not tables.reached(line, free):
            yield f"{name} is computed ({source})", f"make {name} an initializer"


def _topk(node: NodeProto, scope: _Scope, line: str) -> Iterator[_Finding]:
    yield from _types(node, scope, line)
    given = next((np.array(a.i) for a in node.attribute if a.name == "k"), None)  # before opset 10
    k = scope.value(node.input[1]) if given is None else given
    if k is not None and (k > tables.MAX_TOPK).any():
        yield f"K is {k.max()}", f"choose at most {tables.MAX_TOPK}"
    elif k is None and not scope.is_known(node.input[1], at_run_time=True):
        yield f"K is computed from data ({node.input[1]})", "make K a constant, an input, or the length of an axis"


def _quantise(node: NodeProto, scope: _Scope, line: str) -> Iterator[_Finding]:
    wide, narrow = node.input[0], node.output[0]
    if node.op_type == "DequantizeLinear":
        wide, narrow = narrow, wide
    for name, op in ((wide, "QuantizeLinear"), (narrow, "DequantizeLinear")):
        if not _is_one_of(scope.dtype(name), tables.types_of(op, line) or ""):
            is_bias = scope.dtype(name) == TensorProto.INT32
            yield f"{name} is {_name(scope.dtype(name))}", "leave biases in float" if is_bias else _SYMMETRIC
    scale = scope.value(node.input[1])
    if scale is not None and not (scale.astype(np.float32) > 0).all():
        yield "a scale is not positive", "calibrate again"
    is_int8 = scope.dtype(narrow) == TensorProto.INT8  # FP4 has scales that are computed
    if is_int8 and not scope.is_known(node.input[1]):
        yield f"its scale is computed ({node.input[1]})", "make the scale an initializer"


def _squeeze(node: NodeProto, scope: _Scope, line: str) -> Iterator[_Finding]:
    yield from _types(node, scope, line)
    shape = scope.shape(node.input[0])
    if shape and None in shape and not any(node.input[1:]) and not node.attribute:
        yield f"no axes are given, and {node.input[0]} has a dynamic shape", "give the axes"


def _if(node: NodeProto, scope: _Scope, line: str) -> Iterator[_Finding]:
    yield from _types(node, scope, line)
    branches = [{output.name for output in branch.output} for branch in _subgraphs(node)]
    both = set.intersection(*branches)
    if both:
        yield f"both branches name an output {', '.join(sorted(both))}", "rename it in one branch"


_SPECIAL: dict[str, Callable[[NodeProto, _Scope, str], Iterator[_Finding]]] = {
    "DequantizeLinear": _quantise,
    "If": _if,
    "QuantizeLinear": _quantise,
    "Squeeze": _squeeze,
    "TopK": _topk,
}
