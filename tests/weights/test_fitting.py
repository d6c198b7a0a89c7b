"""Weights against the model: all of them are loaded, or the file is refused by the names of the tensors."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from adc_edge.errors import ModelError, SettingError
from adc_edge.method.split import load_vit
from tests.weights.conftest import MODEL, SMALL, Load, made

STATE = made()
HEAD = ("head.weight", "head.bias")


def without(*prefixes: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in STATE.items() if not name.startswith(prefixes)}


def test_one_line_says_how_many_tensors_came_from_the_file_and_that_the_head_is_new(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    load(STATE, 7)[1].log()
    load(STATE, 10)[1].log()
    assert caplog.messages == [
        "weights   30 of 32 tensors from file.safetensors (head: new, 7 classes)",
        "weights   32 of 32 tensors from file.safetensors (head: kept, 10 classes)",
    ]


@pytest.mark.parametrize("classes", [10, None])
def test_a_head_of_the_same_class_count_is_kept_and_gives_the_class_count_if_none_is_named(
    load: Load, classes: int | None
) -> None:
    found, record = load(STATE, classes)
    assert [name for name in STATE if not torch.equal(found[name], STATE[name])] == []
    assert record.loaded == record.total == len(STATE)


def test_a_file_without_a_head_gets_a_new_one_for_the_classes_named_and_is_refused_without(load: Load) -> None:
    _, record = load(without("head"))
    assert (record.loaded, record.words) == (len(STATE) - 2, ("head: new, 10 classes",))
    with pytest.raises(ModelError, match=r"(?s)no classifier.*--num-classes"):
        load(without("head"), None)


@pytest.mark.parametrize("name", [n for n in STATE if not n.startswith("blocks.0.mlp")])
def test_a_file_that_lacks_any_one_tensor_is_refused_by_its_name(load: Load, name: str) -> None:
    with pytest.raises(ModelError, match=f"1 missing: {name}"):
        load(without(name))


@pytest.mark.parametrize(
    ("contents", "what"),
    [
        ({"foo": torch.zeros(3)}, "another architecture: no block of .* 1 tensors .foo."),
        (timm.create_model("resnet10t").state_dict(), "another architecture.*bn1"),
        (STATE | {"extra.weight": torch.zeros(3)}, "1 not used: extra.weight"),
        (without("blocks.1."), "another depth: 1 blocks, the model has 2; 12 missing: blocks.1.norm1.weight"),
        (made(depth=3), "another depth: 3 blocks.*12 not used.*--model-arg depth=3"),
        (made(embed_dim=48), "another width: 48, the model has 24"),
        (made(global_pool="avg"), "2 missing: norm.weight.*--model-arg global_pool=avg"),
        (made(reg_tokens=2), "reg_token.*--model-arg reg_tokens"),
        (made(init_values=1e-5), "another architecture: its blocks have ls1.gamma.*--model-arg init_values"),
        (made("deit_tiny_distilled_patch16_224"), r"pos_embed \[1, 18, 24\].*deit_tiny_distilled_patch16_224"),
    ],
)
@pytest.mark.parametrize("classes", [3, 10])
def test_another_models_weights_are_refused_in_words_whatever_the_class_count(
    load: Load, contents: dict[str, torch.Tensor], what: str, classes: int
) -> None:
    with pytest.raises(ModelError, match=f"(?s){what}"):
        load(contents, classes)


def test_allowed_tensors_may_be_missing_unused_or_of_another_shape_and_a_pattern_without_effect_is_named(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    contents = without("blocks.1.mlp") | {"extra.weight": torch.zeros(3), "norm.bias": torch.zeros(5)}
    found, record = load(contents, allow_missing=("blocks.1.mlp.*", "extra.*", "norm.bias", "typo*"))
    assert record.loaded == len(STATE) - 5
    assert torch.equal(found["norm.weight"], STATE["norm.weight"])
    record.log()
    assert "--allow-missing typo* matches no tensor" in caplog.text


def test_nothing_is_never_loaded_even_if_all_is_allowed_to_be_missing(load: Load) -> None:
    for contents in ({"foo": torch.zeros(3)}, made(embed_dim=48)):
        with pytest.raises(ModelError):
            load(contents, allow_missing=("*",))
    with pytest.raises(SettingError, match="without weights"):
        load_vit(MODEL, SMALL, 10, allow_missing=("*",))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_the_tensors_name_in_the_file(load: Load, value: float) -> None:
    contents = {f"model.{name}": tensor.clone() for name, tensor in STATE.items()}
    contents["model.blocks.1.norm2.bias"][3] = value
    with pytest.raises(ModelError, match=r"NaN or infinite values in model.blocks.1.norm2.bias"):
        load(contents)


def test_numbers_of_other_precisions_become_float32_and_quantised_ones_are_refused(load: Load) -> None:
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        found, record = load({name: value.to(kind) for name, value in STATE.items()})
        assert [n for n in STATE if not torch.equal(found[n], STATE[n].to(kind).float())] == []
        assert f"from {str(kind)[6:]}" in record.words
    with pytest.raises(ModelError, match=r"infinite values in"):
        load({name: 1e300 * value.double() for name, value in STATE.items()})
    for kind in (torch.int8, torch.float8_e4m3fn):
        with pytest.raises(ModelError, match=r"is quantised: blocks.0.attn.qkv.weight"):
            load(STATE | {"blocks.0.attn.qkv.weight": STATE["blocks.0.attn.qkv.weight"].to(kind)})


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (STATE["norm.weight"].to_sparse(), r"has sparse tensors: norm.weight \(sparse_coo\)"),
        (torch.empty(24, device="meta"), r"has tensors without values: norm.weight \(meta\)"),
        (STATE["norm.weight"].to(torch.complex64), r"has complex numbers: norm.weight \(complex64\)"),
    ],
    ids=["sparse", "meta", "complex"],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_sparse_absent_and_complex_values_are_refused_by_name(load: Load, value: Tensor, what: str) -> None:
    with pytest.raises(ModelError, match=what):
        load(STATE | {"norm.weight": value}, suffix="pth")


def test_position_embeddings_and_patches_are_resampled_as_timm_does_and_it_is_said(load: Load) -> None:
    larger = made(img_size=64)
    found, record = load(larger)
    assert torch.equal(found["pos_embed"], resample_abs_pos_embed(larger["pos_embed"], [4, 4], [8, 8]))
    assert record.words[1:] == ("positions resampled from 8x8 to 4x4",)
    assert load(made(patch_size=16))[1].words[1:] == (
        "patches resampled from 16x16 to 8x8",
        "positions resampled from 2x2 to 4x4",
    )
    wide = made(img_size=(32, 72))
    assert torch.equal(load(wide, img_size=(32, 72))[0]["pos_embed"], wide["pos_embed"])


def test_input_channels_are_adapted_as_timm_does_and_it_is_said(load: Load) -> None:
    found, record = load(STATE, in_chans=1)
    colour = STATE["patch_embed.proj.weight"]
    torch.testing.assert_close(found["patch_embed.proj.weight"], colour.sum(1, keepdim=True))
    assert record.words[1:] == ("patches adapted from 3 to 1 channels",)
    grey = made(in_chans=1)
    assert torch.equal(load(grey, in_chans=1)[0]["patch_embed.proj.weight"], grey["patch_embed.proj.weight"])


def test_each_head_of_a_distilled_model_is_kept_or_new_by_itself(load: Load) -> None:
    model = "deit_tiny_distilled_patch16_224"
    state = made(model)
    assert load(state, model=model)[1].words == ("head: kept, 10 classes",)
    assert load(state, 3, model)[1].words == ("head: new, 3 classes",)
    other = {"head_dist.weight": torch.zeros(100, 24), "head_dist.bias": torch.zeros(100)}
    assert load(state | other, None, model)[1].words == ("head: kept, 10 classes", "head_dist: new, 10 classes")
    with pytest.raises(ModelError, match=r"missing: head_dist.weight, head_dist.bias"):
        load({n: v for n, v in state.items() if not n.startswith("head_dist")}, model=model)


def test_a_head_that_reads_other_features_is_not_taken_for_one_of_the_same_class_count(load: Load) -> None:
    _, record = load(STATE | {"head.weight": torch.zeros(10, 48)})
    assert record.words == ("head: new, 10 classes", "the file's reads 48 features")


@pytest.mark.parametrize(("classes", "head"), [(None, "kept, 1000"), (3, "new, 3")])
def test_timms_own_weights_are_reported_in_the_same_way(tmp_path: Any, classes: int | None, head: str) -> None:
    state = made(classes=1000)
    save_file(state, tmp_path / "hub.safetensors")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "hub.safetensors")}}  # timm's own way to a local file
    vit, record = load_vit(MODEL, SMALL | overlay, classes, pretrained=True)
    assert record is not None
    assert record.words == (f"head: {head} classes",)
    assert torch.equal(vit.state_dict()["pos_embed"], state["pos_embed"])
