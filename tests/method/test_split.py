"""Cutting timm models, against the uncut model."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from adc_edge.errors import ModelError
from adc_edge.method.split import create_vit, split_vit

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 3, "depth": 4}
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("deit_tiny_patch16_224", {"img_size": 64}),
    ("deit_small_patch16_224", {"img_size": 64}),
    ("deit_base_patch16_224", {"img_size": 64, "depth": 4}),
    ("deit_tiny_distilled_patch16_224", {"img_size": 64}),
    ("deit3_small_patch16_224", {"img_size": 64}),
    ("vit_tiny_patch16_224", SMALL),
    ("vit_tiny_patch16_224", {**SMALL, "global_pool": "avg"}),
    ("vit_tiny_patch16_224", {**SMALL, "qk_norm": True, "init_values": 0.1}),
    ("vit_tiny_patch16_224", {**SMALL, "reg_tokens": 3}),
    ("vit_tiny_patch16_224", {**SMALL, "qkv_bias": False, "proj_bias": False, "pos_embed": "none"}),
    ("vit_tiny_patch16_224", {**SMALL, "in_chans": 1}),
    ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "depth": 4}),
    ("vit_base_patch32_clip_quickgelu_224", {"img_size": 64, "depth": 4}),
]


def make(model: str, arguments: dict[str, Any]) -> timm.models.VisionTransformer:
    torch.manual_seed(0)
    vit = create_vit(model, arguments, 7)
    for parameter in vit.parameters():  # away from the initial zeros and ones, which hide mistakes
        nn.init.normal_(parameter, 0.05, 0.05 if parameter.ndim > 1 else 0.5)
    return vit.eval()


def grads(loss: Tensor, named: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    values = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), values, strict=True)}


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        pytest.param(
            model,
            arguments,
            id=f"{model}-{i}",
            marks=[pytest.mark.slow] if "_base_" in model or "_small_" in model else [],
        )
        for i, (model, arguments) in enumerate(MODELS)
    ],
)
def test_at_ratio_one_logits_and_gradients_are_the_uncut_models(model: str, arguments: dict[str, Any]) -> None:
    vit = make(model, arguments)
    trunk, head = split_vit(vit, 2)
    head.eval()
    images = torch.randn(3, trunk.spec.channels, *trunk.spec.image_size)
    target = torch.tensor([0, 3, 6])
    expected = vit(images)
    everything = torch.zeros(trunk.spec.patches, dtype=torch.int64)
    out = trunk.compress(images, torch.arange(3), everything)
    assert sorted(out.assignment.tolist()) == [0, 1, 2]
    logits = head(out.activations)[out.assignment]
    scale = float(expected.detach().abs().max())
    assert float((logits - expected).detach().abs().max()) <= 1e-4 * scale
    assert torch.equal(head(trunk(images)), expected)  # evaluation: nothing merged, nothing reordered

    reference = grads(nn.functional.cross_entropy(expected, target), dict(vit.named_parameters()))
    named = dict(trunk.named_parameters()) | dict(head.vit.named_parameters())
    assert named.keys() == reference.keys()
    ours = grads(nn.functional.cross_entropy(logits, target), named)
    largest = max(float(g.abs().max()) for g in reference.values())
    for name, gradient in reference.items():
        assert float((ours[name] - gradient).abs().max()) <= 1e-3 * largest, name


@pytest.mark.parametrize("split", [1, 2, 3])
def test_a_model_can_be_cut_after_any_block_but_the_last(split: int) -> None:
    vit = make("vit_tiny_patch16_224", SMALL)
    trunk, head = split_vit(vit, split)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(head(trunk(images)), vit(images))
    assert len(trunk.blocks) == split


@pytest.mark.parametrize("split", [-1, 0, 4, 9])
def test_a_split_outside_the_model_is_refused_with_what_is_possible(split: int) -> None:
    with pytest.raises(ModelError, match="1 to 3"):
        split_vit(make("vit_tiny_patch16_224", SMALL), split)


@pytest.mark.parametrize(
    ("model", "arguments", "reason"),
    [
        ("resnet10t", {}, "ResNet"),
        ("vit_tiny_patch16_224", {**SMALL, "class_token": False, "global_pool": "avg"}, "CLS"),
        ("vit_tiny_patch16_224", {**SMALL, "drop_path_rate": 0.1}, "DropPath"),
        ("vit_tiny_patch16_224", {**SMALL, "pos_drop_rate": 0.1}, "Dropout"),
        ("vit_tiny_patch16_224", {**SMALL, "scale_attn_norm": True}, "attn.norm"),
        ("vit_tiny_patch16_224", {**SMALL, "dynamic_img_size": True}, "dynamic_img_size"),
        ("vit_small_patch16_18x2_224", {"img_size": 32, "depth": 2}, "ParallelThingsBlock"),
        ("no_such_model", {}, "no_such_model"),
        ("vit_tiny_patch16_224", {"depth": "many"}, "cannot make"),
    ],
)
def test_a_model_that_adc_cannot_work_on_is_refused_with_the_reason(
    model: str, arguments: dict[str, Any], reason: str
) -> None:
    def create_and_cut() -> None:
        vit = create_vit(model, arguments, 7)
        split_vit(vit, len(vit.blocks) // 2)

    with pytest.raises(ModelError, match=reason):
        create_and_cut()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"img_size": 30}, "image size of 30 with patches of 8.*24 or 32"),
        ({"img_size": 4}, "image size of 4 with patches of 8.*multiple of 8: 8"),
        ({"img_size": (32, 30)}, "image size of 30"),
        ({"in_chans": 4}, "in_chans=4.*1 .grey. or 3"),
        ({"checkpoint_path": "x.pth"}, "checkpoint_path.*--weights"),
    ],
)
def test_an_image_that_no_patch_or_source_fits_is_refused_with_what_is_possible(
    arguments: dict[str, Any], what: str
) -> None:
    with pytest.raises(ModelError, match=f"(?s){what}"):
        split_vit(create_vit("vit_tiny_patch16_224", {**SMALL, **arguments}, 7), 2)
