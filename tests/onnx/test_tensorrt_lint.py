"""The linter of operators: clean on the graph that we ship, and every planted fault found, by node and by line."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, numpy_helper

from adc_edge.errors import SettingError
from adc_edge.export.graph import client_graph
from adc_edge.method.split import create_vit, split_vit
from adc_edge.onnx.tensorrt_lint import LINES, Fault, fits, lint, opset_window, summary
from adc_edge.onnx.tensorrt_support import opset_window_of

TINY = {"patch_size": 8, "img_size": 16, "embed_dim": 32, "num_heads": 2, "depth": 3}


@pytest.fixture(scope="module")
def client() -> onnx.ModelProto:
    """What `adc-edge export` writes, of a tiny ViT."""
    return client_graph(split_vit(create_vit("vit_tiny_patch16_224", TINY, 5), 2)[0])


def model(graph: str, opset: int = 20, domains: str = "") -> onnx.ModelProto:
    """A model of a graph in ONNX's own notation: "(inputs) => (outputs) <initializers> { nodes }"."""
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}{domains}]> g {graph}')


def faults(graph: str, opset: int = 20, domains: str = "") -> dict[str, list[str]]:
    """Of each line: "operator node: what"."""
    report = lint(model(graph, opset, domains))
    return {line: [f"{op} {node}: {what}" for node, op, what, _ in found] for line, found in report.items()}


def fitting(graph: str, opset: int = 20, domains: str = "") -> tuple[str, ...]:
    return fits(lint(model(graph, opset, domains)))


def everywhere(*found: str) -> dict[str, list[str]]:
    return {line: list(found) for line in LINES}


def test_the_graph_that_we_export_fits_every_line(client: onnx.ModelProto) -> None:
    before = client.SerializeToString()
    report = lint(client)
    assert report == {line: [] for line in LINES}
    assert summary(report) == "TensorRT 10.3, 10.16, 11.4"
    assert client.SerializeToString() == before


def test_a_fault_in_the_exported_graph_is_found_among_its_nodes(client: onnx.ModelProto) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(client)
    topk = next(node for node in broken.graph.node if node.op_type == "TopK")
    next(a for a in topk.attribute if a.name == "sorted").i = 0
    report = lint(broken)
    assert report == {line: [Fault(topk.name, "TopK", "sorted is 0", "TensorRT has sorted 1")] for line in LINES}
    assert summary(report) == f"TensorRT none; not 10.3, 10.16, 11.4: 1 fault: TopK {topk.name}: sorted is 0"


TOPK = "(float[9000] x, int64[S] slots) => (float[k] v, int64[k] i)"


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ("<int64[1] k = {3840}> {[top] v, i = TopK (x, k)}", []),
        ("<int64[1] k = {4000}> {[top] v, i = TopK (x, k)}", ["K is 4000"]),
        ("<int64[1] k = {5}> {[top] v, i = TopK <sorted = 0> (x, k)}", ["sorted is 0"]),
        ("{k = Constant <value_ints = [4000]> () [top] v, i = TopK (x, k)}", ["K is 4000"]),
        ("{k = Shape (slots) [top] v, i = TopK (x, k)}", []),  # as our own graph has it
        ("{[top] v, i = TopK (x, slots)}", []),  # TensorRT reads it on the host
        ("{m = ReduceMax (x) k = Cast <to = 7> (m) [top] v, i = TopK (x, k)}", ["K is computed from data (k)"]),
    ],
)
def test_topk(nodes: str, found: list[str]) -> None:
    assert faults(f"{TOPK} {nodes}") == everywhere(*(f"TopK top: {what}" for what in found))


Q = "(float[4] x) => (float[4] y) <%s, %s> {[q] q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)}"
Q_OF_INPUTS = "(float[4] x, float s, int8 z) => (int8[4] q) <%s> {[q] q = QuantizeLinear (x, s, z)}"


@pytest.mark.parametrize(
    ("graph", "what"),
    [
        (Q % ("int8 z = {3}", "float s = {0.1}"), "zero point is not 0"),
        (Q % ("uint8 z = {0}", "float s = {0.1}"), "q is UINT8"),
        (Q % ("int16 z = {0}", "float s = {0.1}"), "q is INT16"),
        (Q % ("int8 z = {0}", "float s = {-0.1}"), "a scale is not positive"),
        (Q_OF_INPUTS % "int8 z = {0}", "its scale is computed (s)"),
        (Q_OF_INPUTS % "float s = {0.1}", "zero point is computed (z)"),
        ("(float[4] x, float s) => (uint8[4] q) {[q] q = QuantizeLinear (x, s)}", "q is UINT8"),  # ONNX's default
    ],
)
def test_only_symmetric_int8_with_fixed_scales_is_quantised(graph: str, what: str) -> None:
    assert all(f"QuantizeLinear q: {what}" in found for found in faults(graph).values())


def test_symmetric_quantisation_fits() -> None:
    assert fitting(Q % ("int8 z = {0}", "float s = {0.1}")) == LINES
    channels = "(float[2,3] x) => (float[2,3] y) <int8[2] z = {0, 0}, float[2] s = {0.1, 0.2}>"
    per_channel = "{q = QuantizeLinear <axis = 0> (x, s, z) y = DequantizeLinear <axis = 0> (q, s, z)}"
    assert fitting(f"{channels} {per_channel}") == LINES
    constants = "{z = Constant <value = int8 {0}> () s = Constant <value_float = 0.1> () q = QuantizeLinear (x, s, z)}"
    assert fitting(f"(float[4] x) => (int8[4] q) {constants}") == LINES
    weight = "(float x) => (float y) <%s w = {1}, float s = {0.1}> {[dq] d = DequantizeLinear (w, s) y = Add (x, d)}"
    assert fitting(weight % "int8") == LINES
    assert faults(weight % "int32") == everywhere("DequantizeLinear dq: w is INT32")  # a bias, as some tools have it


def test_operators_that_tensorrt_has_not() -> None:
    unsupported = "(float[4] x, bool[4] c) => (float[n] y) {[a] y = Unique (x) [b] z = Compress (x, c) [d] d = Det (x)}"
    assert faults(unsupported) == everywhere(*(f"{op}: not supported" for op in ("Unique a", "Compress b", "Det d")))
    sized = lint(model("(float[4] x) => (int64[1,n] y) {[n] y = NonZero (x)}"))
    what, remedy = "the size of its output depends on data", "keep the size: Where, or a product with a mask"
    assert sized == {line: [Fault("n", "NonZero", what, remedy)] for line in LINES}


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ("(float[2] x) => (double y) {[c] y = Cast <to = 11> (x)}", ["output y: it is DOUBLE", "Cast c: y is DOUBLE"]),
        (
            "(float[2] x) => (float[2] y) <double[2] w = {1, 2}> {[c] d = Cast <to = 1> (w) y = Add (x, d)}",
            ["initializer w: it is DOUBLE", "Cast c: w is DOUBLE"],
        ),
        ("(string x) => (bool y) {[e] y = Equal (x, x)}", ["input x: it is STRING", "Equal e: x is STRING"]),
        (
            "(seq(float) s) => (int64 n) {[q] n = SequenceLength (s)}",
            ["input s: it is no tensor (sequence_type)", "SequenceLength q: not supported"],
        ),
        ("(bool[2] x) => (bool[2] y) {[r] y = Neg (x)}", ["Neg r: x is BOOL, y is BOOL"]),
        ("(uint8[2] x) => (float[2] y) {[c] y = Cast <to = 1> (x)}", []),  # images as bytes
        ("(uint8[2] x) => (uint8[2] y) {[a] y = Identity (x)}", ["Identity a: x is UINT8, y is UINT8"]),
        ("(int32[2] x) => (int32[2] y) {[m] y = Clip (x)}", []),
        ("(float[4] x, int64[2] i) => (float[2] y) {y = Gather (x, i)}", []),  # types of indices are no matter
        ("(float[4] x) => (bool[4] y) <float t = {0}> {y = Greater (x, t)}", []),
    ],
)
def test_types(graph: str, found: list[str]) -> None:
    assert faults(graph) == everywhere(*found)


def test_each_line_has_its_opsets() -> None:
    graph = "(float[2] x) => (float[2] y) {y = Neg (x)}"
    assert [fitting(graph, opset) for opset in (8, 9, 20, 24, 25)] == [(), LINES, LINES, ("10.16", "11.4"), ()]
    (fault,) = lint(model(graph, 21))["10.3"]
    assert fault == ("model", "opset_import", "opset 21", "export with an opset of 9 to 20")


ATTENTION = "(float[1,2,3,4] q, float[1,2,3,4] k, float[1,2,3,4] v) => (float[1,2,3,4] y)"


def test_attention_came_after_10_3() -> None:
    found = lint(model(f"{ATTENTION} {{[a] y = Attention (q, k, v)}}", 23))
    assert found["10.3"][1:] == [Fault("a", "Attention", "not supported", "TensorRT 10.14 brought it")]
    capped = f"{ATTENTION} {{[a] y = Attention <softcap = 2.0> (q, k, v)}}"
    assert faults(capped, 23)["11.4"] == ["Attention a: softcap is 2.0"]
    heads = "<q_num_heads = 2, kv_num_heads = 2>"
    flat = faults(f"(float[1,2,8] q) => (float[1,2,8] y) {{[a] y = Attention {heads} (q, q, q)}}", 23)
    assert flat["11.4"] == ["Attention a: q has 3 axes"]


def test_operators_and_types_that_came_later() -> None:
    assert fitting("(int64 n) => (float[m] y) {y = HannWindow (n)}") == ("10.16", "11.4")
    assert fitting("(float[2] x) => (float[2] y) {y = Swish (x)}", 24) == ("11.4",)
    assert fitting("(int64 x) => (int64 y) <int64 e = {2}> {y = Pow (x, e)}") == ("10.16", "11.4")
    assert fitting("(float[2] x) => (float[2] y) {z = Gelu (x) y = Mish (z)}") == LINES
    norm = "(float[2,4] x) => (float[2,4] y) <float[4] w = {1, 1, 1, 1}> {%s = LayerNormalization (x, w)}"
    assert fitting(norm % "y") == LINES
    assert faults(norm % "[ln] y, m") == everywhere("LayerNormalization ln: it has m")


@pytest.mark.parametrize(
    ("graph", "lines"),
    [
        ("(float[2,3] x, int64[1] a) => (float[n] y) {y = ReduceSum (x, a)}", ()),
        ("(float[2,3] x) => (float[n] y) <int64[1] a = {1}> {y = ReduceSum (x, a)}", LINES),
        ("(float[2,3] x) => (float[n] y) {a = Constant <value_ints = [1]> () y = ReduceMean (x, a)}", LINES),
        ("(float[2,3] x) => (float[1] y) {y = ReduceMax (x)}", LINES),
        ("(float[1,3] x) => (float[3] y) <int64[1] a = {0}> {b = Neg (a) y = Squeeze (x, b)}", ("10.16", "11.4")),
        ("(float[1,3] x, int64[1] a) => (float[3] y) {y = Squeeze (x, a)}", ()),
        ("(float[3] x) => (float[1,3] y) <int64[1] a = {0}> {b = Neg (a) y = Unsqueeze (x, b)}", LINES),
        ("(float[1] x) => (float[1,1] y) {a = Shape (x) b = Sub (a, a) y = Unsqueeze (x, b)}", LINES),
        ("(float[S] x) => (float[1,S] y) {a = Shape (x) b = Sub (a, a) y = Unsqueeze (x, b)}", ()),
        ("(float[1,3] x) => (float[3] y) {y = Squeeze (x)}", LINES),
        ("(float[1,S] x) => (float[S] y) {y = Squeeze (x)}", ()),
        ("(float[3] x, int64[2] p, int64[1] a) => (float[n] y) {y = Pad (x, p, , a)}", ("10.16", "11.4")),
        ("(float[3] x) => (float[3] y) <float r = {0.5}, bool t = {1}> {y = Dropout (x, r, t)}", ()),
        ("(float[3] x) => (float[3] y) <float r = {0.5}, bool t = {0}> {y = Dropout (x, r, t)}", LINES),
    ],
)
def test_axes_must_be_constant_where_tensorrt_demands_it(graph: str, lines: tuple[str, ...]) -> None:
    assert fitting(graph) == lines


def test_attributes() -> None:
    resize = "(float[1,1,4,4] x) => (float[1,1,8,8] y) <int64[4] s = {1, 1, 8, 8}> {y = Resize <%s> (x, , , s)}"
    assert fitting(resize % 'mode = "linear"') == LINES
    for broken in ('coordinate_transformation_mode = "tf_crop_and_resize"', 'mode = "linear", antialias = 1'):
        assert fitting(resize % broken) == ()
    scatter = "(float[4] x, float[1] u) => (float[4] y) <int64[1,1] i = {2}> {[s] y = ScatterND %s (x, i, u)}"
    assert fitting(scatter % "") == LINES
    assert fitting(scatter % '<reduction = "none">') == ("10.16", "11.4")
    added = faults(scatter % '<reduction = "add">')
    assert (added["10.3"], added["11.4"]) == (["ScatterND s: reduction is given"], ["ScatterND s: reduction is add"])


def test_foreign_domains() -> None:
    graph = "(float[2] x) => (float[2] y) {[g] y = com.microsoft.Gelu (x)}"
    assert faults(graph, domains=', "com.microsoft" : 1') == everywhere("Gelu g: it is of the domain com.microsoft")
    typeless = "(float[2] x) => (float y) {[f] a = com.microsoft.F (x) b = Neg (a) y = Cast <to = 1> (b)}"
    assert faults(typeless, domains=', "com.microsoft" : 1') == everywhere("F f: it is of the domain com.microsoft")
    assert fitting("(float x) => (float y) {y = Neg (x)}", domains=', "com.microsoft" : 1') == LINES  # not used
    own = "(float[2] x) => (float[2] y) <float s = {0.1}> {q = trt.TRT_FP8QuantizeLinear (x, s) y = trt.%s (q, s)}"
    assert faults(own % "TRT_FP8DequantizeLinear", domains=', "trt" : 1') == everywhere()
    assert fitting(own % "TRT_BlockDequantize", domains=', "trt" : 1') == ("10.16", "11.4")


def test_functions_of_the_model_are_looked_into() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20, "own" : 1]>
        g (float[4] x) => (float[4] y) {y = own.twice (x)}
        <domain: "own", opset_import: ["" : 20]> twice (a) => (b) {c = %s (a) b = Add (c, c)}"""
    assert fits(lint(onnx.parser.parse_model(text % "Neg"))) == LINES
    assert [f.op for f in lint(onnx.parser.parse_model(text % "NonZero"))["11.4"]] == ["NonZero"]


BRANCHES = """(bool c, float[4] x) => (float[n] y) {
    y = If (c) <then_branch = a () => (float[n] t) {%s}, else_branch = b () => (float[n] %s) {%s}>
}"""


def test_branches_and_loops_are_walked() -> None:
    assert fitting(BRANCHES % ("t = Neg (x)", "e", "e = Abs (x)")) == LINES
    assert faults(BRANCHES % ("t = Neg (x)", "e", "[u] e = Unique (x)")) == everywhere("Unique u: not supported")
    typed = BRANCHES % ("t = Neg (x)", "e", "[c] d = Cast <to = 11> (x) [a] s = Abs (d) e = Cast <to = 1> (s)")
    assert "Abs a: d is DOUBLE, s is DOUBLE" in faults(typed)["11.4"]
    both = "If y: both branches name an output t"
    assert faults(BRANCHES % ("t = Neg (x)", "t", "t = Abs (x)")) == everywhere(both)
    text = BRANCHES.replace("(float[n] y)", "(float[n] y) <int64[1] k = {4000}>")  # seen from within
    assert faults(text % ("t = Neg (x)", "e", "[top] e, i = TopK (x, k)")) == everywhere("TopK top: K is 4000")
    loop = """(int64 n, bool c, float[4] x) => (float[4] y) {
        y = Loop (n, c, x) <body = b (int64 i, bool go, float[4] a) => (bool on, float[4] z)
            {on = Identity (go) [r] s = ReduceSum (a, i) z = Add (a, s)}>}"""
    assert faults(loop) == everywhere("ReduceSum r: axes is computed (i)")


def test_weights_in_another_file_that_were_not_loaded() -> None:
    broken = model("(float[2] x) => (float[2] y) <float[2] w = {1, 2}> {y = Add (x, w)}")
    weight = broken.graph.initializer[0]
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="w.bin")
    what, remedy = "its data are in another file and were not loaded", "load the model with its external data"
    assert lint(broken) == {line: [Fault("w", "initializer", what, remedy)] for line in LINES}


def test_overridable_weights_are_constants() -> None:
    reduced = model("(float[2,3] x, int64[1] a) => (float[n] y) {y = ReduceSum (x, a)}")
    reduced.graph.initializer.append(numpy_helper.from_array(np.array([1]), "a"))
    assert fits(lint(reduced)) == LINES  # TensorRT's parser takes the initializer, whatever the inputs say


def test_a_summary_names_the_first_fault() -> None:
    late = summary(lint(model(f"{ATTENTION} {{[a] y = Attention (q, k, v)}}", 23)))
    assert late == "TensorRT 10.16, 11.4; not 10.3: 2 faults, first: opset_import model: opset 23"
    window = model("(int64 n) => (float[m] y) {[h] y = HannWindow (n)}")
    assert summary(lint(window)) == "TensorRT 10.16, 11.4; not 10.3: 1 fault: HannWindow h: not supported"
    assert summary(lint(window, ["11.4"])) == "TensorRT 11.4"


def test_any_version_since_10_0_has_a_window() -> None:
    assert {opset_window_of(version) for version in ("10.0.1", "10.3.0", "10.3.0.26", "10.7.0")} == {(9, 20)}
    assert {opset_window_of(version) for version in ("10.16", "10.16.1.11", "11.4.0.106")} == {(9, 24)}
    assert {opset_window_of(version) for version in ("11.5.0", "12.0")} == {(9, 25)}
    for refused in ("8.6.1", "9.3.0", "", "none", "10", "10.x"):
        with pytest.raises(SettingError, match=r"TensorRT 10\.0 or later \(checked for 10\.3, 10\.16, 11\.4\)"):
            opset_window_of(refused)


def test_lines_are_known() -> None:
    assert [opset_window(line) for line in LINES] == [(9, 20), (9, 24), (9, 24)]
    with pytest.raises(SettingError, match=r"TensorRT 10\.4"):
        opset_window("10.4")
    with pytest.raises(SettingError, match=r"TensorRT 7"):
        lint(model("(float[2] x) => (float[2] y) {y = Neg (x)}"), ["10.3", "7"])


def test_a_device_asks_for_its_window_without_onnx() -> None:
    code = (
        "import sys; from adc_edge.onnx import tensorrt_support as s; s.opset_window_of('10.3.0'); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"onnx", "torch", "numpy"} & set(loaded)
