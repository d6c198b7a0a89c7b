"""Files whose tensors have other names: after unwrapping and translation each equals the file's, bit for bit."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from adc_edge.errors import ModelError
from tests.weights.conftest import Load, made

OLD = {  # Hugging Face's names in files of transformers 4, for timm's
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "reg_token": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "attn.proj.": "attention.output.dense.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
}
NEW = OLD | {"attn.proj.": "attention.o_proj.", "mlp.fc1.": "mlp.fc1.", "mlp.fc2.": "mlp.fc2."}
DINO = OLD | {"mlp.fc1.": "mlp.fc1.", "mlp.fc2.": "mlp.fc2.", "norm1.": "norm1.", "norm2.": "norm2."}
DINO |= {"ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}
LAYERS = {"old": "encoder.layer.", "new": "layers.", "dino": "encoder.layer."}
TABLES = {"old": OLD, "new": NEW, "dino": DINO}
DEIT_HEADS = {"head.": "cls_classifier.", "head_dist.": "distillation_classifier."}


def hugging_face(state: dict[str, Tensor], form: str, prefix: str, heads: dict[str, str]) -> dict[str, Tensor]:
    """A state dict of timm's under Hugging Face's names, with query, key and value apart."""
    result = {}
    for name, value in state.items():
        for head, theirs in heads.items():
            if name.startswith(head):
                result[name.replace(head, theirs)] = value
        if name.startswith("head"):
            continue
        name = re.sub(r"^norm\.", "layernorm.", name)
        if "attn.qkv" in name:
            parts = ("q_proj", "k_proj", "v_proj") if form == "new" else tuple(f"attention.{p}" for p in QUERY)
            for part, third in zip(parts, value.chunk(3), strict=True):
                theirs = name.replace("attn.qkv", f"attention.{part}").replace("blocks.", LAYERS[form])
                result[prefix + theirs] = third
            continue
        for mine, theirs in TABLES[form].items():
            name = re.sub(rf"(^|\.){re.escape(mine)}", rf"\g<1>{theirs}", name)
        result[prefix + name.replace("blocks.", LAYERS[form])] = value
    return result


QUERY = ("query", "key", "value")


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("form", ["old", "new"])
def test_hugging_face_vit_loads_bit_for_bit_with_its_head(load: Load, form: str) -> None:
    state = made()
    found, record = load(hugging_face(state, form, "vit.", {"head.": "classifier."}), None)
    assert_equal(found, state)
    assert record.words == ("head: kept, 10 classes", "unwrapped: vit.", "Hugging Face names")


def test_hugging_face_distilled_deit_loads_bit_for_bit_with_both_heads(load: Load) -> None:
    state = made("deit_tiny_distilled_patch16_224")
    contents = hugging_face(state, "old", "deit.", DEIT_HEADS)
    assert_equal(load(contents, model="deit_tiny_distilled_patch16_224")[0], state)


def test_hugging_face_dinov2_loads_bit_for_bit_and_its_mask_token_is_named(load: Load) -> None:
    state = made("vit_small_patch14_dinov2", init_values=1e-5)
    contents = hugging_face(state, "dino", "", {}) | {"embeddings.mask_token": torch.zeros(1, 24)}
    found, record = load(contents, model="vit_small_patch14_dinov2", init_values=1e-5)
    assert record.loaded == record.total - 2
    assert_equal(found | {n: state[n] for n in ("head.weight", "head.bias")}, state)
    assert "not used: mask_token" in record.words


@pytest.mark.parametrize("form", ["dino", "meta"])
def test_dinov2_with_registers_has_the_position_of_cls_added_to_its_token(load: Load, form: str) -> None:
    model = "vit_small_patch14_reg4_dinov2"
    state = made(model)
    position = torch.randn(1, 1, 24)
    theirs = state | {"pos_embed": torch.cat([position, state["pos_embed"]], 1)}
    contents = {name.replace("reg_token", "register_tokens"): value for name, value in theirs.items()}
    contents = contents if form == "meta" else hugging_face(theirs, form, "dinov2_with_registers.", {})
    found, record = load(contents, model=model)
    assert torch.equal(found["pos_embed"], state["pos_embed"])
    assert torch.equal(found["cls_token"], state["cls_token"] + position)
    assert "position of CLS added to its token" in record.words


def test_the_pooler_of_a_hugging_face_model_is_named_and_a_query_that_is_missing_is_refused(load: Load) -> None:
    contents = hugging_face(made(), "old", "", {}) | {"pooler.dense.weight": torch.zeros(2, 2)}
    assert "not used: pooler" in load(contents)[1].words
    del contents["encoder.layer.1.attention.attention.query.weight"]
    with pytest.raises(ModelError, match=r"1 missing: blocks.1.attn.qkv.weight; .*attention.attention.key.weight"):
        load(contents)


def test_the_image_half_of_openais_clip_loads_without_the_text_half(load: Load) -> None:
    model = "vit_base_patch32_clip_quickgelu_224"
    state = made(model)
    table = {"blocks.": "transformer.resblocks.", "attn.qkv.": "attn.in_proj_", "attn.proj.": "attn.out_proj."}
    table |= {"norm1": "ln_1", "norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "norm_pre": "ln_pre"}
    table |= {"patch_embed.proj": "conv1", "cls_token": "class_embedding", "pos_embed": "positional_embedding"}
    contents = {"logit_scale": torch.zeros(()), "transformer.resblocks.0.ln_1.weight": torch.zeros(3)}
    for name, value in state.items():
        for mine, theirs in table.items():
            name = name.replace(mine, theirs)
        value = {"class_embedding": value.flatten(), "positional_embedding": value[0]}.get(name, value)
        if not name.startswith("head"):
            contents["visual." + re.sub(r"^norm\.", "ln_post.", name)] = value
    found, record = load(contents, model=model)
    assert_equal(found | {n: state[n] for n in ("head.weight", "head.bias")}, state)
    assert "unwrapped: visual., not the text model" in record.words


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.", "module._orig_mod.", "model.module.", "vit."],
)
def test_known_prefixes_are_stripped_alone_and_stacked(load: Load, prefix: str) -> None:
    state = made()
    found, record = load({prefix + name: value for name, value in state.items()})
    assert_equal(found, state)
    (words,) = (word for word in record.words if word.startswith("unwrapped: "))
    assert set(words.removeprefix("unwrapped: ").split(", ")) == {f"{part}." for part in prefix[:-1].split(".")}


def test_a_compiled_block_inside_a_model_is_unwrapped(load: Load) -> None:
    state = made()
    assert_equal(load({n.replace("blocks.1.", "blocks.1._orig_mod."): v for n, v in state.items()})[0], state)


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


STATE, OTHER = made(), {name: 2 * value for name, value in made().items()}


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({"state_dict": STATE, "epoch": 3}, "state_dict"),
        ({"model": STATE, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}, "epoch": 3}, "model"),
        ({"state_dict": under("model.module.", STATE), "hyper_parameters": {"lr": 1}}, "state_dict, model., module."),
        ({"state_dict": OTHER, "state_dict_ema": STATE}, "state_dict_ema, not state_dict"),
        ({"model": OTHER, "model_ema": under("module.", STATE)}, "model_ema, not model, module."),
        ({"student": OTHER, "teacher": under("backbone.", STATE)}, "teacher, not student, backbone."),
        (under("student.", OTHER) | under("teacher.", STATE), "teacher., not student."),
        ({"state_dict": {"model": STATE}}, "state_dict, model"),
        ({"state_dict": STATE, "ema": {"decay": 0.9}}, "state_dict"),
    ],
)
def test_checkpoints_are_unwrapped_by_name_and_the_choice_is_said(
    load: Load, contents: dict[str, Any], words: str
) -> None:
    found, record = load(contents, suffix="pth")
    assert_equal(found, STATE)
    assert f"unwrapped: {words}" in record.words


def test_the_projection_head_of_self_supervised_weights_is_named_and_a_new_head_is_made(load: Load) -> None:
    trunk = {name: value for name, value in STATE.items() if not name.startswith("head")}
    contents = {"teacher": under("backbone.", trunk) | {"head.mlp.0.weight": torch.zeros(2, 2)}}
    _, record = load(contents, suffix="pth")
    assert record.words[0] == "head: new, 10 classes"
    assert "not used: head.mlp.0.weight" in record.words


@pytest.mark.parametrize(
    ("contents", "what"),
    [
        (under("model.", STATE) | under("net.", OTHER), "holds two models: model.* and net.*"),
        (under("my_thing.", STATE), "another architecture.*strip the prefix my_thing."),
        ({"epoch": 3}, "no tensors by name: epoch"),
        ({}, "no tensors by name: nothing"),
        ([1], "holds a list"),
        (torch.zeros(2), "holds a Tensor"),
        ({1: torch.zeros(2)}, "another architecture"),
    ],
    ids=["two models", "unknown prefix", "no tensors", "empty", "list", "tensor", "no text as name"],
)
def test_contents_without_one_model_are_refused(load: Load, contents: Any, what: str) -> None:
    with pytest.raises(ModelError, match=f"(?s){what}"):
        load(contents, suffix="pth")


TRUNK = {name: value for name, value in STATE.items() if not name.startswith("head")}
HEAD = {"weight": STATE["head.weight"], "bias": STATE["head.bias"]}
OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}}


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({"backbone": TRUNK, "head": HEAD}, "backbone, head"),
        ({"model": TRUNK, "head.weight": HEAD["weight"], "head.bias": HEAD["bias"]}, "model, head"),
        (TRUNK | {"head": HEAD, "optimizer": OPTIMIZER}, "head"),
        ({"state_dict": {"encoder": TRUNK, "head": HEAD}, "rng_state": torch.zeros(9)}, "state_dict, encoder, head"),
    ],
    ids=["entry", "tensors", "nested", "deeper"],
)
def test_a_classifier_beside_the_model_is_taken_along(load: Load, contents: dict[str, Any], words: str) -> None:
    found, record = load(contents, suffix="pth")
    assert_equal(found, STATE)
    assert record.words == ("head: kept, 10 classes", f"unwrapped: {words}")


def test_a_hugging_face_classifier_beside_its_model_is_taken_along(load: Load) -> None:
    contents = {"model": hugging_face(STATE, "old", "vit.", {}), "classifier": HEAD}
    assert_equal(load(contents, suffix="pth")[0], STATE)


@pytest.mark.parametrize(
    ("contents", "what"),
    [
        ({"encoder": TRUNK, "classifier": HEAD}, "2 not used: classifier.weight, classifier.bias"),
        ({"encoder": TRUNK, "head": [HEAD["weight"], HEAD["bias"]]}, "2 not used: head.0, head.1"),
        ({"model": TRUNK, "neck": {"deep": HEAD}}, "2 not used: neck.deep.weight, neck.deep.bias"),
        ({"model": STATE, "head": HEAD}, "holds two models: head.weight is there twice"),
    ],
    ids=["other name", "list", "unknown", "twice"],
)
def test_tensors_beside_the_model_that_it_cannot_take_are_refused_by_name(
    load: Load, contents: dict[str, Any], what: str
) -> None:
    with pytest.raises(ModelError, match=what):
        load(contents, suffix="pth")


def test_states_of_training_and_single_numbers_beside_the_model_are_ignored(load: Load) -> None:
    beside = {
        "optimizer_states": [OPTIMIZER],
        "lr_schedulers": [{"last": torch.zeros(1)}],
        "scaler": {"scale": torch.ones(1)},
        "dino_loss": {"center": torch.zeros(1, 9)},
        "rng": {"cuda": [torch.zeros(9)]},
        "best_acc1": torch.tensor(0.9),
        "ema": {"decay": torch.tensor(0.9)},
        "args": {"lr": 1},
    }
    found, record = load({"state_dict": STATE, **beside}, suffix="pth")
    assert_equal(found, STATE)
    assert record.words == ("head: kept, 10 classes", "unwrapped: state_dict")


def test_averaged_weights_in_an_unknown_form_are_named_as_not_taken(load: Load) -> None:
    _, record = load({"model": STATE, "ema": {"shadow_params": list(OTHER.values())}}, suffix="pth")
    assert "unwrapped: model, not ema" in record.words


def test_the_predictor_beside_a_target_encoder_is_named(load: Load) -> None:
    contents = {"encoder": TRUNK, "predictor": {"x": torch.zeros(2)}, "target_encoder": TRUNK}
    words = load(contents, suffix="pth")[1].words
    assert words[1:] == ("unwrapped: target_encoder, not encoder, predictor", "not used: predictor")


@pytest.mark.parametrize(
    ("contents", "where", "taken"),
    [
        ({"student": STATE, "teacher": TRUNK}, "student", "teacher"),
        ({"model": STATE, "model_ema": under("module.", TRUNK)}, "model", "model_ema"),
        (STATE | under("ema.", TRUNK), "the names without prefix", "ema."),
        (under("student.", STATE) | under("teacher.backbone.", TRUNK), "student.", "teacher.backbone."),
        ({"encoder": TRUNK, "student": {"head.weight": HEAD["weight"]}}, "student", "encoder"),
    ],
    ids=["entries", "prefix inside", "prefix", "two prefixes", "parts"],
)
def test_a_preferred_model_without_the_classifier_of_the_other_is_refused(
    load: Load, contents: dict[str, Any], where: str, taken: str
) -> None:
    with pytest.raises(ModelError, match=f"has a classifier in {where}, but none in {taken}"):
        load(contents, suffix="pth")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_a_model_and_its_wrapped_double_are_refused_as_two_models(load: Load, prefix: str) -> None:
    for contents in (STATE | under(prefix, OTHER), under(prefix, OTHER) | STATE):
        with pytest.raises(ModelError, match="holds two models"):
            load(contents)


def test_two_names_of_one_tensor_are_refused(load: Load) -> None:
    with pytest.raises(ModelError, match=r"holds two models: cls_token and embeddings[.]cls_token"):
        load(hugging_face(STATE, "old", "", {}) | {"cls_token": STATE["cls_token"]})
