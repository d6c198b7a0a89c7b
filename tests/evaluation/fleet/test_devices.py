"""A fleet in one process: whose turn it is, its modes, and the mathematics of averaging by an independent reference."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from adc_edge.data.loader import Loader
from adc_edge.data.sources import load_dataset
from adc_edge.defaults import FleetMode
from adc_edge.evaluation.fleet.devices import Turn, turn_of
from adc_edge.evaluation.fleet.partition import divided
from adc_edge.evaluation.fleet.setting import StudyFleet
from adc_edge.evaluation.study.records import Run
from adc_edge.evaluation.study.resuming import Unfinished
from adc_edge.evaluation.study.samples import sampled
from adc_edge.evaluation.study.setting import parse_setting
from adc_edge.evaluation.study.training import train
from adc_edge.evaluation.study.wire import Carried
from adc_edge.method.split import create_vit, preprocessing, split_vit
from tests.conftest import TINY
from tests.evaluation.study.test_resuming import Killed, killed_at, numbers
from tests.evaluation.study.test_training import STUDY as ORDINARY

STUDY = msgspec.structs.replace(ORDINARY, batch_size=16, epochs=0.75, test_images=50, augment="none")  # twelve steps
NONE = parse_setting("none")
APART: list[FleetMode] = ["parallel", "frozen"]  # without rounds
MODES: list[FleetMode] = ["parallel", "averaged", "sequential", "frozen"]


def a_run(fleet: StudyFleet | None, text: str = "none", seed: int = 3, **changes: Any) -> Run:
    return train(msgspec.structs.replace(STUDY, **changes), parse_setting(text), seed, fleet=fleet)


@settings(deadline=None)
@given(st.integers(1, 9), st.sampled_from(MODES), st.integers(1, 7), st.integers(1, 200))
def test_every_device_makes_its_steps_in_order_and_as_many_as_the_others(
    devices: int, mode: FleetMode, every: int, steps: int
) -> None:
    fleet = StudyFleet(devices, mode=mode, every=every)
    turns = [turn_of(fleet, step) for step in range(steps)]
    made = [[turn.step for turn in turns if turn.device == device] for device in range(devices)]
    assert all(own == list(range(len(own))) for own in made)
    assert max(map(len, made)) - min(map(len, made)) <= (every if mode == "sequential" else 1)
    handed_on = [first.device != second.device for first, second in itertools.pairwise(turns)]
    length = every if mode == "sequential" else 1
    assert handed_on == [devices > 1 and (step + 1) % length == 0 for step in range(steps - 1)]


@pytest.mark.parametrize("text", ["none", pytest.param("adc@0.3/int8", marks=pytest.mark.slow)])
def test_a_fleet_of_one_device_equals_a_study_of_one_device_bit_for_bit(text: str) -> None:
    alone, fleet = a_run(None, text), a_run(StudyFleet(1), text)
    assert numbers(fleet) == {**numbers(alone), "fleet": msgspec.to_builtins(StudyFleet(1)), "device_images": (256,)}


def test_averaged_trunks_equal_plain_pytorch_with_two_models_and_one_head() -> None:
    """The reference: no codec, no messages, whole autograd graphs, and the mean of the parameters in float64."""
    fleet = StudyFleet(2, "dirichlet:1", "averaged", every=2, precision="fp32", guard=False)
    run = a_run(fleet, evaluate_every=0.25)
    torch.manual_seed(3)
    vit = create_vit(STUDY.model, TINY, 10)
    trunk, head = split_vit(vit, 2)
    trunks = [trunk, copy.deepcopy(trunk)]
    optimizers = [torch.optim.Adam(module.parameters(), lr=1e-3) for module in (*trunks, head)]
    data = sampled(load_dataset("digits"), STUDY)
    splits = divided(data.train, 2, "dirichlet:1", 16, 3)
    assert [len(split.labels) for split in splits] == list(run.device_images)
    loaders = [Loader(split, preprocessing(vit, None), 16, 3 + device * 2**32) for device, split in enumerate(splits)]
    test = Loader(data.test, preprocessing(vit), 50)
    losses: list[float] = []
    for step in range(12):
        device = step % 2
        images, labels = (torch.from_numpy(array) for array in loaders[device].batch(step // 2))
        loss = F.cross_entropy(head(trunks[device](images)), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in (optimizers[device], optimizers[2]):
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if step % 4 == 3:
            for pair in zip(*(module.parameters() for module in trunks), strict=True):
                mean = (pair[0].detach().double() + pair[1].detach().double()) / 2
                for parameter in pair:
                    parameter.data.copy_(mean)
    for loader in loaders:
        loader.close()
    for module in (*trunks, head):
        module.eval()
    images, labels = (torch.from_numpy(array) for array in test.plain(np.arange(50)))
    with torch.no_grad():
        right = int((head(trunks[0](images)).argmax(1) == labels).sum())
    test.close()
    assert [point.loss for point in run.curve] == pytest.approx(np.reshape(losses, (3, 4)).mean(axis=1), rel=1e-4)
    assert run.curve[-1].accuracy == pytest.approx(right / 50, abs=0.021)


def test_devices_in_parallel_have_trunks_of_their_own_and_their_mean_is_told_with_its_range() -> None:
    last = a_run(StudyFleet(4)).curve[-1]
    assert last.accuracy_lowest is not None
    assert last.accuracy_highest is not None
    assert last.accuracy_lowest <= last.accuracy <= last.accuracy_highest
    assert last.accuracy_lowest < last.accuracy_highest
    assert (last.bytes_trunk_up, last.bytes_trunk_down) == (0, 0)


@pytest.mark.parametrize("mode", ["averaged", "sequential"])
def test_a_fleet_with_one_trunk_has_one_accuracy_and_its_changes_are_among_the_bytes(mode: FleetMode) -> None:
    apart = a_run(StudyFleet(3)).curve[-1]
    last = a_run(StudyFleet(3, mode=mode, every=2)).curve[-1]
    assert last.accuracy_lowest is last.accuracy_highest is None
    up, down = last.bytes_trunk_up, last.bytes_trunk_down
    assert (last.bytes_up - up, last.bytes_down - down) == pytest.approx((apart.bytes_up, apart.bytes_down), rel=1e-3)
    weights = sum(p.numel() for p in split_vit(create_vit(STUDY.model, TINY, 10), 2)[0].parameters())
    changes = 6  # averaged: two rounds of three devices; sequential: six turns
    assert up == pytest.approx(changes * weights, rel=0.1)  # int8: a byte for each weight, and scales
    assert down >= up * 0.99


def test_a_frozen_fleet_sends_no_gradient_and_keeps_its_trunk() -> None:
    frozen, trained = (a_run(StudyFleet(2, mode=mode)).curve[-1] for mode in ("frozen", "parallel"))
    assert frozen.bytes_up == pytest.approx(trained.bytes_up, rel=1e-3)
    assert frozen.bytes_down < trained.bytes_down / 100
    assert frozen.loss != trained.loss


@pytest.mark.parametrize("mode", ["averaged", "sequential", *(pytest.param(m, marks=pytest.mark.slow) for m in APART)])
def test_a_fleets_run_that_was_cut_short_goes_on_with_the_same_bits(mode: FleetMode, tmp_path: Any) -> None:
    study, fleet = msgspec.structs.replace(STUDY, evaluate_every=5 / 16), StudyFleet(3, mode=mode, every=2)
    whole = train(study, NONE, 3, fleet=fleet)
    kept = Unfinished(tmp_path, study, NONE, 3, fleet)
    with pytest.raises(Killed):
        train(study, NONE, 3, progress=killed_at(7 / 12), unfinished=kept, fleet=fleet)
    assert kept.kept()
    assert not Unfinished(tmp_path, study, NONE, 3).kept()  # of another fleet
    assert numbers(train(study, NONE, 3, unfinished=kept, fleet=fleet)) == numbers(whole)


def test_counted_bytes_of_a_fleet_are_those_that_the_kernel_carries() -> None:
    fleet = StudyFleet(3, mode="sequential", every=2)
    counted = a_run(fleet).curve[-1]
    with Carried() as wire:
        carried = train(STUDY, NONE, 3, wire=wire, fleet=fleet).curve[-1]
    for name in ("bytes_up", "bytes_down", "bytes_trunk_up", "bytes_trunk_down"):
        assert getattr(counted, name) == pytest.approx(getattr(carried, name), rel=0.01)
    assert (counted.loss, counted.accuracy) == (carried.loss, carried.accuracy)


def test_steps_of_a_device_are_taken_from_its_own_images() -> None:
    assert turn_of(StudyFleet(3), 7) == Turn(1, 2)
    assert turn_of(StudyFleet(3, mode="sequential", every=2), 7) == Turn(0, 3)
