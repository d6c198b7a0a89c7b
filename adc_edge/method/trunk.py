"""The client half of a VisionTransformer in plain torch, under timm's parameter names.

The device trains this module and the exporter traces it, so it must not import timm, which imports torchvision (hard to
install on a Jetson). It differs from timm in one thing only: the last block can compute just what ADC sends. Frozen
blocks need not be computed again: ``replay`` can start from another engine's output of them.

Shapes: B images, N = P + patches tokens, D channels, H heads of d channels, T clusters, k = P + S kept tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adc_edge.method import adc
from adc_edge.method.spec import TrunkSpec


class AdcOutput(NamedTuple):
    """Output of ADC for a batch; clusters with ``counts == 0`` are meaningless and are not sent."""

    activations: Tensor  # [T, k, D] float32
    assignment: Tensor  # [B] int64
    tokens: Tensor  # [T, k] int64
    counts: Tensor  # [T] int64


class Inspected(NamedTuple):
    """``AdcOutput``, and the scores from which clusters and tokens were chosen."""

    compressed: AdcOutput
    scores: Tensor  # [B, N] float32


class _QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "quick_gelu": _QuickGelu,
}


class _LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _PatchEmbed(nn.Module):
    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.proj = nn.Conv2d(spec.channels, spec.embed_dim, spec.patch_size, spec.patch_size, bias=spec.patch_bias)
        self.norm = nn.LayerNorm(spec.embed_dim, spec.norm_eps) if spec.patch_norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        patches: Tensor = self.norm(self.proj(images).flatten(2).transpose(1, 2))  # [B, patches, D]
        return patches


class _Attention(nn.Module):
    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.heads, self.head_dim = spec.heads, spec.embed_dim // spec.heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(spec.embed_dim, 3 * spec.embed_dim, bias=spec.qkv_bias)
        self.q_norm = nn.LayerNorm(self.head_dim, spec.norm_eps) if spec.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim, spec.norm_eps) if spec.qk_norm else nn.Identity()
        self.proj = nn.Linear(spec.embed_dim, spec.embed_dim, bias=spec.proj_bias)

    def _project(self, h: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
        """Parts ``first..last`` of (q, k, v) of ``h`` ``[B, n, D]``, each ``[B, H, n, d]``."""
        rows = slice(first * h.shape[-1], last * h.shape[-1])
        bias = None if self.qkv.bias is None else self.qkv.bias[rows]
        parts = F.linear(h, self.qkv.weight[rows], bias)
        split = parts.reshape(h.shape[0], h.shape[1], last - first, self.heads, self.head_dim)
        # Unbinding before transposing saves a copy: the backward stacks straight into the layout of `parts`.
        return tuple(part.transpose(1, 2) for part in split.unbind(2))

    def queries(self, h: Tensor) -> Tensor:
        (q,) = self._project(h, 0, 1)
        return self.q_norm(q)  # type: ignore[no-any-return]

    def keys_values(self, h: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self._project(h, 1, 3)
        return self.k_norm(k), v

    def all_three(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self._project(h, 0, 3)
        return self.q_norm(q), self.k_norm(k), v

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(q, k, v)  # [B, H, n, d]
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _Mlp(nn.Module):
    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.fc1 = nn.Linear(spec.embed_dim, spec.mlp_dim, bias=spec.proj_bias)
        self.act = _ACTIVATIONS[spec.activation]()
        self.fc2 = nn.Linear(spec.mlp_dim, spec.embed_dim, bias=spec.proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.embed_dim, spec.norm_eps)
        self.attn = _Attention(spec)
        self.ls1 = _LayerScale(spec.embed_dim) if spec.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(spec.embed_dim, spec.norm_eps)
        self.mlp = _Mlp(spec)
        self.ls2 = _LayerScale(spec.embed_dim) if spec.layer_scale else nn.Identity()

    def finish(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the block's output at the tokens of ``x`` and ``q`` alone, which attend to all of ``k`` and ``v``."""
        x = x + self.ls1(self.attn(q, k, v))
        return x + self.ls2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]

    def finish_merged(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, assignment: Tensor, clusters: Tensor) -> Tensor:
        """Return ``finish``, then the mean over each cluster's images: ``[T, n, D]``.

        fc2, after the activation function, is linear. So the mean is taken before it, and fc2 sees T images, not B.
        """
        x = x + self.ls1(self.attn(q, k, v))  # [B, n, D]
        active = self.mlp.act(self.mlp.fc1(self.norm2(x)))  # [B, n, mlp_dim]
        merged = adc.cluster_mean(active, assignment, clusters)
        return adc.cluster_mean(x, assignment, clusters) + self.ls2(self.mlp.fc2(merged))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(x, *self.attn.all_three(self.norm1(x)))


class Trunk(nn.Module):
    """Patch embedding, position embedding and blocks 1..split; the state dict has timm's names and layouts."""

    def __init__(self, spec: TrunkSpec) -> None:
        super().__init__()
        self.spec = spec
        dim = spec.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if spec.distilled else None
        self.reg_token = nn.Parameter(torch.zeros(1, spec.register_tokens, dim)) if spec.register_tokens else None
        self.pos_embed = nn.Parameter(torch.zeros(1, spec.position_tokens, dim)) if spec.position_tokens else None
        self.patch_embed = _PatchEmbed(spec)
        self.norm_pre = nn.LayerNorm(dim, spec.norm_eps) if spec.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(_Block(spec) for _ in range(spec.depth))

    def embed(self, images: Tensor) -> Tensor:
        """Return the tokens that enter block 1: ``[B, C, H, W]`` -> ``[B, N, D]``."""
        x = self.patch_embed(images)
        extra = [p for p in (self.cls_token, self.dist_token, self.reg_token) if p is not None]
        prefix = [p.expand(x.shape[0], -1, -1) for p in extra]
        if self.pos_embed is not None and self.spec.position_tokens == self.spec.patches:
            x = torch.cat([*prefix, x + self.pos_embed], dim=1)
        else:
            x = torch.cat([*prefix, x], dim=1)
            x = x if self.pos_embed is None else x + self.pos_embed
        return self.norm_pre(x)  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Return block ``split``'s full output, without ADC: ``[B, C, H, W]`` -> ``[B, N, D]``."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return x

    def states(self, x: Tensor, start: int = 0) -> list[Tensor]:
        """Return the inputs of blocks ``start + 1 .. split``, each ``[B, N, D]``.

        Args:
            x: images ``[B, C, H, W]``; with ``start`` > 0 the output of block ``start``, ``[B, N, D]``.
            start: number of blocks already applied to ``x``, ``0 <= start < split``.
        """
        states = [x if start else self.embed(x)]
        for block in self.blocks[start:-1]:
            states.append(block(states[-1]))
        return states

    def compress(self, images: Tensor, init_rows: Tensor, slots: Tensor) -> AdcOutput:
        """Run trunk and ADC on images ``[B, C, H, W]``; see ``compress_last``."""
        return self.compress_last(self.states(images)[-1], init_rows, slots)

    def compress_last(self, x: Tensor, init_rows: Tensor, slots: Tensor) -> AdcOutput:
        """Run the last block and ADC together, so that the block computes only what is sent (paper, steps 1-3).

        The CLS row needs one query and the keys of all tokens. Queries, attention output and MLP follow for the chosen
        tokens alone. The result equals merging and selecting from the full output.

        Args:
            x: input of the last block, ``[B, N, D]``.
            init_rows: rows of the batch that start k-means, distinct, int64 ``[T]``.
            slots: int64 ``[S]``; only its length S counts, the number of patch tokens to keep.
        """
        return self.inspect_last(x, init_rows, slots).compressed

    def inspect_last(self, x: Tensor, init_rows: Tensor, slots: Tensor) -> Inspected:
        """Return the output of ``compress_last``, and its scores."""
        last, h, k, v = self._keys_values(x)
        scores = adc.cls_attention(last.attn.queries(h[:, :1]), k, last.attn.scale)  # [B, N]
        assignment, counts = adc.kmeans(scores, init_rows)
        centroids = adc.cluster_mean(scores, assignment, torch.arange(init_rows.shape[0], device=x.device))
        tokens = adc.select_tokens(centroids, slots.shape[0], self.spec.prefix)
        compressed = AdcOutput(_sent(last, x, h, k, v, assignment, tokens), assignment, tokens, counts)
        return Inspected(compressed, scores)

    def replay(self, x: Tensor, assignment: Tensor, tokens: Tensor, start: int = 0) -> Tensor:
        """Return the activations ``[T, k, D]``, with autograd, for the clusters and tokens that an engine chose.

        Args:
            x: images ``[B, C, H, W]``; with ``start`` > 0 the output of block ``start``, ``[B, N, D]``.
            assignment: int64 ``[B]`` in ``[0, T)``.
            tokens: int64 ``[T, k]``.
            start: number of blocks already applied to ``x``, ``0 <= start < split``.
        """
        x = self.states(x, start)[-1]
        last, h, k, v = self._keys_values(x)
        return _sent(last, x, h, k, v, assignment, tokens)

    def _keys_values(self, x: Tensor) -> tuple[_Block, Tensor, Tensor, Tensor]:
        """The last block, its normed input, and its keys and values of all tokens."""
        last = self.blocks[-1]
        assert isinstance(last, _Block)
        h = last.norm1(x)
        return last, h, *last.attn.keys_values(h)


def _sent(last: _Block, x: Tensor, h: Tensor, k: Tensor, v: Tensor, assignment: Tensor, tokens: Tensor) -> Tensor:
    """The last block at each image's chosen tokens, merged: ``[T, k, D]``."""
    mine = tokens.index_select(0, assignment)  # [B, k]
    q = last.attn.queries(adc.gather_tokens(h, mine))
    clusters = torch.arange(tokens.shape[0], device=x.device)
    return last.finish_merged(adc.gather_tokens(x, mine), q, k, v, assignment, clusters)
