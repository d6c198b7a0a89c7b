"""The passive estimate of a link: by hand, and over an emulated link from the messages of a real run."""

from __future__ import annotations

from pathlib import Path

import pytest
from link_emulator import LinkEmulator, Way, available, inside
from rich.console import Console

from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.edge_runtime.runner import Serve
from adc_edge.edge_runtime.settings import ServeSettings
from adc_edge.method.ratio import Ratio
from adc_edge.planning.passive import WINDOW_STEPS, LinkEstimate, RateEstimate, RateSample
from adc_edge.storage.bundle import Bundle
from tests.serving import serving


def test_the_rate_is_the_largest_of_a_window_and_follows_a_slower_link_within_it() -> None:
    rate = RateEstimate()
    assert rate.mbit_s is None
    for kernel in (48.0, 50.0, 49.0):
        rate.add(RateSample(kernel))
    assert rate.mbit_s == 50.0
    for _ in range(WINDOW_STEPS):
        assert rate.mbit_s == 50.0 or rate.mbit_s == 49.0
        rate.add(RateSample(2.0))
    assert rate.mbit_s == 2.0


def test_the_receiver_may_raise_the_rate_by_a_tenth() -> None:
    rate = RateEstimate()
    assert rate.add(RateSample(10.0, arrival=10.5)) == 10.5
    assert rate.mbit_s == 10.5
    assert rate.add(RateSample(10.0, arrival=400.0)) == pytest.approx(11.0)  # read late, at once
    assert rate.add(RateSample(3.0, arrival=7.0)) == 7.0  # of the step itself, which was slow
    assert rate.mbit_s == 10.5
    assert rate.add(RateSample(20.0, app_limited=True, arrival=29.0)) == 29.0  # the kernel tells only 20 or more


def test_a_sender_with_too_little_to_send_tells_only_that_the_link_is_no_slower() -> None:
    rate = RateEstimate()
    assert rate.add(RateSample(3.0, app_limited=True)) == 3.0  # better than nothing
    assert rate.at_least
    assert rate.add(RateSample(20.0)) == 20.0
    assert not rate.at_least
    assert rate.add(RateSample(5.0, app_limited=True)) is None
    assert rate.mbit_s == 20.0
    assert rate.add(RateSample(25.0, app_limited=True)) == 25.0
    assert rate.mbit_s == 25.0


def test_the_round_trip_is_the_shortest_lately() -> None:
    link = LinkEstimate()
    assert link.rtt_min_ms is None
    for rtt_ms in (40.0, 42.0, 41.0):
        link.round_trip(rtt_ms)
    assert link.rtt_min_ms == 40.0
    for _ in range(WINDOW_STEPS):
        link.round_trip(80.0)
    assert link.rtt_min_ms == 80.0


@pytest.mark.slow
@pytest.mark.timed
@pytest.mark.skipif(available() is not None, reason=str(available()))
@pytest.mark.parametrize(("up", "down", "rtt_ms"), [(20.0, 20.0, 40.0), (5.0, 20.0, 10.0), (50.0, 100.0, 20.0)])
def test_the_messages_of_a_run_tell_rates_and_round_trip_of_its_link(
    bundle_dir: Path, bundle: Bundle, training: HeadTraining, tmp_path: Path, up: float, down: float, rtt_ms: float
) -> None:
    payload = 1448 / 1500  # of a packet
    ways = [Way(rate, rtt_ms / 2, queue_bytes=max(2**18, round(250 * rate * rtt_ms))) for rate in (up, down)]
    with LinkEmulator(*ways) as link:
        with inside(link.trainer_namespace):
            server = Server(bundle, training, f"tcp://{link.trainer_address}:*", SessionRegistry(tmp_path / "log"))
        with serving(server), inside(link.device_namespace):
            settings = ServeSettings(
                bundle_dir, server.endpoint, steps=10, batch_size=256, ratio=Ratio(xi=1.0), micro_batches=1,
                insecure=True, evaluate_images=2, threads=1,
            )  # fmt: skip
            report = Serve(settings, Console(quiet=True), stop=lambda: False).run()
    assert report["up_mbit_s"] == pytest.approx(up * payload, rel=0.1)
    assert report["down_mbit_s"] == pytest.approx(down * payload, rel=0.1)
    assert report["rtt_min_ms"] == pytest.approx(rtt_ms, rel=0.1, abs=2.0)
