"""Ranks that were started differently, or on unlike hosts, refuse."""

from __future__ import annotations

import platform
from typing import Any

import msgspec
import pytest
import torch

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.ranks.state.agreement import check_agreed, common
from adc_edge.errors import RunError


def test_ranks_that_were_started_alike_agree(training: HeadTraining) -> None:
    check_agreed([common({"seed": 3}, training, "key 1")] * 3)


def test_another_option_is_named_with_its_rank(training: HeadTraining) -> None:
    told = [common({"seed": seed}, training, None) for seed in (0, 0, 3)]
    check_agreed(told[:2])
    with pytest.raises(RunError, match=r"(?s)rank 2 with seed 3.*0, as rank 0.*the same options"):
        check_agreed(told)


@pytest.mark.parametrize(
    ("name", "other", "remedy"),
    [
        ("device", "cuda", "--device cpu"),
        ("gpu", "NVIDIA H200", "--device cpu"),
        ("bf16", True, "--amp off"),
        ("compiled", True, "--compile off"),
        ("architecture", "aarch64-other", "one architecture"),
        ("cpu capability", "AVX-other", "ATEN_CPU_CAPABILITY=default"),
        ("torch", "0.1", "one version of torch"),
        ("adc-edge", "0.1", "one version of adc-edge"),
        ("key", "another", "the same --keys"),
    ],
)
def test_unlike_hosts_are_refused_with_what_mends_it(
    training: HeadTraining, name: str, other: object, remedy: str
) -> None:
    mine = common({"seed": 0}, training, "key 1")
    others: dict[str, Any] = msgspec.json.decode(mine)
    assert name in others
    with pytest.raises(RunError, match=f"rank 1 with {name}") as raised:
        check_agreed([mine, msgspec.json.encode(others | {name: other})])
    assert remedy in str(raised.value)


def test_a_rank_tells_its_own_hardware(training: HeadTraining) -> None:
    told: dict[str, Any] = msgspec.json.decode(common({}, training, None))
    assert told["device"] == "cpu"
    assert told["architecture"] == platform.machine()
    assert told["cpu capability"] == torch.backends.cpu.get_cpu_capability()
