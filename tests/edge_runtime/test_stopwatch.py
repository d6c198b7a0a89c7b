"""The time on the link is what is left of a message's way, without the trainer's work and the wait for its others."""

from __future__ import annotations

import time

import pytest
from msgspec import UNSET, UnsetType

from adc_edge.edge_runtime.stopwatch import Stopwatch
from adc_edge.edge_runtime.tally import Tally
from adc_edge.planning.profile import TrainerShare
from adc_edge.wire.messages import Gradient


def answer(share: TrainerShare | UnsetType) -> Gradient:
    return Gradient(1, 0, 0, 1, 0, "fp32", 1.0, 0.5, 0.3, share=share, seconds_codec=0.1)


@pytest.mark.parametrize(
    ("share", "waited"),
    [
        (UNSET, 0.0),
        (TrainerShare(0.5, 0.2, 2, waited_s=0.4), 0.4),
        (TrainerShare(0.5, 0.2, 2), 0.2),  # the trainer's kernel does not tell: as much as is expected
        (TrainerShare(0.5, 9.0, 2), 0.6),  # never more than there is
    ],
)
def test_waiting_for_other_devices_is_no_time_of_the_link(share: TrainerShare | UnsetType, waited: float) -> None:
    watch, tally = Stopwatch(), Tally()
    watch.departed()
    watch.answered(answer(share), time.monotonic() + 1.0)
    record = watch.record(0, 10, 20)
    tally.add(record, 8)
    assert (record.seconds_cloud, record.seconds_cloud_codec) == (0.3, 0.1)
    assert record.seconds_cloud_wait == pytest.approx(waited, abs=0.01)
    assert record.seconds_link == pytest.approx(0.6 - waited, abs=0.01)
    assert tally.seconds_cloud_wait == record.seconds_cloud_wait
