"""Steady rates and causes of retransmissions, from samples whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from adc_edge.calibration.link.samples import KernelSample, losses, rates
from adc_edge.calibration.link.traffic import Spent


def test_the_start_of_tcp_does_not_lower_the_rate() -> None:
    times = np.arange(0, 4.01, 0.05)
    totals = np.cumsum(np.where(times < 1, 1_000, 62_500))  # then 10 Mbit/s
    found = rates(list(times), [int(total) for total in totals], 0.2)
    assert found is not None
    assert found.steady == pytest.approx(10, rel=0.03)
    assert found.p10 == pytest.approx(10, rel=0.1)
    assert found.start_s == pytest.approx(1, abs=0.25)


def test_the_time_after_the_last_byte_does_not_count_if_the_bytes_ran_out() -> None:
    times = np.arange(0, 4.01, 0.05)
    totals = [int(total) for total in np.cumsum(np.where(times < 2, 62_500, 0))]
    found = rates(list(times), totals, 0.2, ended=True)
    assert found is not None
    assert found.steady == pytest.approx(10, rel=0.05)


def test_a_short_transfer_has_one_rate_and_none_is_made_up_from_an_instant() -> None:
    assert rates([], [], 0.2) is None
    assert rates([1.0], [0], 0.2) is None
    assert rates([1.0, 1.001], [0, 5000], 0.2) is None
    found = rates([1.0, 1.1], [0, 125_000], 0.2)
    assert found is not None
    assert found.steady == pytest.approx(10)
    assert found.p10 == pytest.approx(10)


def trace(excess_ms: list[float], again: list[int]) -> list[KernelSample]:
    """Samples of 10 kB each, at a shortest round trip of 40 ms."""
    result, resent = [KernelSample(0, 0, 40.0, 40.0)], 0
    for number, (excess, more) in enumerate(zip(excess_ms, again, strict=True)):
        resent += more
        result.append(KernelSample(10_000 * (number + 1), resent, 40 + excess, 40.0))
    return result


SAWTOOTH = [float(5 * (number % 20)) for number in range(200)]  # the queue fills and empties


def test_losses_at_a_full_queue_are_the_queues() -> None:
    found = losses(trace(SAWTOOTH, [2_000 if excess > 90 else 0 for excess in SAWTOOTH]))
    assert found is not None
    assert found.random == 0
    assert found.queue == found.share == pytest.approx(0.0099, rel=0.01)


def test_losses_at_any_length_of_the_queue_are_random() -> None:
    rng = np.random.default_rng(0)
    found = losses(trace(SAWTOOTH, [int(1_500 * (rng.random() < 0.2)) for _ in SAWTOOTH]))
    assert found is not None
    assert found.random > 0.7 * found.share > 0.01


def test_losses_without_a_queue_are_random() -> None:
    found = losses(trace([1.0, 3.0, 2.0, 4.0] * 20, [0, 300, 0, 300] * 20))
    assert found is not None
    assert found.queue == 0
    assert found.random == found.share > 0.01


def test_nothing_sent_tells_nothing() -> None:
    assert losses([]) is None
    assert losses([KernelSample(5, 0, 1.0, 1.0)] * 3) is None


def test_bytes_beyond_the_limit_are_not_reserved() -> None:
    spent = Spent(1_000_000)
    spent.begin_stage(0.5)
    assert spent.take(400_000)
    assert not spent.take(100_000)
    assert spent.refused
    spent.begin_stage(1)
    assert spent.take(400_000)


def test_pings_take_at_most_a_tenth_of_the_bytes_and_their_pace_spreads_them_over_the_measurement() -> None:
    spent = Spent(1_000_000)
    pings = 0
    while spent.take_probe():
        pings += 1
    assert pings == 333  # of 300 bytes
    assert 600.0 / spent.probe_every_s(600.0) == pytest.approx(pings, abs=1)
    assert spent.take(700_000)
    assert Spent().probe_every_s(600.0) == 0.0
