"""Attention-based Double Compression (ADC), as pure functions of tensors (paper, section "ADC").

This module imports no timm and touches no socket or file. Every function traces to ONNX with dynamic B, T and S:
loops are unrolled, masks are arithmetic, and no shape depends on a value.

Scores, distances and means are computed in FP32, whatever the blocks compute in, also under autocast. In FP16 no batch
keeps its assignments on raw scores, and 95 of 100 keep them on centred scores.

Shapes:
    B images, N tokens (the P prefix tokens first, CLS at 0), D channels, H heads,
    T clusters, S kept patch tokens, k = P + S kept tokens in all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

LLOYD_ITERATIONS = 10

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _without_autocast(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run ``function`` without autocast, which would round its matrix products."""

    @functools.wraps(function)
    def plain(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        device = next(arg.device.type for arg in args if isinstance(arg, Tensor))
        if not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return plain


@_without_autocast
def cls_attention(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Return the CLS row of a block's softmax attention, averaged over the heads (paper, step 1).

    Args:
        query: CLS queries, ``[B, H, 1, d]``.
        keys: keys of all tokens, ``[B, H, N, d]``.
        scale: factor on the logits, usually ``d ** -0.5``.

    Returns:
        Scores ``[B, N]``, at least float32; each row sums to one. Detached: the choice has no gradient.
    """
    logits = (_at_least_fp32(query.detach()) * scale) @ _at_least_fp32(keys.detach()).transpose(-2, -1)  # [B, H, 1, N]
    return logits.softmax(dim=-1).squeeze(2).mean(dim=1)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def membership(assignment: Tensor, clusters: Tensor) -> Tensor:
    """Return one-hot memberships: assignment ``[B]`` and cluster ids ``[T]`` -> float ``[T, B]``."""
    return (assignment.unsqueeze(0) == clusters.unsqueeze(1)).to(torch.float32)


@_without_autocast
def kmeans(scores: Tensor, init_rows: Tensor, iterations: int = LLOYD_ITERATIONS) -> tuple[Tensor, Tensor]:
    """Cluster the score rows by Lloyd's k-means, started from rows of the batch (paper, step 2).

    Rows are centred and scaled first: raw rows lie close together, and their expanded distances flip assignments in
    FP32. A cluster that loses all members keeps its centroid.

    Args:
        scores: ``[B, N]``.
        init_rows: distinct rows that start the clusters, int64 ``[T]``.
        iterations: Lloyd iterations, unrolled.

    Returns:
        ``assignment`` int64 ``[B]`` with values in ``[0, T)``, and ``counts`` int64 ``[T]``.
    """
    rows = scores - scores.mean(dim=0, keepdim=True)
    rows = rows / rows.abs().flatten().amax(dim=0).clamp_min(torch.finfo(rows.dtype).tiny)
    clusters = torch.arange(init_rows.shape[0], device=scores.device)
    centroids = rows.index_select(0, init_rows)  # [T, N]
    for step in range(iterations):
        distances = centroids.square().sum(dim=1) - 2.0 * (rows @ centroids.T)  # [B, T], less |row|^2
        assignment = distances.argmin(dim=1)
        members = membership(assignment, clusters).to(rows.dtype)  # [T, B]
        counts = members.sum(dim=1, keepdim=True)
        if step + 1 < iterations:
            centroids = torch.where(counts > 0, (members @ rows) / counts.clamp_min(1.0), centroids)
    return assignment, counts.squeeze(1).to(torch.int64)


@_without_autocast
def cluster_mean(values: Tensor, assignment: Tensor, clusters: Tensor) -> Tensor:
    """Return the mean of each cluster's members, ``[B, ...]`` -> ``[T, ...]``; zeros if it has none (paper, step 2)."""
    members = membership(assignment, clusters)
    weights = members / members.sum(dim=1, keepdim=True).clamp_min(1.0)  # [T, B]
    rows = _at_least_fp32(values).flatten(1)
    return (weights.to(rows.dtype) @ rows).to(values.dtype).reshape(-1, *values.shape[1:])


def select_tokens(centroids: Tensor, kept: int, prefix: int) -> Tensor:
    """Return the prefix tokens and the ``kept`` patch tokens with the largest centroid scores (paper, step 3).

    Args:
        centroids: mean scores of each cluster, ``[T, N]``.
        kept: S, patch tokens to keep, ``1 <= S <= N - P``.
        prefix: P.

    Returns:
        Token indices int64 ``[T, P + S]``, the prefix first.
    """
    best = centroids[:, prefix:].topk(kept, dim=1, sorted=True).indices + prefix  # TensorRT refuses sorted=False
    first = torch.arange(prefix, device=centroids.device).expand(centroids.shape[0], -1)
    return torch.cat((first, best), dim=1)


def gather_tokens(x: Tensor, tokens: Tensor) -> Tensor:
    """Return the rows of ``x`` ``[B, N, D]`` at ``tokens`` ``[B, k]``: ``[B, k, D]``."""
    return x.gather(1, tokens.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
