"""The trunk whose last block is lazy, against the plain formulation and against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adc_edge.method import adc
from adc_edge.method.spec import TrunkSpec
from adc_edge.method.trunk import Trunk

SPEC = TrunkSpec((16, 16), (4, 4), 3, 32, 2, 3, 64, position_tokens=17)


def make_trunk(spec: TrunkSpec = SPEC, seed: int = 0) -> Trunk:
    torch.manual_seed(seed)
    trunk = Trunk(spec)
    for parameter in trunk.parameters():
        nn.init.normal_(parameter, std=0.2)
    return trunk


def plain(trunk: Trunk, images: Tensor, init_rows: Tensor, slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """The paper's own order: the whole output first, then merge, then select."""
    x = trunk.embed(images)
    for block in trunk.blocks[:-1]:
        x = block(x)
    last = trunk.blocks[-1]
    q, k, _ = last.attn.all_three(last.norm1(x))  # type: ignore[operator, union-attr]
    attention = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)  # [B, H, N, N]
    scores = attention[:, :, 0].mean(1).detach()
    z = last(x)
    assignment, _ = adc.kmeans(scores, init_rows)
    clusters = range(len(init_rows))
    centroids = torch.stack([scores[assignment == t].mean(0) for t in clusters])
    tokens = adc.select_tokens(centroids, slots, trunk.spec.prefix)
    merged = torch.stack([z[assignment == t].mean(0) for t in clusters])
    return adc.gather_tokens(merged, tokens), assignment, tokens


@pytest.mark.parametrize(("images", "clusters", "slots"), [(2, 2, 1), (9, 4, 5), (12, 3, 16), (8, 8, 16)])
def test_the_lazy_last_block_equals_merging_the_whole_output(images: int, clusters: int, slots: int) -> None:
    trunk = make_trunk()
    x, init_rows = torch.randn(images, 3, 16, 16), torch.randperm(images)[:clusters]
    expected, assignment, tokens = plain(trunk, x, init_rows, slots)
    out = trunk.compress(x, init_rows, torch.zeros(slots, dtype=torch.int64))
    assert out.assignment.tolist() == assignment.tolist()
    assert out.tokens.tolist() == tokens.tolist()
    torch.testing.assert_close(out.activations, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 3])
def test_its_gradients_equal_those_of_the_plain_formulation(depth: int) -> None:
    spec = TrunkSpec((16, 16), (4, 4), 3, 32, 2, depth, 64, position_tokens=17, layer_scale=True, qk_norm=True)
    trunk = make_trunk(spec)
    x, init_rows = torch.randn(9, 3, 16, 16), torch.tensor([4, 0, 7])
    down = torch.randn(3, 6, 32)
    expected, assignment, tokens = plain(trunk, x, init_rows, 5)
    reference = torch.autograd.grad(expected, list(trunk.parameters()), down)
    replayed = trunk.replay(x, assignment, tokens)
    ours = torch.autograd.grad(replayed, list(trunk.parameters()), down)
    for (name, _), mine, theirs in zip(trunk.named_parameters(), ours, reference, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_its_gradient_is_the_derivative_by_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    membership = adc.membership
    monkeypatch.setattr(adc, "membership", lambda *of: membership(*of).double())  # differences need float64
    trunk = make_trunk().double()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    choice = torch.tensor([0, 1, 0, 0]), torch.tensor([[0, 3, 7], [0, 1, 16]])

    def loss(qkv: Tensor, fc1: Tensor) -> Tensor:
        state = {"trunk.blocks.0.attn.qkv.bias": qkv, "trunk.blocks.2.mlp.fc1.bias": fc1}
        activations = torch.func.functional_call(_Replay(trunk), state, (images, *choice))
        return activations.square().sum()  # type: ignore[no-any-return]

    biases = trunk.blocks[0].attn.qkv.bias, trunk.blocks[2].mlp.fc1.bias  # type: ignore[union-attr]
    free = tuple(b.detach().clone().requires_grad_() for b in biases)  # type: ignore[operator]
    assert torch.autograd.gradcheck(loss, free, eps=1e-6, atol=1e-4)


class _Replay(nn.Module):
    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor, assignment: Tensor, tokens: Tensor) -> Tensor:
        return self.trunk.replay(images, assignment, tokens)


@pytest.mark.parametrize("start", [0, 1, 2])
def test_a_replay_may_start_after_any_block_but_the_last(start: int) -> None:
    trunk = make_trunk()
    x, assignment, tokens = torch.randn(9, 3, 16, 16), torch.arange(9) % 4, torch.arange(12).reshape(4, 3)
    hidden = trunk.embed(x)
    for block in trunk.blocks[:start]:
        hidden = block(hidden)
    whole = trunk(x)
    merged = torch.stack([whole[assignment == t].mean(0)[tokens[t]] for t in range(4)])
    ours = trunk.replay(hidden if start else x, assignment, tokens, start=start)
    torch.testing.assert_close(ours, merged, rtol=1e-5, atol=1e-5)


def test_one_cluster_an_image_and_every_token_is_the_whole_output() -> None:
    trunk = make_trunk()
    x = torch.randn(5, 3, 16, 16)
    out = trunk.compress(x, torch.arange(5), torch.zeros(16, dtype=torch.int64))
    z = torch.zeros(5, 17, 32).scatter(1, out.tokens[:, :, None].expand(-1, -1, 32), out.activations)
    torch.testing.assert_close(z, trunk(x), rtol=1e-5, atol=1e-5)
