"""ONNX Runtime sessions."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from adc_edge.onnx.session import cpu_session


def test_8_bit_products_are_exact_also_where_the_fast_ones_of_the_processor_saturate() -> None:
    levels = np.full((64, 2), 127, np.int8)  # two products of 127 * 127, and 64 of them, are beyond 16 bits
    constants = {"s": np.float32(1), "z": np.int8(0), "w": levels}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x8"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["w8"]),
        helper.make_node("MatMul", ["x8", "w8"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", None]) for name in ("x", "y")]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (y,) = cpu_session(model.SerializeToString()).run(["y"], {"x": np.full((3, 64), 127, np.float32)})
    np.testing.assert_array_equal(y, np.full((3, 2), 64 * 127 * 127, np.float32))
