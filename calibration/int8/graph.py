"""client.onnx -> client.int8.onnx: the linears that compute in INT8, and their form in the graph.

Policy. The linears qkv, proj, fc1 and fc2 of every block compute in INT8: symmetric (zero points 0), weights with a
scale per output channel, activations with one per tensor (``ranges.py``). All else stays in FP32, node for node as in
client.onnx: the output of a linear (it is added to the residual stream), LayerNorm, GELU, softmax, the two products of
attention, and ADC with its scores, k-means and means. A few linears stay too (``kept_in_float``).

In the graph, QuantizeLinear and DequantizeLinear of ONNX's own domain stand before each product: ONNX Runtime computes
these in INT8, TensorRT takes them as explicit quantisation. ``onnxruntime.quantization.quantize_static`` finds the same
numbers by minmax (a test compares them) and is not used: its percentile is blind to CLS, its entropy has 128 bins for
128 levels and so no choice, and it keeps every tensor of a run in memory. Constant folding
by ``onnxscript`` gives the nodes and values of ``frozen``, in 1.2 to 3.6 times its time and in other bytes.

Measured on DeiT-T, split 6, and left out: smoothing between LayerNorm and the next linear (SQNR +0.6 dB), biases
corrected for the mean error (0 dB), GELU's output moved to the middle of the levels (-4 dB).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from adc_edge.calibration.int8.ranges import STEPS
from adc_edge.errors import EngineError
from adc_edge.method.spec import TrunkSpec
from adc_edge.onnx.session import cpu_session
from adc_edge.storage.bundle import OUTPUTS

QKV = "blocks.{}.attn.qkv"
QDQ = ("QuantizeLinear", "DequantizeLinear")
_BLOCK = (QKV, "blocks.{}.attn.proj", "blocks.{}.mlp.fc1", "blocks.{}.mlp.fc2")


class Linear(NamedTuple):
    """A product with a constant weight in a graph."""

    name: str  # the parameter's name without ".weight"
    input: str  # tensor [B, n, in]
    weight: str  # constant [in, out]
    output: str  # tensor [B, n, out], before the bias


def kept_in_float(spec: TrunkSpec) -> dict[str, str]:
    """Return the linears that stay in FP32, and the reasons (measured on DeiT-T, split 6; SQNR of the logits)."""
    return {
        "patch_embed.proj": "in INT8 1 dB worse and no faster",
        "blocks.0.mlp.fc2": "in INT8 2 to 4 dB worse, 4 % of the time saved",
        QKV.format(spec.depth - 1): "ADC chooses by it: in INT8 81 % of images keep their cluster, not 88 %",
    }


def linears(model: onnx.ModelProto, spec: TrunkSpec) -> list[Linear]:
    """Return the linears of client.onnx that compute in INT8, in the order of the graph.

    Raises:
        EngineError: they are not those that a trunk of this spec has.
    """
    origin = {i.name: i.name.removesuffix(".weight") for i in model.graph.initializer}  # of each constant
    found = []
    for node in model.graph.node:
        if all(name in origin for name in node.input):
            origin.update(dict.fromkeys(node.output, origin[node.input[0]]))
        elif node.op_type == "MatMul" and node.input[1] in origin:
            found.append(Linear(origin[node.input[1]], node.input[0], node.input[1], node.output[0]))
    kept = kept_in_float(spec)
    chosen = [linear for linear in found if linear.name not in kept]
    expected = {part.format(block) for block in range(spec.depth) for part in _BLOCK} - kept.keys()
    names = [linear.name for linear in chosen]
    if sorted(names) != sorted(expected):
        raise EngineError(
            f"client.onnx has other linears than its trunk: {sorted(set(names) ^ expected)[:4] or 'some twice'}",
            "a graph as this version of adc-edge exports it",
            "export the model again",
        )
    return chosen


def frozen(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with constant weights, transposed and sliced in advance, and the first four outputs alone."""
    fixed = copy.deepcopy(model)
    graph = fixed.graph
    weights = {tensor.name for tensor in graph.initializer}
    _replace(graph.input, [i for i in graph.input if i.name not in weights])
    _replace(graph.output, [o for o in graph.output if o.name in OUTPUTS])
    constants = set(weights)
    folded, kept = [], []
    for node in graph.node:
        if all(name in constants for name in node.input):
            constants.update(node.output)
            folded.append(node)
        else:
            kept.append(node)
    wanted = {name for node in kept for name in node.input}
    graph.initializer.extend(_evaluate(fixed, folded, sorted(wanted & (constants - weights))))
    _replace(graph.node, kept)
    return _tidy(fixed)


def quantise(model: onnx.ModelProto, chosen: Sequence[Linear], scales: Mapping[str, float]) -> onnx.ModelProto:
    """Return a frozen graph with these linears in INT8; ``scales`` are those of their inputs, by name.

    Raises:
        EngineError: a weight or scale that is not finite.
    """
    changed = copy.deepcopy(model)
    graph = changed.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    by_output = {linear.output: linear for linear in chosen}
    nodes: list[NodeProto] = []
    for node in graph.node:
        linear = by_output.get(node.output[0])
        if linear is not None:
            weight = numpy_helper.to_array(weights[linear.weight])
            more, tensors = _around(linear, weight, scales[linear.name])
            nodes += more
            graph.initializer.extend(tensors)
            _replace(node.input, [f"{linear.name}.input", f"{linear.name}.weight"])
        nodes.append(node)
    _replace(graph.node, nodes)
    changed = _tidy(changed)
    onnx.checker.check_model(changed, full_check=True)
    return changed


def quantise_weight(weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return a weight ``[in, out]`` as INT8 in -127..127, and a scale for each output channel ``[out]``."""
    largest = np.abs(weight).max(axis=0)
    scale = np.where(largest > 0, largest / np.float32(STEPS), np.float32(1)).astype(np.float32)
    return np.clip(np.rint(weight / scale), -STEPS, STEPS).astype(np.int8), scale


def zero_points(model: onnx.ModelProto) -> list[npt.NDArray[Any]]:
    """Return the zero points of every QuantizeLinear and DequantizeLinear."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return [values[node.input[2]] for node in model.graph.node if node.op_type in QDQ]


def tapped(model: onnx.ModelProto, names: Iterable[str]) -> bytes:
    """Return the serialised graph with some of its FP32 values as further outputs."""
    open_graph = copy.deepcopy(model)
    have = {output.name for output in model.graph.output}
    new = [name for name in dict.fromkeys(names) if name not in have]
    open_graph.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in new)
    return bytes(open_graph.SerializeToString())


def _around(
    linear: Linear, weight: npt.NDArray[np.float32], scale: float
) -> tuple[list[NodeProto], Iterator[TensorProto]]:
    """Return the nodes before a linear's product that give ``NAME.input`` and ``NAME.weight``, and their constants."""
    if not (np.isfinite(weight).all() and 0 < np.float32(scale) < np.inf):
        raise EngineError(
            f"the scales of {linear.name} are not finite", "finite weights and activations", "export the model again"
        )
    levels, weight_scale = quantise_weight(weight)
    name = linear.name
    constants = {
        f"{name}.input_scale": np.float32(scale),
        f"{name}.input_zero": np.int8(0),
        f"{name}.weight_int8": levels,
        f"{name}.weight_scale": weight_scale,
        f"{name}.weight_zero": np.zeros(len(weight_scale), np.int8),
    }
    of_input, of_weight = list(constants)[:2], list(constants)[2:]
    nodes = [
        _node("QuantizeLinear", [linear.input, *of_input], f"{name}.input_int8"),
        _node("DequantizeLinear", [f"{name}.input_int8", *of_input], f"{name}.input"),
        _node("DequantizeLinear", of_weight, f"{name}.weight", axis=1),
    ]
    return nodes, (numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items())


def _node(op: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs, [output], name=f"{output}/{op}", **attributes)


def _evaluate(model: onnx.ModelProto, nodes: Sequence[NodeProto], names: list[str]) -> Iterator[TensorProto]:
    """Yield the values of nodes with constant inputs, computed by ONNX Runtime."""
    if not names:
        return
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    part.graph.name = "constants"
    part.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    part.graph.initializer.extend(i for i in model.graph.initializer if i.name in used)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    values = cpu_session(part.SerializeToString()).run(names, {})
    yield from (numpy_helper.from_array(value, name) for name, value in zip(names, values, strict=True))


def _tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove constants and descriptions of values that no node uses any more; return the same model."""
    graph = model.graph
    used = {name for node in graph.node for name in (*node.input, *node.output)}
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in used])
    _replace(graph.value_info, [value for value in graph.value_info if value.name in used])
    return model


def _replace(field: Any, values: Sequence[Any]) -> None:
    """Set a repeated field of a protobuf message."""
    kept = [copy.deepcopy(value) for value in values]
    del field[:]
    field.extend(kept)
