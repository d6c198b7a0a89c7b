"""The ideas that `benchmarks/ablations.py` compares do what their names say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ablations
import ideas
import msgspec
import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

from adc_edge.evaluation.codecs.adc import random_rows
from adc_edge.evaluation.codecs.base import Arrived, Codec, EncodedBatch
from adc_edge.evaluation.study.setting import parse_setting
from adc_edge.evaluation.study.split_model import MakeCodec
from adc_edge.method import adc
from tests.evaluation.codecs.test_base import CLASSES, IMAGES, SHAPE, make, make_batch
from tests.evaluation.report.test_views import STUDY, rises
from tests.method.test_trunk import SPEC, make_trunk

ADC = "adc@0.5x0.5"


def made(make_codec: MakeCodec, text: str = ADC) -> Codec:
    return make_codec(parse_setting(text), SPEC, CLASSES, 0)


def step(codec: Codec) -> tuple[EncodedBatch, Arrived]:
    """The encoded and the decoded batch, from the same images and trunk each time."""
    torch.manual_seed(0)
    sent = codec.compress(make_trunk(), make_batch())
    return sent, codec.extract(sent.header, sent.body)


# Not those that differ in the study alone, and the rotation wants 64 channels.
STEPS = [case for case in ablations.cases(4) if not case.changes and "Hadamard" not in case.name]


@pytest.mark.parametrize("case", STEPS, ids=lambda case: f"{case.table}, {case.name}")
def test_every_case_is_a_step_each_way(case: ablations.Case) -> None:
    codec = case.make(parse_setting(case.setting), SPEC, CLASSES, 0)
    sent, arrived = step(codec)
    F.cross_entropy(arrived.features.sum(dim=1)[:, :CLASSES], arrived.soft).backward()  # type: ignore[no-untyped-call]
    assert arrived.values.grad is not None
    came = codec.extract_gradient(sent, codec.compress_gradient(arrived, arrived.values.grad))
    assert came.shape == sent.tensor.shape
    assert torch.isfinite(came).all()
    sent.tensor.backward(came)  # type: ignore[no-untyped-call]


def test_a_loss_weighted_by_cluster_size_is_the_mean_over_images() -> None:
    (_, plain), (_, weighted) = (step(codec) for codec in (make(ADC), made(ideas.changed(ideas.Weighted))))
    choice = make(ADC).choose(make_trunk(), make_batch())  # type: ignore[attr-defined]
    logits = torch.randn(len(plain.features), CLASSES, generator=torch.Generator().manual_seed(0))
    full = torch.cumsum(choice.counts > 0, 0) - 1
    labels = torch.from_numpy(make_batch().labels)
    each = F.cross_entropy(logits[full[choice.assignment]], labels)
    torch.testing.assert_close(F.cross_entropy(logits, weighted.soft), each)


def test_hard_labels_are_the_commonest_of_each_cluster() -> None:
    (_, plain), (_, hard) = (step(codec) for codec in (make(ADC), made(ideas.changed(ideas.HardLabels))))
    assert torch.equal(hard.soft.amax(1), hard.soft.sum(1)), "one class each"
    assert torch.equal(plain.soft.gather(1, hard.soft.argmax(1, keepdim=True))[:, 0], plain.soft.amax(1))


def test_leftovers_are_the_mean_of_the_tokens_that_are_not_kept() -> None:
    (plain, _), (sent, _) = (step(codec) for codec in (make(ADC), made(ideas.changed(ideas.Leftovers))))
    assert sent.tensor.shape == plain.tensor.shape, "as many bytes"
    torch.testing.assert_close(sent.tensor[:, :-1], plain.tensor[:, :-1])
    choice = make(ADC).choose(make_trunk(), make_batch())  # type: ignore[attr-defined]
    whole = adc.cluster_mean(make_trunk()(make_batch().images), choice.assignment, torch.arange(len(choice.counts)))
    assert choice.counts.min() > 0, "no cluster is left out of what is sent"
    for row, (values, kept) in enumerate(zip(whole, choice.tokens[:, :-1], strict=True)):
        rest = [token for token in range(SPEC.tokens) if token not in kept.tolist()]
        torch.testing.assert_close(sent.tensor[row, -1], values[rest].mean(0), rtol=1e-4, atol=1e-5)


def test_a_subset_is_some_images_as_they_are() -> None:
    _, arrived = step(made(ideas.changed(ideas.Subset), "adc@0.5x1"))
    z, batch = make_trunk()(make_batch().images), make_batch()
    chosen = batch.rng.permutation(IMAGES)[: IMAGES // 2]
    assert len(arrived.features) == len(chosen)
    for row, image in zip(arrived.features, chosen, strict=True):
        torch.testing.assert_close(row.sort(dim=0).values, z[image].sort(dim=0).values, rtol=1e-4, atol=1e-5)
    assert arrived.soft.argmax(1).tolist() == batch.labels[chosen].tolist()


def test_a_schedule_sends_from_its_first_ratio_to_its_last() -> None:
    codec: Any = made(ideas.changed(ideas.Scheduled, 0.9, 0.1, 8))
    shares = [step(codec)[0].tensor.numel() / np.prod(SHAPE) for _ in range(8)]
    assert shares[0] > 0.7
    assert shares[-1] < 0.2
    assert sorted(shares, reverse=True) == shares


@pytest.mark.parametrize("start", [ideas.kmeans_plus_plus, ideas.farthest_first, random_rows])
def test_k_means_starts_from_distinct_rows(start: Any) -> None:
    rows = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    init_rows = start(rows, 20, np.random.default_rng(0))
    assert sorted(init_rows.tolist()) == list(range(20))


def test_farthest_first_takes_one_row_of_each_group() -> None:
    groups = torch.arange(4).repeat_interleave(5)
    rows = 100.0 * groups[:, None] + torch.randn(20, 2, generator=torch.Generator().manual_seed(1))
    assert sorted(groups[ideas.farthest_first(rows, 4, np.random.default_rng(0))].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("turn", [ideas.by_channel, ideas.rotated])
def test_a_transform_is_inverted(turn: Any) -> None:
    rows = torch.randn(10, 128, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(turn(turn(rows)), rows, rtol=1e-5, atol=1e-5)


def gradients_back(codec: Codec, gradient: Tensor) -> Tensor:
    sent, arrived = step(codec)
    return codec.extract_gradient(sent, codec.compress_gradient(arrived, gradient))


@pytest.mark.slow
def test_stochastic_rounding_of_gradients_has_no_bias() -> None:
    random = torch.Generator().manual_seed(0)
    gradient = torch.rand(SHAPE, generator=random) - 0.5
    gradient[..., 0] = -1.0  # the row's largest: its levels are -1, -0.5, 0 and 0.5
    codec = made(ideas.dense(ideas.StochasticGradients), "int2")
    errors = torch.stack([gradients_back(codec, gradient) - gradient for _ in range(200)])
    assert errors.std(0).max() > 0.1, "each is rounded"
    assert errors.mean(0).abs().max() < 5 * 0.25 / 200**0.5 + 1e-3, "five standard errors, and the scale's own"


def test_gradients_with_error_feedback_add_up_to_the_exact_ones() -> None:
    codec = made(ideas.dense(ideas.FedBackGradients), "int2")
    gradient = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    brought = sum((gradients_back(codec, gradient) for _ in range(20)), torch.zeros(SHAPE))
    plain = 20 * gradients_back(make("int2"), gradient)
    assert (brought - 20 * gradient).norm() < 0.2 * (plain - 20 * gradient).norm()


def test_an_ablation_tells_how_far_it_is_from_its_reference_seed_by_seed() -> None:
    first, second = [0.50, 0.58, 0.41], [0.55, 0.61, 0.49]
    runs = [rises(*ends, setting="int8", share=0.5) for ends in (first, second)]
    text = ablations._table("A choice", [("one", runs[0]), ("another", runs[1])])
    t = scipy.stats.ttest_rel(second, first).statistic  # of paired differences: their mean in standard errors
    row = text.splitlines()[-1]
    assert row == f"| another | 50 | 55.0 ± 6.0 | 3 | +5.3 | {t:+.1f} |"


def test_one_directory_holds_one_study(tmp_path: Path) -> None:
    ablations._keep_apart(STUDY, tmp_path)
    ablations._keep_apart(STUDY, tmp_path)
    with pytest.raises(SystemExit, match=r"another study.*choose another -o"):
        ablations._keep_apart(msgspec.structs.replace(STUDY, split=5), tmp_path)
