"""A timm VisionTransformer cut into Trunk and Head (host only).

Beside this module only `weights/adapting.py` imports timm in the core.
The trunk is rebuilt from its spec and its weights are loaded strictly by name. A part that the trunk cannot express
shows as a name or a number that differs, and is refused. The head is timm's model without its first blocks.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

import msgspec
import timm
import torch
from timm.layers import Mlp, PatchEmbed
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from adc_edge.data.preprocessing import Interpolation, Preprocessing
from adc_edge.errors import ModelError
from adc_edge.method.spec import TrunkSpec
from adc_edge.method.trunk import Trunk
from adc_edge.storage.bundle import Manifest
from adc_edge.weights.fitting import LoadedWeights, fit_weights, read_weights, weights_of
from adc_edge.weights.opening import check_origin

_TOLERANCE = 1e-4
_SUPPORTED = "a timm VisionTransformer with a CLS token (DeiT, ViT, distilled, DINOv2 with registers)"


class Head(nn.Module):
    """Blocks split+1..L, norm and classifier of a VisionTransformer: ``[T, k, D]`` -> logits ``[T, C]``.

    ``vit`` keeps timm's parameter names (``blocks.6.…`` for split 6); its first blocks are empty.
    """

    def __init__(self, vit: VisionTransformer, split: int) -> None:
        super().__init__()
        self.vit = copy.deepcopy(vit)
        for name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
            if getattr(self.vit, name, None) is not None:
                setattr(self.vit, name, None)
        self.vit.patch_embed = self.vit.norm_pre = nn.Identity()
        for index in range(split):
            self.vit.blocks[index] = nn.Identity()

    def forward(self, activations: Tensor) -> Tensor:
        """Return the logits; any subset of tokens is valid, since positions were added at the embedding."""
        x = self.vit.norm(self.vit.blocks(activations))
        return self.vit.forward_head(x)  # type: ignore[no-any-return]


def create_vit(
    model: str,
    model_args: Mapping[str, Any],
    classes: int | None,
    weights: Path | None = None,
    pretrained: bool = False,
    allow_missing: Sequence[str] = (),
) -> VisionTransformer:
    """Create a timm model as ``load_vit`` does, and return it alone."""
    return load_vit(model, model_args, classes, weights, pretrained, allow_missing)[0]


def load_vit(
    model: str,
    model_args: Mapping[str, Any],
    classes: int | None,
    weights: Path | None = None,
    pretrained: bool = False,
    allow_missing: Sequence[str] = (),
) -> tuple[VisionTransformer, LoadedWeights | None]:
    """Create a timm model, with weights from a file or from timm's hub; return the record of what was loaded too.

    Args:
        model: its name in timm.
        model_args: arguments of ``timm.create_model``.
        classes: C of the classifier; None takes the weights' own, or without weights timm's.
        weights: a weights file; it goes before ``pretrained``.
        pretrained: whether timm's weights are downloaded.
        allow_missing: patterns of tensors that may be missing or unused, as in ``fit_weights``.

    Raises:
        ModelError: timm cannot make the model with these arguments, it is no VisionTransformer, or the weights do not
            fit it.
        SettingError: ``allow_missing`` without weights.
    """
    check_origin(weights, pretrained, allow_missing)
    arguments = {name: value for name, value in model_args.items() if name != "num_classes"}
    classes = model_args.get("num_classes") if classes is None else classes
    if weights is not None:
        source = read_weights(weights)
    elif pretrained:
        source = weights_of(_timm_vit(model, arguments, None, True), f"timm's hub for {model}")
    else:
        return _timm_vit(model, arguments, classes), None
    vit = _timm_vit(model, arguments, source.classes if classes is None else classes)
    loaded = fit_weights(vit, model, source, allow_missing)
    if classes is None and source.classes is None and not any(fnmatchcase("head.weight", p) for p in allow_missing):
        raise ModelError(
            f"{source.name} has no classifier of {model}", "the number of classes of a new one", "add --num-classes N"
        )
    return vit, loaded


def _timm_vit(
    model: str, arguments: Mapping[str, Any], classes: int | None, pretrained: bool = False
) -> VisionTransformer:
    if "checkpoint_path" in arguments:
        raise ModelError("--model-arg checkpoint_path", "weights given with --weights", "use --weights FILE")
    extra = dict(arguments) if classes is None else {**arguments, "num_classes": classes}
    try:
        vit = timm.create_model(model, pretrained=pretrained, **extra)
    except Exception as error:  # timm raises whatever it met: RuntimeError, TypeError, KeyError, OSError, hub errors
        raise ModelError(
            f"timm cannot make {model!r}: {type(error).__name__}: {error}",
            "a model name, arguments and weights that timm takes",
            _remedy(model, str(error), pretrained),
        ) from error
    if not isinstance(vit, VisionTransformer):
        raise ModelError(f"{model} is a {type(vit).__name__}", _SUPPORTED, "for example --model deit_tiny_patch16_224")
    return vit


def _remedy(model: str, error: str, pretrained: bool) -> str:
    """Return the remedy for what timm said."""
    if "unexpected keyword argument" in error:
        return "mend or leave out that --model-arg"
    if "Unknown model" in error and (near := difflib.get_close_matches(model, timm.list_models(), n=2)):
        return f"do you mean {' or '.join(near)}?"
    if pretrained:
        return "without a network name a weights file with --weights"
    return "list names with python -c \"import timm; print(timm.list_models('*vit*'))\""


def split_vit(vit: VisionTransformer, split: int) -> tuple[Trunk, Head]:
    """Cut a model after block ``split``; each half owns a copy of its weights.

    Raises:
        ModelError: the model has no CLS token, ``split`` is outside 1..L-1, no image fits the model, or the trunk
            cannot express a part.
    """
    depth = len(vit.blocks)
    if not vit.has_class_token:
        raise ModelError(
            "a model without a CLS token", "one with it: ADC reads the CLS row of attention", f"use {_SUPPORTED}"
        )
    if not 1 <= split <= depth - 1:
        raise ModelError(f"--split {split}", f"1 to {depth - 1} for a model of {depth} blocks", "choose one of those")
    _refuse_images(vit)
    trunk = Trunk(trunk_spec(vit, split))
    wanted = trunk.state_dict().keys()
    mine = {name: value for name, value in vit.state_dict().items() if _in_trunk(name, split)}
    if wanted != mine.keys():
        raise _unsupported(f"parameters {sorted(wanted ^ mine.keys())[:4]}")
    trunk.load_state_dict(mine)
    trunk.eval()
    _check_equal(vit, trunk, split)
    return trunk, Head(vit, split)


def _refuse_images(vit: VisionTransformer) -> None:
    """Refuse an image size with rows that no patch covers, and channels that no data source has."""
    channels = vit.patch_embed.proj.in_channels
    if channels not in (1, 3):
        raise ModelError(f"in_chans={channels}", "1 (grey) or 3 (RGB), which images have", "use --model-arg in_chans=3")
    for size, patch in zip(vit.patch_embed.img_size, vit.patch_embed.patch_size, strict=True):
        if size % patch:
            sizes = [n for n in (size // patch * patch, (size // patch + 1) * patch) if n]
            raise ModelError(
                f"an image size of {size} with patches of {patch}: the last {size % patch} rows would be dropped",
                f"a multiple of {patch}: {' or '.join(map(str, sizes))}",
                f"use --img-size {sizes[-1]}",
            )


def head_from_manifest(manifest: Manifest) -> Head:
    """Return the head that a bundle describes, with newly initialised weights."""
    return Head(create_vit(manifest.model, manifest.model_args, manifest.classes), manifest.split)


def preprocessing(vit: VisionTransformer, crop_pct: float | None = None) -> Preprocessing:
    """Return the preprocessing in timm's configuration of the model, with ``crop_pct`` in place of its own if given."""
    config = timm.data.resolve_model_data_config(vit)
    mean, std = (tuple(float(v) for v in config[key]) for key in ("mean", "std"))
    if vit.patch_embed.proj.in_channels == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    interpolation: Interpolation = "bicubic"  # also for timm's "random"
    for known in get_args(Interpolation):
        interpolation = known if known == config["interpolation"] else interpolation
    height, width = vit.patch_embed.img_size
    crop_pct = crop_pct or float(config["crop_pct"])
    return Preprocessing((height, width), mean, std, interpolation, crop_pct, config["crop_mode"])


def trunk_spec(vit: VisionTransformer, split: int) -> TrunkSpec:
    """Return the architecture of a model's first ``split`` blocks.

    Raises:
        ModelError: the trunk cannot express a part of them.
    """
    blocks, embed = list(vit.blocks[:split]), vit.patch_embed
    if type(embed) is not PatchEmbed or not all(type(block) is Block for block in blocks):
        raise _unsupported(f"{type(embed).__name__} and {type(blocks[0]).__name__}")
    attn, mlp = blocks[0].attn, blocks[0].mlp
    if type(attn) is not Attention or type(mlp) is not Mlp:
        raise _unsupported(f"{type(attn).__name__} and {type(mlp).__name__}")
    if vit.dynamic_img_size:
        raise _unsupported("dynamic_img_size")
    _refuse_dropout(vit, split)
    try:
        return msgspec.convert(_spec_fields(vit, split), TrunkSpec)
    except msgspec.ValidationError as error:
        raise _unsupported(str(error)) from None


def _spec_fields(vit: VisionTransformer, split: int) -> dict[str, Any]:
    block, embed = vit.blocks[0], vit.patch_embed
    return {
        "image_size": embed.img_size,
        "patch_size": embed.patch_size,
        "channels": embed.proj.in_channels,
        "embed_dim": vit.embed_dim,
        "heads": block.attn.num_heads,
        "depth": split,
        "mlp_dim": block.mlp.fc1.out_features,
        "register_tokens": vit.num_reg_tokens,
        "distilled": getattr(vit, "dist_token", None) is not None,
        "position_tokens": 0 if vit.pos_embed is None else vit.pos_embed.shape[1],
        "patch_bias": embed.proj.bias is not None,
        "patch_norm": isinstance(embed.norm, nn.LayerNorm),
        "pre_norm": isinstance(vit.norm_pre, nn.LayerNorm),
        "qkv_bias": block.attn.qkv.bias is not None,
        "qk_norm": isinstance(block.attn.q_norm, nn.LayerNorm),
        "proj_bias": block.attn.proj.bias is not None,
        "layer_scale": hasattr(block.ls1, "gamma"),
        "norm_eps": getattr(block.norm1, "eps", None),
        "activation": _activation(block.mlp.act),
    }


def _activation(act: nn.Module) -> str:
    name = type(act).__name__
    if name in ("GELU", "GELUTanh"):
        tanh = name == "GELUTanh" or getattr(act, "approximate", "none") == "tanh"
        return "gelu_tanh" if tanh else "gelu"
    return {"QuickGELU": "quick_gelu", "QuickGELUQuant": "quick_gelu"}.get(name, name)


def _refuse_dropout(vit: VisionTransformer, split: int) -> None:
    """Refuse dropout: the trunk is computed twice (engine and recompute), so nothing in it may be random."""
    parts = [vit.pos_drop, vit.patch_drop, *vit.blocks[:split].modules()]
    for part in parts:
        rate = getattr(part, "p", getattr(part, "drop_prob", getattr(part, "prob", 0.0)))
        if isinstance(rate, float) and rate > 0.0 and "Drop" in type(part).__name__:
            raise ModelError(
                f"{type(part).__name__}({rate}) in the trunk",
                "no dropout before the split: the device computes the trunk twice and both must agree",
                "export without drop rates (drop_rate, before the classifier, is fine)",
            )


def _in_trunk(name: str, split: int) -> bool:
    parts = name.split(".")
    if parts[0] == "blocks":
        return int(parts[1]) < split
    return parts[0] in {"cls_token", "dist_token", "reg_token", "pos_embed", "patch_embed", "norm_pre"}


@torch.no_grad()
def _check_equal(vit: VisionTransformer, trunk: Trunk, split: int) -> None:
    """Raise ModelError unless the trunk computes what timm computes."""
    was_training = vit.training
    images = torch.randn(2, trunk.spec.channels, *trunk.spec.image_size, generator=torch.Generator().manual_seed(0))
    vit.eval()
    x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
    expected = vit.blocks[:split](x)
    vit.train(was_training)
    worst = float((trunk(images) - expected).abs().max() / expected.abs().max())
    if not worst <= _TOLERANCE:
        raise _unsupported(f"a forward pass that differs by {worst:.1e} from ours")


def _unsupported(what: str) -> ModelError:
    return ModelError(f"a model with {what}", _SUPPORTED, "for example --model deit_tiny_patch16_224")
