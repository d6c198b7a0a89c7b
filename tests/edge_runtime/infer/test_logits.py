"""The logits of `infer` are those of the merged timm model, wherever they are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from adc_edge.cloud_trainer.server import Server
from adc_edge.method.ratio import Ratio
from adc_edge.planning.place import SplitCosts
from tests.inferring import Device, Whole

COSTS = SplitCosts(0.01, 0.01, 0.0, 0.0, 0.0)


def begun(device: Device, whole: Whole, local_s: float | None = 1.0) -> Device:
    device.places.begin(whole.images(2), None if device.link is None else COSTS, local_s)
    return device


@pytest.mark.parametrize("images", [1, 2, 5])
def test_split_and_local_logits_are_the_merged_timm_models(
    images: int, whole: Whole, head: Server, device: Callable[..., Device]
) -> None:
    pixels = whole.images(images, seed=images)
    split = begun(device(head.endpoint), whole).places.judge(pixels)
    local = begun(device(None), whole).places.judge(pixels)
    assert (split.where, local.where) == ("split", "local")
    np.testing.assert_allclose(split.logits, whole.logits(pixels), atol=1e-5, rtol=0)
    np.testing.assert_allclose(local.logits, whole.logits(pixels), atol=1e-5, rtol=0)
    assert split.bytes_up > split.bytes_down > local.bytes_up == 0


def test_equal_images_in_a_batch_each_get_their_answer(
    whole: Whole, head: Server, device: Callable[..., Device]
) -> None:
    pixels = np.repeat(whole.images(2), 2, axis=0)
    found = begun(device(head.endpoint), whole).places.judge(pixels)
    np.testing.assert_allclose(found.logits, whole.logits(pixels), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("precision", "least"), [("fp16", 1.0), ("bf16", 0.95), ("int8", 0.95)])
def test_other_precisions_mostly_name_the_same_class(
    precision: str, least: float, whole: Whole, head: Server, device: Callable[..., Device]
) -> None:
    pixels = whole.images(128, seed=3)
    found = begun(device(head.endpoint, precision=precision), whole).places.judge(pixels)
    same = (found.logits.argmax(1) == whole.logits(pixels).argmax(1)).mean()
    assert same >= least


def test_with_adc_images_of_a_cluster_share_an_answer_and_fewer_bytes_travel(
    whole: Whole, head: Server, device: Callable[..., Device]
) -> None:
    pixels = whole.images(16)
    alone = begun(device(head.endpoint), whole).places.judge(pixels)
    merged = begun(device(head.endpoint, ratio=Ratio(batch=0.25, token=0.5)), whole).places.judge(pixels)
    assert len(np.unique(merged.logits, axis=0)) <= 4 < len(np.unique(alone.logits, axis=0))
    assert merged.bytes_up < 0.2 * alone.bytes_up
    one = begun(device(head.endpoint, ratio=Ratio(batch=1.0, token=1.0)), whole).places.judge(pixels[:1])
    np.testing.assert_allclose(one.logits, whole.logits(pixels[:1]), atol=1e-5, rtol=0)


def test_the_trainer_tells_the_class_names_that_the_bundle_lacks_once_its_head_has_answered(
    whole: Whole, head: Server, device: Callable[..., Any]
) -> None:
    edge = begun(device(head.endpoint), whole)
    assert edge.link is not None
    assert edge.link.names == []
    edge.places.judge(whole.images(1))
    assert edge.link.names == ["cat", "dog"]
