"""A trainer tells its use of time and memory every few seconds while it works, and nothing while it is idle."""

from __future__ import annotations

import os
import time

import pytest

from adc_edge.cloud_trainer.record import use as module
from adc_edge.cloud_trainer.record.use import UseMeter, resident_memory_mb


def test_the_seconds_of_each_phase_are_told_when_due(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = UseMeter()
    assert meter.add(0.25, 0.5) == 0.75
    meter.add(0.25, 0.0)
    meter.update += 0.125
    assert meter.due(lambda: 7, lambda: 3) is None  # not before 5 s are over
    monkeypatch.setattr(module, "USE_EVERY_S", 0.05)
    time.sleep(0.06)
    use = meter.due(lambda: 7, lambda: 3)
    assert use is not None
    assert (use.seconds_head, use.seconds_codec, use.seconds_update) == (0.5, 0.5, 0.125)
    assert (use.held_bytes, use.connections) == (7, 3)
    assert 0.05 < use.seconds < 60


def test_a_trainer_that_is_idle_tells_nothing_and_counts_from_when_it_works_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "USE_EVERY_S", 0.02)
    meter = UseMeter()
    for _ in range(10):
        time.sleep(0.03)
        assert meter.due(int, int) is None
    meter.add(0.01, 0.0)
    time.sleep(0.03)
    use = meter.due(int, int)
    assert use is not None
    assert use.seconds < 0.3
    assert (use.seconds_head, meter.head) == (0.01, 0.0)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
def test_the_memory_is_that_of_this_process_now() -> None:
    before = resident_memory_mb()
    more = bytearray(os.urandom(60_000_000))
    assert 50 < resident_memory_mb() - before < 200
    assert len(more)
