"""The INT8 graph: the arithmetic, the policy, and what stays as it was."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from adc_edge.arrays import Float32
from adc_edge.calibration.int8.graph import (
    QDQ,
    Linear,
    frozen,
    kept_in_float,
    linears,
    quantise,
    quantise_weight,
    tapped,
    zero_points,
)
from adc_edge.calibration.int8.quality import Noise
from adc_edge.calibration.int8.ranges import Reach, collect
from adc_edge.errors import EngineError
from adc_edge.method.spec import TrunkSpec
from adc_edge.onnx.session import cpu_session
from adc_edge.onnx.tensorrt_lint import LINES, fits, lint
from adc_edge.storage.bundle import OUTPUTS, Bundle


@pytest.fixture(scope="module")
def client(bundle_dir: Path) -> onnx.ModelProto:
    return onnx.load(bundle_dir / "client.onnx")


@pytest.fixture
def spec(bundle: Bundle) -> TrunkSpec:
    return bundle.manifest.trunk


def pictures(count: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal((count, 3, 16, 16)).astype(np.float32)


def reaches(client: onnx.ModelProto, spec: TrunkSpec, images: Float32) -> dict[str, Reach]:
    chosen = linears(client, spec)
    session = cpu_session(tapped(frozen(client), [each.input for each in chosen]))
    return collect(session, {each.name: each.input for each in chosen}, [images], spec.patches, spec.prefix)


@pytest.fixture
def int8(client: onnx.ModelProto, spec: TrunkSpec) -> onnx.ModelProto:
    found = reaches(client, spec, pictures(8))
    scales = {name: reach.scale("percentile", 99.99) for name, reach in found.items()}
    return quantise(frozen(client), linears(client, spec), scales)


def one_linear(weight: Float32, bias: Float32) -> tuple[onnx.ModelProto, Linear]:
    """``[B, n, in]`` times a constant, plus a bias, as the exporter writes it."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", "n", None]) for name in ("x", "y")]
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph(nodes, "linear", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model, Linear("fc", "x", "w", "product")


def integers(x: Float32, scale: float) -> npt.NDArray[np.int32]:
    """Round half to even, saturate."""
    rounded: npt.NDArray[np.int32] = np.clip(np.rint(x / np.float32(scale)), -128, 127).astype(np.int32)
    return rounded


def test_a_linear_is_numpys_integer_arithmetic() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((48, 20)).astype(np.float32) * rng.uniform(0.01, 3, 20).astype(np.float32)
    bias = rng.standard_normal(20).astype(np.float32)
    scale = 0.125
    x = rng.standard_normal((3, 5, 48)).astype(np.float32) * 4
    x[0, 0, :8] = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -127.5]) * scale  # halves
    x[0, 1, :6] = np.array([127, 127.6, 500, -128, -128.6, -500]) * scale  # the ends and beyond
    model = quantise(*((found := one_linear(weight, bias))[0], [found[1]], {"fc": scale}))
    levels, scales = quantise_weight(weight)
    product = integers(x, scale) @ levels.astype(np.int32)
    expected = product.astype(np.float64) * (scale * scales.astype(np.float64)) + bias
    (y,) = cpu_session(model.SerializeToString()).run(["y"], {"x": x})
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-5)
    model.graph.output.append(helper.make_tensor_value_info("fc.input_int8", onnx.TensorProto.INT8, None))
    (q,) = cpu_session(model.SerializeToString()).run(["fc.input_int8"], {"x": x})
    np.testing.assert_array_equal(q, integers(x, scale))
    assert q[0, 0, :8].tolist() == [0, 2, 2, 0, -2, -2, 126, -128]
    assert q[0, 1, :6].tolist() == [127, 127, 127, -128, -128, -128]


def test_the_largest_sums_do_not_saturate() -> None:
    """Neighbouring products of 255 * 127 exceed 16 bits, which fused products without VNNI add them in."""
    weight, x = np.full((48, 20), 127, np.float32), np.full((3, 5, 48), 127, np.float32)
    model, linear = one_linear(weight, np.zeros(20, np.float32))
    (y,) = cpu_session(quantise(model, [linear], {"fc": 1.0}).SerializeToString()).run(["y"], {"x": x})
    np.testing.assert_allclose(y, 48 * 127 * 127, rtol=1e-6)


def test_weights_have_a_scale_for_each_output_channel() -> None:
    weight = np.array([[1.0, 0.0, -300.0], [-0.5, 0.0, 1.0]], np.float32)
    levels, scales = quantise_weight(weight)
    assert levels.dtype == np.int8
    assert levels.tolist() == [[127, 0, -127], [-64, 0, 0]]  # -63.5 rounds to even
    np.testing.assert_allclose(scales, [1 / 127, 1, 300 / 127], rtol=1e-6)


def test_onnx_runtime_computes_the_products_in_int8(int8: onnx.ModelProto, spec: TrunkSpec, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "as_run.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(int8.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ops = Counter(node.op_type for node in onnx.load(tmp_path / "as_run.onnx").graph.node)
    assert ops["MatMulIntegerToFloat"] == 4 * spec.depth - 2
    assert ops["DequantizeLinear"] == 0


def test_the_graph_has_the_contract_of_the_float_graph(client: onnx.ModelProto, int8: onnx.ModelProto) -> None:
    onnx.checker.check_model(int8, full_check=True)
    assert [i.name for i in int8.graph.input] == ["images", "seeds", "slots"]
    assert list(int8.graph.input) == list(client.graph.input[:3])
    assert list(int8.graph.output) == list(client.graph.output[:4])
    assert [(o.domain, o.version) for o in int8.opset_import] == [("", 20)]
    assert {node.domain for node in int8.graph.node} == {""}


def test_one_session_serves_every_batch_size_and_ratio(int8: onnx.ModelProto) -> None:
    session = cpu_session(int8.SerializeToString())
    for images, clusters, slots in [(1, 1, 16), (2, 1, 1), (7, 3, 16), (40, 20, 5), (3, 3, 16)]:
        feeds = {"images": pictures(images), "seeds": np.arange(clusters), "slots": np.zeros(slots, np.int64)}
        activations, assignment, tokens, counts = session.run(OUTPUTS, feeds)
        assert activations.shape == (clusters, 1 + slots, 32)
        assert assignment.shape == (images,)
        assert tokens.shape == (clusters, 1 + slots)
        assert counts.sum() == images


def test_it_is_symmetric_int8_and_fits_tensorrt(int8: onnx.ModelProto) -> None:
    zeros = zero_points(int8)
    quantising = [node for node in int8.graph.node if node.op_type in QDQ]
    assert len(zeros) == len(quantising) > 0
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    assert fits(lint(int8)) == LINES


def test_what_is_not_quantised_stays_node_for_node(
    client: onnx.ModelProto, int8: onnx.ModelProto, spec: TrunkSpec
) -> None:
    chosen = {each.output: each for each in linears(client, spec)}
    names = {each.name for each in chosen.values()}
    assert names == {
        f"blocks.{b}.{part}" for b in range(2) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    } - {
        "blocks.0.mlp.fc2",
        "blocks.1.attn.qkv",
    }
    assert not names & kept_in_float(spec).keys()
    before = [node for node in frozen(client).graph.node if node.output[0] not in chosen]
    after = [node for node in int8.graph.node if node.output[0] not in chosen and node.op_type not in QDQ]
    assert before == after
    kinds = Counter(node.op_type for node in int8.graph.node)
    assert (kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (len(names), 2 * len(names))
    assert kinds["Conv"] == 1


def test_freezing_changes_no_result_and_drops_what_it_folds(client: onnx.ModelProto, bundle_dir: Path) -> None:
    model = frozen(client)
    feeds = {"images": pictures(6), "seeds": np.arange(3), "slots": np.zeros(5, np.int64)}
    expected = cpu_session(str(bundle_dir / "client.onnx")).run(OUTPUTS, feeds)
    for ours, theirs in zip(cpu_session(model.SerializeToString()).run(OUTPUTS, feeds), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    constants = {tensor.name for tensor in model.graph.initializer}
    assert not any(all(name in constants for name in node.input) for node in model.graph.node)
    assert constants <= {name for node in model.graph.node for name in node.input}


class OneByOne(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Float32, slots: int) -> None:
        self._feeds = iter(
            {"images": image[None], "seeds": np.zeros(1, np.int64), "slots": np.zeros(slots, np.int64)}
            for image in images
        )

    def get_next(self) -> dict[str, npt.NDArray[np.generic]] | None:
        return next(self._feeds, None)


def test_minmax_gives_the_numbers_of_quantize_static(client: onnx.ModelProto, spec: TrunkSpec, tmp_path: Path) -> None:
    images, chosen, model = pictures(12), linears(client, spec), frozen(client)
    onnx.save(model, tmp_path / "frozen.onnx")
    by_output = {each.output: each for each in chosen}
    quantize_static(
        tmp_path / "frozen.onnx",
        tmp_path / "theirs.onnx",
        OneByOne(images, spec.patches),
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=[node.name for node in model.graph.node if node.output[0] in by_output],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
        },
    )
    theirs = onnx.load(tmp_path / "theirs.onnx")
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in theirs.graph.initializer}
    scales = {name: reach.scale("minmax", 100) for name, reach in reaches(client, spec, images).items()}
    ours = quantise(model, chosen, scales)
    mine = {tensor.name: numpy_helper.to_array(tensor) for tensor in ours.graph.initializer}
    for each in chosen:
        np.testing.assert_allclose(mine[f"{each.name}.input_scale"], values[f"{each.input}_scale"], rtol=1e-6)
        np.testing.assert_allclose(mine[f"{each.name}.weight_scale"], values[f"{each.weight}_scale"], rtol=1e-6)
        np.testing.assert_array_equal(mine[f"{each.name}.weight_int8"], values[f"{each.weight}_quantized"])
    feeds = {"images": images[:5], "seeds": np.arange(5), "slots": np.zeros(spec.patches, np.int64)}
    z, reference = (cpu_session(each.SerializeToString()).run(["activations"], feeds)[0] for each in (ours, theirs))
    np.testing.assert_allclose(z, reference, atol=1e-4)


def test_sqnr_is_the_ratio_of_powers() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 100)).astype(np.float32)
    step = np.float32(0.05)
    noisy = np.rint(x / step) * step
    sums = Noise()
    for ours, theirs in zip(noisy, x, strict=True):
        sums.add(ours, theirs)
    expected = 10 * np.log10(np.mean(x.astype(np.float64) ** 2) / np.mean((noisy.astype(np.float64) - x) ** 2))
    assert sums.sqnr_db == pytest.approx(expected, rel=1e-9)
    assert sums.sqnr_db == pytest.approx(10 * np.log10(1 / (step**2 / 12)), abs=1)  # uniform noise
    same = Noise()
    same.add(x, x)
    assert same.sqnr_db == np.inf


def test_a_graph_with_other_linears_is_refused(client: onnx.ModelProto, spec: TrunkSpec) -> None:
    changed = onnx.ModelProto.FromString(client.SerializeToString())
    for tensor in changed.graph.initializer:
        tensor.name = tensor.name.replace("blocks.1.mlp.fc1", "other")
    for node in changed.graph.node:
        node.input[:] = [name.replace("blocks.1.mlp.fc1", "other") for name in node.input]
    with pytest.raises(EngineError, match=r"blocks.1.mlp.fc1[^$]*export the model again"):
        linears(changed, spec)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    weight, bias = np.ones((2, 2), np.float32), np.zeros(2, np.float32)
    model, linear = one_linear(weight, bias)
    with pytest.raises(EngineError, match="the scales of fc are not finite"):
        quantise(model, [linear], {"fc": value})
    weight[0, 1] = value
    model, linear = one_linear(weight, bias)
    with pytest.raises(EngineError, match="the scales of fc are not finite"):
        quantise(model, [linear], {"fc": 1.0})


def test_activations_that_are_not_finite_are_refused(client: onnx.ModelProto, spec: TrunkSpec) -> None:
    images = pictures(3)
    images[2, 0, 5, 5] = np.inf
    with pytest.raises(EngineError, match=r"the input of blocks.0.attn.qkv is not finite"):
        reaches(client, spec, images)
