"""A run whose bytes are counted beside the same one whose bytes go through the kernel."""

from __future__ import annotations

import pytest

from adc_edge.evaluation.study.records import Point, Study
from adc_edge.evaluation.study.setting import Setting
from adc_edge.evaluation.study.training import train
from adc_edge.evaluation.study.wire import Carried


def counted_as_carried(study: Study, setting: Setting) -> tuple[Point, Point]:
    """Train both, check bytes and loss, and return the last point of each."""
    counted = train(study, setting, seed=0)
    with Carried() as wire:
        carried = train(study, setting, seed=0, wire=wire)
    ours, theirs = counted.curve[-1], carried.curve[-1]
    assert (ours.bytes_up, ours.bytes_down) == pytest.approx((theirs.bytes_up, theirs.bytes_down), rel=0.01)
    assert ours.loss == theirs.loss  # what arrives is what was sent
    return ours, theirs
