"""The linter of operators: clean on the graphs that adc-edge writes, and every planted fault found at its node."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, numpy_helper

from adc_edge.calibration.int8.graph import frozen, linears, quantise
from adc_edge.errors import SettingError
from adc_edge.export.graph import client_graph, without_weights
from adc_edge.method.split import create_vit, split_vit
from adc_edge.onnx.tensorrt_lint import LINES, Fault, fits, lint, summary
from adc_edge.onnx.tensorrt_support import SIGNATURES, opset_window_of

TINY = {"patch_size": 8, "img_size": 16, "embed_dim": 32, "num_heads": 2, "depth": 4}


@pytest.fixture(scope="module")
def written() -> dict[str, onnx.ModelProto]:
    """Every graph that `adc-edge export` and `calibrate` write, of a tiny ViT, and one with QuickGELU."""
    quick, _ = split_vit(create_vit("vit_base_patch16_clip_quickgelu_224", TINY, 5), 1)
    trunk, _ = split_vit(create_vit("vit_tiny_patch16_224", TINY, 5), 3)
    fp32, fp16 = client_graph(trunk), client_graph(trunk, half=True)
    chosen = linears(fp32, trunk.spec)
    int8 = quantise(frozen(fp32), chosen, {each.name: 0.1 for each in chosen})
    return {"fp32": fp32, "fp16": fp16, "bare": without_weights(fp16), "int8": int8, "quick": client_graph(quick)}


def model(graph: str, opset: int = 20, domains: str = "") -> onnx.ModelProto:
    """A model of a graph in ONNX's own notation: "(inputs) => (outputs) <initializers> { nodes }"."""
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}{domains}]> g {graph}')


def faults(graph: str, domains: str = "") -> list[str]:
    """The faults, which all releases share: "operator node: what"."""
    report = lint(model(graph, domains=domains))
    assert len({tuple(found) for found in report.values()}) == 1
    return [f"{op} {node}: {what}" for node, op, what, _ in report["10.3"]]


def fitting(graph: str, opset: int = 20) -> tuple[str, ...]:
    return fits(lint(model(graph, opset)))


@pytest.mark.parametrize("name", ["fp32", "fp16", "bare", "int8", "quick"])
@pytest.mark.slow
def test_every_graph_that_we_write_fits_every_release(name: str, written: dict[str, onnx.ModelProto]) -> None:
    before = written[name].SerializeToString()
    report = lint(written[name])
    assert report == {line: [] for line in LINES}
    assert summary(report) == "TensorRT 10.3, 10.16, 11.4"
    assert written[name].SerializeToString() == before


@pytest.mark.slow
def test_the_table_lists_no_operator_that_we_do_not_write(written: dict[str, onnx.ModelProto]) -> None:
    assert {node.op_type for each in written.values() for node in each.graph.node} == SIGNATURES.keys()


@pytest.mark.slow
def test_a_fault_in_the_exported_graph_is_found_among_its_nodes(written: dict[str, onnx.ModelProto]) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(written["fp32"])
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
        ("{k = Shape (slots) [top] v, i = TopK (x, k)}", []),  # as our own graph has it
        ("{[top] v, i = TopK (x, slots)}", []),  # TensorRT reads it on the host
        (
            "<int64[1] a = {0}> {m = ReduceMax (x, a) k = Cast <to = 7> (m) [top] v, i = TopK (x, k)}",
            ["K is computed from data (k)"],
        ),
    ],
)
def test_topk(nodes: str, found: list[str]) -> None:
    assert faults(f"{TOPK} {nodes}") == [f"TopK top: {what}" for what in found]


Q = "(float[4] x) => (float[4] y) <%s, %s> {[q] q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)}"
Q_OF_INPUTS = "(float[4] x, float s, int8 z) => (int8[4] q) <%s> {[q] q = QuantizeLinear (x, s, z)}"


@pytest.mark.parametrize(
    ("graph", "what"),
    [
        (Q % ("int8 z = {3}", "float s = {0.1}"), "zero point is not 0"),
        (Q % ("uint8 z = {0}", "float s = {0.1}"), "q is UINT8"),
        (Q % ("int16 z = {0}", "float s = {0.1}"), "q is INT16"),
        (Q % ("int8 z = {0}", "float s = {-0.1}"), "a scale is not positive"),
        (Q_OF_INPUTS % "int8 z = {0}", "s is computed"),
        (Q_OF_INPUTS % "float s = {0.1}", "z is computed"),
        ("(float[4] x) => (uint8[4] q) <float s = {0.1}> {[q] q = QuantizeLinear (x, s)}", "q is UINT8"),  # the default
    ],
)
def test_only_symmetric_int8_with_fixed_scales_is_quantised(graph: str, what: str) -> None:
    assert f"QuantizeLinear q: {what}" in faults(graph)


def test_symmetric_quantisation_fits() -> None:
    assert fitting(Q % ("int8 z = {0}", "float s = {0.1}")) == LINES
    channels = "(float[2,3] x) => (float[2,3] y) <int8[2] z = {0, 0}, float[2] s = {0.1, 0.2}>"
    per_channel = "{q = QuantizeLinear <axis = 0> (x, s, z) y = DequantizeLinear <axis = 0> (q, s, z)}"
    assert fitting(f"{channels} {per_channel}") == LINES
    weight = "(float x) => (float y) <%s w = {1}, float s = {0.1}> {[dq] d = DequantizeLinear (w, s) y = Add (x, d)}"
    assert fitting(weight % "int8") == LINES
    assert faults(weight % "int32") == ["DequantizeLinear dq: w is INT32"]  # a bias, as some tools have it


def test_an_unknown_operator_or_attribute_is_refused_with_the_remedy() -> None:
    unknown = "(float[4] x) => (float[n] y) {[a] y = Unique (x) [d] d = Det <note = 1> (x)}"
    assert faults(unknown) == ["Unique a: unknown operator", "Det d: unknown operator"]
    ends = "then_branch = a () => (float t) {}, else_branch = b () => (float t) {}"
    branch = f"(bool c) => (float y) {{[i] y = If (c) <{ends}>}}"
    assert faults(branch) == ["If i: unknown operator"]
    (fault,) = lint(model("(float[4] x) => (float[4] y) {[s] y = Softmax <sharp = 2> (x)}"))["11.4"]
    remedy = "leave it out, or add it to adc_edge/onnx/tensorrt_support.py if TensorRT has it"
    assert fault == ("s", "Softmax", "unknown attribute sharp", remedy)


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ("(float[2] x) => (double y) {[c] y = Cast <to = 11> (x)}", ["output y: y is DOUBLE", "Cast c: y is DOUBLE"]),
        (
            "(float[2] x) => (float[2] y) <double[2] w = {1, 2}> {[c] d = Cast <to = 1> (w) y = Add (x, d)}",
            ["initializer w: w is DOUBLE", "Cast c: w is DOUBLE"],
        ),
        ("(string x) => (bool y) {[e] y = Equal (x, x)}", ["input x: x is STRING", *["Equal e: x is STRING"] * 2]),
        ("(bool[2] x) => (bool[2] y) {[r] y = Abs (x)}", ["Abs r: x is BOOL", "Abs r: y is BOOL"]),
        (
            "(bfloat16[2] x) => (float[2] y) {[c] y = Cast <to = 1> (x)}",
            ["input x: x is BFLOAT16", "Cast c: x is BFLOAT16"],
        ),
        ("(uint8[2] x) => (float[2] y) {[c] y = Cast <to = 1> (x)}", []),  # images as bytes
        ("(uint8[2] x) => (uint8[2] y) {[a] y = Abs (x)}", ["Abs a: x is UINT8", "Abs a: y is UINT8"]),
        ("(int32[2] x) => (int32[2] y) {[m] y = Clip (x)}", []),
        ("(float[4] x, int64[2] i) => (float[2] y) {y = Gather (x, i)}", []),
        ("(float[4] x) => (bool[4] y) <float t = {0}> {y = Greater (x, t)}", []),
        ("(int64 x) => (int64 y) <int64 e = {2}> {[p] y = Pow (x, e)}", [f"Pow p: {v} is INT64" for v in "xey"]),
    ],
)
def test_types(graph: str, found: list[str]) -> None:
    assert faults(graph) == found


def test_each_release_has_its_opsets() -> None:
    graph = "(float[2] x) => (float[2] y) {y = Abs (x)}"
    assert [fitting(graph, opset) for opset in (8, 9, 20, 24, 25)] == [(), LINES, LINES, ("10.16", "11.4"), ()]
    (fault,) = lint(model(graph, 21))["10.3"]
    assert fault == ("model", "opset_import", "opset 21", "export with an opset of 9 to 20")
    assert summary(lint(model(graph, 21))) == "TensorRT 10.16, 11.4; not 10.3: 1 fault: opset_import model: opset 21"


def test_more_outputs_than_tensorrt_gives() -> None:
    norm = "(float[2,4] x) => (float[2,4] y) <float[4] w = {1, 1, 1, 1}> {%s = LayerNormalization (x, w)}"
    assert fitting(norm % "y") == LINES
    assert faults(norm % "[ln] y, m") == ["LayerNormalization ln: unknown input or output m"]


@pytest.mark.parametrize(
    ("graph", "fit"),
    [
        ("(float[2,3] x, int64[1] a) => (float[n] y) {y = ReduceSum (x, a)}", False),
        ("(float[2,3] x) => (float[n] y) <int64[1] a = {1}> {y = ReduceSum (x, a)}", True),
        ("(float[2,3] x) => (float[1] y) {y = ReduceMax (x)}", True),
        ("(float[1,3] x, int64[1] a) => (float[3] y) {y = Squeeze (x, a)}", False),
        ("(float[S] x) => (float[1,S] y) {a = Shape (x) b = Sub (a, a) y = Unsqueeze (x, b)}", False),
        ("(float[1,3] x) => (float[3] y) {y = Squeeze (x)}", True),
        ("(float[1,S] x) => (float[S] y) {y = Squeeze (x)}", False),
    ],
)
def test_axes_must_be_constant(graph: str, fit: bool) -> None:
    assert fitting(graph) == (LINES if fit else ())


def test_foreign_domains_are_refused() -> None:
    graph = "(float[2] x) => (float[2] y) {[g] y = com.microsoft.Gelu (x)}"
    assert faults(graph, ', "com.microsoft" : 1') == ["Gelu g: it is of the domain com.microsoft"]
    typeless = "(float[2] x) => (float y) {[f] a = com.microsoft.F (x) b = Abs (a) y = Cast <to = 1> (b)}"
    assert faults(typeless, ', "com.microsoft" : 1') == ["F f: it is of the domain com.microsoft"]
    assert faults("(float x) => (float y) {y = Abs (x)}", ', "com.microsoft" : 1') == []  # not used


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


def test_any_version_since_10_0_has_a_window() -> None:
    assert {opset_window_of(version) for version in ("10.0.1", "10.3.0", "10.3.0.26", "10.7.0")} == {(9, 20)}
    assert {opset_window_of(version) for version in ("10.16", "10.16.1.11", "11.4.0.106")} == {(9, 24)}
    assert {opset_window_of(version) for version in ("11.5.0", "12.0")} == {(9, 25)}
    for refused in ("8.6.1", "9.3.0", "", "none", "10", "10.x"):
        with pytest.raises(SettingError, match=r"TensorRT 10\.0 or later \(checked for 10\.3, 10\.16, 11\.4\)"):
            opset_window_of(refused)


def test_a_device_asks_for_its_window_without_onnx() -> None:
    code = (
        "import sys; from adc_edge.onnx import tensorrt_support as s; s.opset_window_of('10.3.0'); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"onnx", "torch", "numpy"} & set(loaded)
