"""The architecture of a trunk, as plain numbers: a device reads it without torch or timm."""

from __future__ import annotations

from typing import Literal

import msgspec


class TrunkSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Architecture of a trunk: blocks 1..depth of a VisionTransformer.

    ``position_tokens`` is the length of the position embedding: N, N - P (prefix tokens not embedded) or 0 (none).
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    channels: int
    embed_dim: int
    heads: int
    depth: int
    mlp_dim: int
    register_tokens: int = 0
    distilled: bool = False
    position_tokens: int = 0
    patch_bias: bool = True
    patch_norm: bool = False
    pre_norm: bool = False
    qkv_bias: bool = True
    qk_norm: bool = False
    proj_bias: bool = True
    layer_scale: bool = False
    norm_eps: float = 1e-6
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"

    @property
    def prefix(self) -> int:
        """Prefix tokens P: CLS, then the distillation token or the registers."""
        return 1 + int(self.distilled) + self.register_tokens

    @property
    def patches(self) -> int:
        """Number of patch tokens of one image."""
        (height, width), (down, across) = self.image_size, self.patch_size
        return (height // down) * (width // across)

    @property
    def tokens(self) -> int:
        """Number of tokens N of one image: prefix and patches."""
        return self.prefix + self.patches
