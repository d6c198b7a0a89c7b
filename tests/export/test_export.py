"""The bundle: one ONNX file for every batch size and ratio, whose weights can be refreshed by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from adc_edge.errors import ParityError, SettingError
from adc_edge.export.build import ExportSettings, export_bundle
from adc_edge.export.graph import client_graph, without_weights
from adc_edge.export.parity import check_parity
from adc_edge.method.ratio import Ratio
from adc_edge.method.split import create_vit, split_vit
from adc_edge.method.trunk import Trunk
from adc_edge.storage.bundle import OUTPUTS, Bundle

TINY = {"patch_size": 8, "img_size": 16, "embed_dim": 32, "num_heads": 2, "depth": 4}


def test_a_bundle_holds_what_the_design_says(bundle_dir: Path) -> None:
    bundle = Bundle.load(bundle_dir, ("client.onnx", "trunk.safetensors", "head.safetensors"))
    manifest = bundle.manifest
    assert (manifest.tokens, manifest.prefix, manifest.dim, manifest.classes) == (17, 1, 32, 10)
    assert {p.name for p in bundle_dir.iterdir()} == {*manifest.files, "manifest.json"}
    assert manifest.versions.keys() >= {"adc-edge", "torch", "timm", "onnx", "onnxruntime"}
    assert manifest.preprocessing.size == (16, 16)
    assert manifest.preprocessing.crop_pct == 1.0  # as the fixture asks; the model's own is 0.9


def test_the_graph_has_the_contracts_inputs_outputs_and_weights(bundle_dir: Path) -> None:
    model = onnx.load(bundle_dir / "client.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 20
    weights = load_file(bundle_dir / "trunk.safetensors")
    inputs = [i.name for i in model.graph.input]
    assert inputs[:3] == ["images", "seeds", "slots"]
    assert set(inputs[3:]) == set(weights)
    initializers = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    for name, value in weights.items():  # timm's names, timm's layout
        np.testing.assert_array_equal(initializers[name], value.numpy())
    assert [o.name for o in model.graph.output] == [*OUTPUTS, "scores", "hidden_1"]
    assert "/" + "work" not in model.SerializeToString().decode("latin-1")  # no paths of the exporting machine


def test_one_session_serves_every_batch_size_and_ratio(bundle_dir: Path) -> None:
    session = ort.InferenceSession(bundle_dir / "client.onnx", providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for images, clusters, slots in [(1, 1, 16), (2, 1, 1), (2, 2, 3), (7, 3, 16), (64, 20, 5), (3, 3, 16)]:
        x = rng.standard_normal((images, 3, 16, 16)).astype(np.float32)
        feeds = {"images": x, "seeds": np.arange(clusters), "slots": np.zeros(slots, np.int64)}
        activations, assignment, tokens, counts = session.run(OUTPUTS, feeds)
        assert activations.shape == (clusters, 1 + slots, 32)
        assert assignment.shape == (images,)
        assert tokens.shape == (clusters, 1 + slots)
        assert counts.sum() == images


def test_every_weight_is_reachable_by_name_all_perturbed_twice(bundle_dir: Path) -> None:
    bundle = Bundle.load(bundle_dir, ("client.onnx", "trunk.safetensors"))
    trunk = Trunk(bundle.manifest.trunk)
    trunk.load_state_dict(load_file(bundle_dir / "trunk.safetensors"))
    session = ort.InferenceSession(bundle_dir / "client.onnx", providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((6, 3, 16, 16)).astype(np.float32)
    inputs = {"images": x, "seeds": np.arange(3), "slots": np.zeros(5, np.int64)}
    before = session.run(["activations"], inputs)[0]
    for turn in range(2):
        with torch.no_grad():
            for parameter in trunk.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.05)
        fed = {name: p.detach().numpy() for name, p in trunk.named_parameters()}
        activations, assignment, tokens, counts = session.run(OUTPUTS, inputs | fed)
        expected = trunk.replay(torch.from_numpy(x), torch.from_numpy(assignment), torch.from_numpy(tokens)).detach()
        used = counts > 0
        np.testing.assert_allclose(activations[used], expected.numpy()[used], atol=1e-4, err_msg=f"turn {turn}")
        assert np.abs(activations - before).max() > 0.01
        # Each one alone matters: leaving any of them out gives the old value back in part.
        for name in fed:
            partly = session.run(["activations"], inputs | {k: v for k, v in fed.items() if k != name})[0]
            assert np.abs(partly - activations).max() > 0, name


@pytest.fixture(scope="module")
def vit() -> VisionTransformer:
    """A small model."""
    return create_vit("vit_tiny_patch16_224", TINY, 5).eval()


@pytest.fixture(scope="module")
def traced(vit: VisionTransformer) -> tuple[Trunk, onnx.ModelProto]:
    """Its trunk and graph; tests change copies."""
    trunk, _ = split_vit(vit, 3)
    return trunk, client_graph(trunk)


@pytest.fixture(scope="module")
def half(traced: tuple[Trunk, onnx.ModelProto]) -> onnx.ModelProto:
    """The same in fp16."""
    return client_graph(traced[0], half=True)


@pytest.mark.slow
def test_the_graph_gives_what_leaves_each_block_but_the_last(
    vit: VisionTransformer, traced: tuple[Trunk, onnx.ModelProto]
) -> None:
    session = ort.InferenceSession(traced[1].SerializeToString(), providers=["CPUExecutionProvider"])
    images = torch.randn(5, 3, 16, 16)
    feeds = {"images": images.numpy(), "seeds": np.arange(2), "slots": np.zeros(1, np.int64)}
    assert [o.name for o in session.get_outputs()][4:] == ["scores", "hidden_1", "hidden_2"]
    with torch.no_grad():
        expected = vit._pos_embed(vit.patch_embed(images))  # timm's own
        for block, hidden in zip(vit.blocks, session.run(["hidden_1", "hidden_2"], feeds), strict=False):
            expected = block(expected)
            np.testing.assert_allclose(hidden, expected.numpy(), atol=1e-4)


def test_parity_holds_in_every_stage(traced: tuple[Trunk, onnx.ModelProto]) -> None:
    rows = check_parity(traced[1].SerializeToString(), traced[0])
    assert [row.stage for row in rows] == [*["export"] * 4, "evaluate", "refresh 1", "refresh 2"]
    assert all(row.passed and row.clustering and row.hidden > 0 for row in rows)
    assert max(max(row.scores, row.hidden, row.difference) for row in rows) < 1e-5


def test_parity_notices_a_graph_that_computes_something_else(traced: tuple[Trunk, onnx.ModelProto]) -> None:
    trunk, model = copy.deepcopy(traced)
    for initializer in model.graph.initializer:
        if initializer.name == "blocks.2.mlp.fc2.bias":
            moved = onnx.numpy_helper.to_array(initializer) + 0.01
            initializer.CopyFrom(onnx.numpy_helper.from_array(moved.astype(np.float32), initializer.name))
    with pytest.raises(ParityError, match="differs from PyTorch"):
        check_parity(model.SerializeToString(), trunk)


def test_parity_notices_tokens_that_do_not_follow_from_the_scores(traced: tuple[Trunk, onnx.ModelProto]) -> None:
    trunk, model = copy.deepcopy(traced)
    (topk,) = (node for node in model.graph.node if node.op_type == "TopK")
    next(a for a in topk.attribute if a.name == "largest").i = 0
    with pytest.raises(ParityError, match="do not follow from its scores"):
        check_parity(model.SerializeToString(), trunk)


def test_parity_notices_clusters_that_do_not_follow_from_the_scores(traced: tuple[Trunk, onnx.ModelProto]) -> None:
    trunk, model = copy.deepcopy(traced)
    [node for node in model.graph.node if node.op_type == "ArgMin"][-1].op_type = "ArgMax"
    with pytest.raises(ParityError, match="do not follow from its scores"):
        check_parity(model.SerializeToString(), trunk)


def test_parity_notices_scores_that_differ(traced: tuple[Trunk, onnx.ModelProto]) -> None:
    trunk, model = copy.deepcopy(traced)
    for output in model.graph.output:
        if output.name == "scores":
            made = next(node for node in model.graph.node if "scores" in node.output)
            made.output[0] = "inner"
            for node in model.graph.node:
                node.input[:] = ["inner" if name == "scores" else name for name in node.input]
            model.graph.node.append(onnx.helper.make_node("Exp", ["inner"], ["scores"]))
    with pytest.raises(ParityError, match=r"scores by"):
        check_parity(model.SerializeToString(), trunk)


@pytest.mark.slow
def test_the_fp16_graph_keeps_names_faces_and_adc_in_fp32(
    traced: tuple[Trunk, onnx.ModelProto], half: onnx.ModelProto
) -> None:
    trunk, model = traced
    rows = check_parity(half.SerializeToString(), trunk, "fp16")
    assert all(row.passed for row in rows)
    kinds = {i.name: i.data_type for i in half.graph.initializer}
    assert all(kinds[name] == onnx.TensorProto.FLOAT16 for name, _ in trunk.named_parameters())
    assert [(o.name, o.type.tensor_type.elem_type) for o in half.graph.output] == [
        (o.name, o.type.tensor_type.elem_type) for o in model.graph.output
    ]
    inferred = onnx.shape_inference.infer_shapes(half).graph
    types = {v.name: v.type.tensor_type.elem_type for v in [*inferred.value_info, *inferred.output]}
    for node in half.graph.node:
        if node.op_type in ("ArgMin", "TopK", "ReduceMax", "Pow", "ReduceMean"):
            assert types[node.input[0]] == onnx.TensorProto.FLOAT, node.op_type
        if node.op_type in ("Conv", "Gelu", "LayerNormalization"):
            assert types[node.input[0]] == onnx.TensorProto.FLOAT16, node.op_type


@pytest.mark.slow
def test_parity_notices_an_fp16_graph_that_is_wrong(
    traced: tuple[Trunk, onnx.ModelProto], half: onnx.ModelProto
) -> None:
    model = copy.deepcopy(half)
    bias = next(i for i in model.graph.initializer if i.name == "blocks.2.mlp.fc2.bias")
    moved = onnx.numpy_helper.to_array(bias) + np.float16(0.1)
    bias.CopyFrom(onnx.numpy_helper.from_array(moved.astype(np.float16), bias.name))
    with pytest.raises(ParityError, match="activations by"):
        check_parity(model.SerializeToString(), traced[0], "fp16")


def test_without_weights_the_graph_takes_them_as_inputs(half: onnx.ModelProto) -> None:
    bare = without_weights(half)
    assert bare.ByteSize() < half.ByteSize()
    onnx.checker.check_model(bare, full_check=True)
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in half.graph.initializer}
    whole, stripped = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]) for m in (half, bare)
    )
    required = {i.name for i in stripped.get_inputs()} - {"images", "seeds", "slots"}
    assert required == {i.name for i in whole.get_overridable_initializers()}
    x = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    feeds = {"images": x, "seeds": np.arange(2), "slots": np.zeros(2, np.int64)}
    fed = feeds | {name: weights[name] for name in required}
    for ours, theirs in zip(stripped.run(OUTPUTS, fed), whole.run(OUTPUTS, feeds), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_parity_notices_a_weight_that_a_refresh_does_not_reach(traced: tuple[Trunk, onnx.ModelProto]) -> None:
    trunk, model = copy.deepcopy(traced)
    for node in model.graph.node:  # a node that reads a frozen copy instead of the overridable weight
        for index, name in enumerate(node.input):
            if name == "blocks.0.norm1.weight":
                node.input[index] = "frozen"
    weight = next(i for i in model.graph.initializer if i.name == "blocks.0.norm1.weight")
    model.graph.initializer.append(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight), "frozen"))
    with pytest.raises(ParityError, match="refresh"):
        check_parity(model.SerializeToString(), trunk)


def test_an_export_that_fails_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ParityError("it differs", "that it does not", "mend it")

    monkeypatch.setattr("adc_edge.export.writing.check_parity", fail)
    with pytest.raises(ParityError):
        export_bundle(ExportSettings("vit_tiny_patch16_224", 1, tmp_path / "b", Ratio(xi=0.5), model_args=TINY))
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    settings = ExportSettings("vit_tiny_patch16_224", 1, tmp_path, Ratio(xi=0.5), model_args=TINY, force=True)
    with pytest.raises(SettingError, match="no bundle"):
        export_bundle(settings)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ("pca1", "pca0.25")),
        ({"gradient_precision": "int4"}, ("pca1", "int4")),
        ({"precision": "int8"}, ("int8", "int8")),
        ({"precision": "int8", "gradient_precision": "int4"}, ("int8", "int4")),
    ],
)
def test_a_bundle_is_served_in_the_precisions_asked_for_or_in_what_came_out_best(
    asked: dict[str, Any], expected: tuple[str, str], tmp_path: Path
) -> None:
    settings = ExportSettings("vit_tiny_patch16_224", 1, tmp_path, **asked)
    assert settings.precisions == expected
    assert settings.ratio.shape(32, 17, 1).xi == 1.0, "all is sent"
