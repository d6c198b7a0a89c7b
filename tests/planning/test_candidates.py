"""The settings of a plan: each can be sent, and its messages are large enough for their precision."""

from __future__ import annotations

import time

import msgspec
import pytest

from adc_edge.codec.precision import pca_bits
from adc_edge.planning.accuracy.studies import shipped_studies
from adc_edge.planning.candidates import (
    ROWS_A_CHANNEL,
    Task,
    bundle_candidate,
    candidates,
    other_splits,
    unknown_profile,
    with_frozen_blocks,
    with_small_window,
)
from adc_edge.planning.choice import Candidate
from adc_edge.planning.profile import Profile
from adc_edge.planning.step_model import LinkRates
from adc_edge.storage.bundle import Bundle, Manifest
from tests.planning.inputs import measured_profile

LINK = LinkRates(40.0, 5.0, 20.0)


def task_of(manifest: Manifest, batch_size: int, profile: Profile | None = None) -> Task:
    accuracy = [study for study in shipped_studies() if study.quantity == "accuracy" and study.tokens == 17]
    return Task(manifest, batch_size, LINK, profile or unknown_profile(manifest), accuracy, [])


@pytest.fixture(scope="module")
def task(bundle: Bundle) -> Task:
    return task_of(bundle.manifest, 64, measured_profile(bundle.manifest))


@pytest.fixture(scope="module")
def found(task: Task) -> list[Candidate]:
    return candidates(task)


def test_each_micro_batch_divides_the_batch_and_has_two_clusters_or_more(task: Task, found: list[Candidate]) -> None:
    assert len(found) > 300
    assert {one.plan.micro_batches for one in found} >= {1, 2}
    for one in found:
        assert one.plan.shape.images * one.plan.micro_batches == task.batch_size
        assert 2 <= one.plan.shape.clusters <= one.plan.shape.images


def test_a_message_in_principal_components_has_four_rows_a_channel_or_the_step_is_one_message(
    task: Task, found: list[Candidate]
) -> None:
    least = ROWS_A_CHANNEL * task.manifest.dim
    for one in found:
        rows = one.plan.shape.clusters * one.plan.shape.kept
        assert one.plan.gradient_precision is not None
        coded = pca_bits(one.plan.precision) or pca_bits(one.plan.gradient_precision)
        assert one.few_rows == (bool(coded) and rows < least)
        assert not one.few_rows or one.plan.micro_batches == 1


def test_the_shape_of_a_micro_batch_sends_the_share_that_the_batch_would(task: Task, found: list[Candidate]) -> None:
    for one in found:
        whole = one.ratio.shape(task.batch_size, task.manifest.tokens, task.manifest.prefix)
        assert one.plan.shape.xi == pytest.approx(whole.xi, rel=0.05)


def test_the_measured_settings_and_the_bundles_own_are_among_them(task: Task, found: list[Candidate]) -> None:
    own = bundle_candidate(task)
    assert own.plan.micro_batches == 1
    assert any((one.ratio, one.plan.precision) == (own.ratio, own.plan.precision) for one in found)
    measured = {one.accuracy.settings for one in found if one.accuracy is not None and one.accuracy.measured}
    assert {("none",), ("int3",), ("adc@0.7x0.7/pca1:pca0.25",), ("none/pca1:pca0.25",)} <= measured


def test_a_precision_that_one_side_has_not_measured_is_left_out(bundle: Bundle) -> None:
    profile = measured_profile(bundle.manifest)
    codec = {name: seconds for name, seconds in profile.device.codec.items() if name != "pca2"}
    device = msgspec.structs.replace(profile.device, codec=codec)
    found = candidates(task_of(bundle.manifest, 64, Profile(device, profile.trainer)))
    assert found
    assert not any("pca2" in (one.plan.precision, one.plan.gradient_precision) for one in found)


def test_frozen_blocks_have_no_measured_accuracy_and_take_less_time(task: Task) -> None:
    one = bundle_candidate(task)
    half, frozen = with_frozen_blocks(task, [one])
    assert (half.plan.freeze_first, frozen.plan.gradient_precision) == (1, None)
    assert half.accuracy is None
    assert frozen.prediction.bytes_down < one.prediction.bytes_down
    assert frozen.prediction.seconds < half.prediction.seconds < one.prediction.seconds


def test_a_window_is_as_small_as_costs_no_time(bundle: Bundle) -> None:
    slow = task_of(bundle.manifest, 64, measured_profile(bundle.manifest, seconds=0.1))
    many = next(one for one in candidates(slow) if one.plan.precision == "fp32")
    plan = many.plan._replace(micro_batches=16, shape=many.ratio.shape(4, 17, 1))
    whole = many._replace(plan=plan, prediction=many.prediction._replace(seconds=1e9))
    assert with_small_window(slow, whole).plan.window == 1  # where any window is quicker than this
    assert with_small_window(slow, bundle_candidate(slow)).plan.window == 0


def test_other_splits_are_predicted_and_those_beyond_the_measured_blocks_are_marked(task: Task) -> None:
    found = {one.plan.split: one for one in other_splits(task, bundle_candidate(task))}
    assert sorted(found) == [1, 3]
    assert not found[1].prediction.extrapolated
    assert found[3].prediction.extrapolated
    assert found[1].accuracy is None


def test_all_candidates_of_a_large_model_are_predicted_within_three_seconds(bundle: Bundle) -> None:
    manifest = msgspec.structs.replace(bundle.manifest, tokens=197, dim=192, depth=12, split=6)
    large = task_of(manifest, 128, measured_profile(manifest))
    start = time.process_time()
    found = candidates(large)
    assert time.process_time() - start < 3.0
    assert len(found) > 400
