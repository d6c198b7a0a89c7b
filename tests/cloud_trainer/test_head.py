"""Head training against plain PyTorch."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file
from torch import Tensor

from adc_edge.arrays import Float32
from adc_edge.cloud_trainer.accumulator import StepAccumulator
from adc_edge.cloud_trainer.head import HeadTraining, Learned
from adc_edge.errors import ProtocolError
from adc_edge.method.split import head_from_manifest
from adc_edge.optimizer.settings import OptimizerSettings
from adc_edge.storage.bundle import Bundle


def batch(seed: int) -> tuple[Tensor, Float32]:
    rng = np.random.default_rng(seed)
    soft = rng.random((4, 10)).astype(np.float32) ** 4
    activations = rng.standard_normal((4, 7, 32)).astype(np.float32)
    return torch.from_numpy(activations), soft / soft.sum(1, keepdims=True)


def learn(training: HeadTraining, seed: int, gradient: bool = True, planned_steps: int = 0) -> Learned:
    """A whole step in one piece."""
    step = StepAccumulator(1)
    learned = training.learn(*batch(seed), gradient, step)
    training.update(step, planned_steps)
    return learned


def test_a_step_is_soft_label_cross_entropy_averaged_over_clusters(bundle: Bundle, training: HeadTraining) -> None:
    head = head_from_manifest(bundle.manifest)
    head.vit.load_state_dict(load_file(bundle.path / "head.safetensors"))
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.0)
    for seed in range(4):
        activations, soft = batch(seed)
        learned = learn(training, seed)
        z = activations.clone().requires_grad_()
        log_p = torch.log_softmax(head(z), dim=1)
        loss = -(torch.from_numpy(soft) * log_p).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert learned.loss == pytest.approx(loss.item(), abs=1e-6)
        assert z.grad is not None
        assert learned.gradient is not None
        np.testing.assert_allclose(learned.gradient, z.grad.numpy(), atol=1e-7)
    for ours, theirs in zip(training.head.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_micro_batches_give_the_step_of_their_mean_loss(bundle: Bundle, training: HeadTraining) -> None:
    head = head_from_manifest(bundle.manifest)
    head.vit.load_state_dict(load_file(bundle.path / "head.safetensors"))
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.0)
    for first in (0, 3):
        inputs = [batch(seed)[0].requires_grad_() for seed in range(first, first + 3)]
        targets = [torch.from_numpy(batch(seed)[1]) for seed in range(first, first + 3)]
        pairs = zip(inputs, targets, strict=True)
        loss = torch.stack([torch.nn.functional.cross_entropy(head(z), soft) for z, soft in pairs]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step = StepAccumulator(3)
        learned = [training.learn(*batch(seed), True, step) for seed in range(first, first + 3)]
        training.update(step, 0)
        assert step.loss == pytest.approx(loss.item(), abs=1e-6)
        for ours, z in zip(learned, inputs, strict=True):
            assert ours.gradient is not None
            assert z.grad is not None
            np.testing.assert_allclose(ours.gradient, z.grad.numpy(), atol=1e-7)
    for mine, theirs in zip(training.head.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)
    assert training.steps == 2


def test_a_micro_batch_that_is_refused_leaves_the_sums_of_those_before(training: HeadTraining) -> None:
    step = StepAccumulator(2)
    training.learn(*batch(0), True, step)
    before = [None if g is None else g.clone() for g in step.gradients]
    with pytest.raises(ProtocolError):
        training.learn(torch.full((4, 7, 32), torch.nan), batch(0)[1], True, step)
    assert step.learned == 1
    for kept, now in zip(before, step.gradients, strict=True):
        assert kept is now is None or (kept is not None and now is not None and kept.equal(now))


def test_a_frozen_trunk_gets_no_gradient(training: HeadTraining) -> None:
    assert learn(training, 0, gradient=False).gradient is None


def test_judging_counts_correct_predictions_and_changes_nothing(training: HeadTraining) -> None:
    activations, _ = batch(0)
    before = training.safetensors()
    training.head.eval()
    predicted = training.head(activations).argmax(1).numpy().astype(np.int32)
    wrong = predicted.copy()
    wrong[0] = (wrong[0] + 1) % 10
    assert training.judge(activations, predicted).correct == 4
    judged = training.judge(activations, wrong)
    assert judged.correct == 3
    logits = training.head(activations)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(wrong).long(), reduction="sum")
    assert judged.loss_sum == pytest.approx(loss.item(), rel=1e-5)
    assert training.safetensors() == before


def test_a_loss_that_is_not_finite_is_refused_and_leaves_the_head(training: HeadTraining) -> None:
    before = training.safetensors()
    activations, soft = batch(0)
    with torch.no_grad():
        training.head.vit.head.bias[0] = torch.inf
    broken, step = training.safetensors(), StepAccumulator(1)
    with pytest.raises(ProtocolError) as caught:
        training.learn(activations, soft, gradient=True, step=step)
    assert caught.value.code == "nan"
    assert training.safetensors() == broken != before
    assert (training.steps, step.learned) == (0, 0)


def test_a_checkpoint_continues_bit_for_bit(bundle: Bundle, training: HeadTraining) -> None:
    for seed in range(3):
        learn(training, seed, planned_steps=6)
    kept = {name: value.copy() for name, value in training.arrays().items()}
    resumed = HeadTraining(head_from_manifest(bundle.manifest), OptimizerSettings(lr=1e-3))
    resumed.restore(kept, steps=3)
    for seed in range(3, 6):
        ours = learn(training, seed, planned_steps=6)
        theirs = learn(resumed, seed, planned_steps=6)
        assert ours.loss == theirs.loss
    assert training.safetensors() == resumed.safetensors()
    assert load(training.safetensors()).keys() == load_file(bundle.path / "head.safetensors").keys()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_head_learns_alike_and_takes_every_shape(bundle: Bundle, training: HeadTraining) -> None:
    head = head_from_manifest(bundle.manifest)
    head.vit.load_state_dict(load_file(bundle.path / "head.safetensors"))
    compiled = HeadTraining(head, OptimizerSettings(lr=1e-3), compiled=True)
    for seed, clusters in enumerate((4, 4, 3, 4)):
        activations, soft = batch(seed)
        activations, soft = activations[:clusters], soft[:clusters]
        found = []
        for each in (training, compiled):
            step = StepAccumulator(1)
            found.append(each.learn(activations, soft, True, step))
            each.update(step, 0)
        assert found[0].loss == pytest.approx(found[1].loss, abs=1e-5)
        assert found[0].gradient is not None
        assert found[1].gradient is not None
        np.testing.assert_allclose(found[0].gradient, found[1].gradient, atol=1e-5)
