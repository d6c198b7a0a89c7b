"""The optimizer of either half, against plain torch.optim."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from adc_edge.errors import CheckpointError
from adc_edge.optimizer.settings import OptimizerSettings, learning_rate
from adc_edge.optimizer.torch_optimizer import Optimizer
from adc_edge.storage.checkpoint import load_checkpoint, save_checkpoint

Name = Literal["adamw", "adam", "sgd"]
NAMES: tuple[Name, ...] = ("adamw", "adam", "sgd")


class Tiny(nn.Module):
    """A matrix, a bias, and the tokens that timm does not decay."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 6))
        self.reg_token = nn.Parameter(torch.randn(1, 2, 6))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 6))
        self.mix = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.cls_token, self.reg_token, self.pos_embed], dim=1)
        y: Tensor = self.norm(self.mix(x + tokens))
        return y


DECAYED = {"mix.weight"}


def learn(module: nn.Module, step: int) -> None:
    """Leave the gradients of one step."""
    x = torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(step))
    target = torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(1000 + step))
    (module(x) - target).square().mean().backward()


def reference(module: Tiny, settings: OptimizerSettings) -> torch.optim.Optimizer:
    named = dict(module.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in named.items() if n in DECAYED], "weight_decay": settings.weight_decay},
        {"params": [p for n, p in named.items() if n not in DECAYED], "weight_decay": 0.0},
    ]
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=True)
    kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, fused=True)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# schedule


def test_a_constant_rate_stays_where_it_is() -> None:
    assert [learning_rate(OptimizerSettings(lr=0.5), step, 10) for step in (0, 5, 10, 99)] == [0.5] * 4


def test_warm_up_rises_in_equal_steps_to_the_full_rate() -> None:
    settings = OptimizerSettings(lr=1.0, warmup_steps=4)
    assert [learning_rate(settings, step, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_the_cosine_is_torchs() -> None:
    settings = OptimizerSettings(lr=0.2, schedule="cosine")
    plain = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(plain, T_max=20)
    for step in range(21):
        assert learning_rate(settings, step, 20) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        plain.step()
        theirs.step()


def test_the_cosine_follows_the_warm_up_and_ends_at_zero() -> None:
    settings = OptimizerSettings(lr=1.0, schedule="cosine", warmup_steps=10)
    assert learning_rate(settings, 9, 110) == 1.0
    assert learning_rate(settings, 10, 110) == 1.0
    assert learning_rate(settings, 60, 110) == pytest.approx(0.5)
    assert learning_rate(settings, 110, 110) == pytest.approx(0.0)
    assert learning_rate(settings, 500, 110) == pytest.approx(0.0)


def test_the_length_of_the_schedule_can_be_set_apart_from_the_steps_planned() -> None:
    settings = OptimizerSettings(lr=1.0, schedule="cosine", schedule_steps=40)
    assert learning_rate(settings, 10, 1000) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize("planned", [0, 3])
def test_a_run_of_unknown_length_or_of_warm_up_alone_keeps_its_rate(planned: int) -> None:
    settings = OptimizerSettings(lr=1.0, schedule="cosine", warmup_steps=3)
    assert learning_rate(settings, 3, planned) == 1.0


# update


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_steps_equal_plain_torch_bit_for_bit(name: Name, clip_norm: float) -> None:
    settings = OptimizerSettings(name, lr=0.01, weight_decay=0.1, momentum=0.8, clip_norm=clip_norm)
    ours, theirs = Tiny(), Tiny()
    optimizer, plain = Optimizer(ours, settings), reference(theirs, settings)
    before = Tiny()
    for step in range(6):
        learn(ours, step)
        learn(theirs, step)
        optimizer.step(step, 6)
        if clip_norm:
            norm = nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm)
            assert norm > clip_norm
        plain.step()
        plain.zero_grad()
        assert same(ours, theirs), step
    assert not any(torch.equal(p, q) for p, q in zip(ours.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_schedule_is_followed(name: Name) -> None:
    settings = OptimizerSettings(name, lr=0.01, schedule="cosine", warmup_steps=2)
    ours, theirs = Tiny(), Tiny()
    optimizer, plain = Optimizer(ours, settings), reference(theirs, settings)
    for step in range(8):
        learn(ours, step)
        learn(theirs, step)
        optimizer.step(step, 8)
        for group in plain.param_groups:
            group["lr"] = learning_rate(settings, step, 8)
        plain.step()
        plain.zero_grad()
    assert same(ours, theirs)


def test_weight_decay_pulls_matrices_and_leaves_vectors_and_tokens_alone() -> None:
    module, before = Tiny(), dict(Tiny().named_parameters())
    optimizer = Optimizer(module, OptimizerSettings("sgd", lr=0.1, weight_decay=0.5, momentum=0.0))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0, 1)
    for name, parameter in module.named_parameters():
        factor = 0.95 if name in DECAYED else 1.0
        torch.testing.assert_close(parameter, before[name] * factor, msg=name)


def test_gradients_are_cleared_after_a_step() -> None:
    module = Tiny()
    optimizer = Optimizer(module, OptimizerSettings())
    learn(module, 0)
    optimizer.step(0, 1)
    assert all(p.grad is None for p in module.parameters())


def test_frozen_parameters_are_left_out() -> None:
    module = Tiny()
    module.mix.requires_grad_(False)
    optimizer = Optimizer(module, OptimizerSettings(weight_decay=0.5))
    learn(module, 0)
    optimizer.step(0, 1)
    assert torch.equal(module.mix.weight, Tiny().mix.weight)
    assert not torch.equal(module.pos_embed, Tiny().pos_embed)
    assert {name.partition(".")[0] for name in optimizer.arrays()} == {str(i) for i in range(5)}


# checkpoint


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_run_continues_bit_for_bit(name: Name, tmp_path: Path) -> None:
    settings = OptimizerSettings(name, lr=0.01, weight_decay=0.1, clip_norm=0.05, schedule="cosine", warmup_steps=2)
    module = Tiny()
    optimizer = Optimizer(module, settings)
    for step in range(10):
        if step == 4:
            kept = save_checkpoint(tmp_path, step, optimizer.arrays(), {})
            weights = {key: value.clone() for key, value in module.state_dict().items()}
        learn(module, step)
        optimizer.step(step, 10)
    again = Tiny()
    again.load_state_dict(weights)
    resumed = Optimizer(again, settings)
    resumed.restore(load_checkpoint(kept).arrays)
    for step in range(4, 10):
        learn(again, step)
        resumed.step(step, 10)
    assert same(module, again)
    forgetful = Tiny()
    forgetful.load_state_dict(weights)
    fresh = Optimizer(forgetful, settings)
    for step in range(4, 10):
        learn(forgetful, step)
        fresh.step(step, 10)
    assert not same(module, forgetful)  # the state mattered


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_that_has_not_stepped_can_be_kept(name: Name) -> None:
    optimizer = Optimizer(Tiny(), OptimizerSettings(name))
    assert optimizer.arrays() == {}
    optimizer.restore({})


def test_the_state_of_another_model_is_refused() -> None:
    module = nn.Linear(2, 2)
    optimizer = Optimizer(module, OptimizerSettings())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step(0, 1)
    with pytest.raises(CheckpointError, match=r"another model[^$]*1 parameters"):
        Optimizer(nn.Linear(2, 2, bias=False), OptimizerSettings()).restore(optimizer.arrays())
    Optimizer(nn.Linear(2, 2), OptimizerSettings()).restore(optimizer.arrays())
