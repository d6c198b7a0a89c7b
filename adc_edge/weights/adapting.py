"""Tensors of a file adapted to a model: patches, input channels and position embeddings, as timm does it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isqrt
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import adapt_input_conv
from torch import Tensor

from adc_edge.weights.naming import Parts

_TOKENS = ("cls_token", "dist_token", "reg_token", "pos_embed")  # [1, n, D]; some files keep [D] or [n, D]
_PATCHES = "patch_embed.proj.weight"
_PREFIX_TOKENS = range(6)


def timm_value(name: str, parts: Parts) -> Tensor:
    """Return a tensor of the file as float32 in timm's layout."""
    value = torch.cat([part.value.float() for part in parts]) if len(parts) > 1 else parts[0].value.float()
    return value.reshape(1, -1, value.shape[-1]) if name in _TOKENS and 1 <= value.ndim < 3 else value


def adapted(
    values: dict[str, Tensor], own: Mapping[str, Tensor], vit: Any, flexi: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Adapt patches and positions to a model's sizes, as timm does; return the words for it too.

    Args:
        values: the file's tensors.
        own: the model's.
        vit: the VisionTransformer.
        flexi: whether it is a FlexiViT, for which timm resamples in another way.
    """
    how = (
        {"interpolation": "bilinear", "antialias": False} if flexi else {"interpolation": "bicubic", "antialias": True}
    )
    values, words = dict(values), list[str]()
    if _PATCHES in values:
        values[_PATCHES] = _adapt_patches(values[_PATCHES], own[_PATCHES], how, words)
    if "pos_embed" in values and values["pos_embed"].shape[1] != own["pos_embed"].shape[1]:
        _adapt_positions(values, vit, how, words)
    return values, words


def _adapt_patches(value: Tensor, own: Tensor, how: Mapping[str, Any], words: list[str]) -> Tensor:
    if value.ndim != 4:
        return value
    channels, size, own_channels, own_size = value.shape[1], value.shape[2:], own.shape[1], own.shape[2:]
    if size != own_size:
        value = resample_patch_embed(value, list(own_size), **how)
        words.append(f"patches resampled from {_across(size)} to {_across(own_size)}")
    if channels != own_channels:
        value = adapt_input_conv(own_channels, value, base_chans=channels)
        words.append(f"patches adapted from {channels} to {own_channels} channels")
    return value


def _adapt_positions(values: dict[str, Tensor], vit: Any, how: Mapping[str, Any], words: list[str]) -> None:
    """Resample position embeddings to the model's grid; add CLS's own to the CLS token, or give it none, if need be.

    The file's grid must be square. Nothing changes if the numbers of prefix tokens differ in another way.
    """
    value, prefix, grid = (
        values["pos_embed"],
        0 if vit.no_embed_class else vit.num_prefix_tokens,
        vit.patch_embed.grid_size,
    )
    length = value.shape[1]
    found = next((p for p in (prefix, *_PREFIX_TOKENS) if length > p and isqrt(length - p) ** 2 == length - p), None)
    if found is None or (found != prefix and {found, prefix} != {0, 1}):
        return
    side = isqrt(length - found)
    if (found, prefix) == (1, 0) and "cls_token" in values:
        values["cls_token"], value = values["cls_token"] + value[:, :1], value[:, 1:]
        words.append("position of CLS added to its token")
    elif (found, prefix) == (0, 1):
        value = torch.cat([torch.zeros_like(value[:, :1]), value], dim=1)
        words.append("no position for CLS")
    if (side, side) != tuple(grid):
        value = resample_abs_pos_embed(value, list(grid), [side, side], num_prefix_tokens=prefix, **how)
        words.append(f"positions resampled from {side}x{side} to {_across(grid)}")
    values["pos_embed"] = value


def _across(size: Iterable[int]) -> str:
    return "x".join(map(str, size))
