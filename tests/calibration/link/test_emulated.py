"""The measured link against an emulated one, whose rate, delay and queue are known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import link
import pytest
from link_emulator import LinkEmulator, available, inside

from adc_edge.calibration.link.measure import measure_link
from adc_edge.cloud_trainer.head import HeadTraining
from adc_edge.cloud_trainer.registry import SessionRegistry
from adc_edge.cloud_trainer.server import Server
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.channel import Channel
from tests.serving import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timed,
    pytest.mark.skipif(available() is not None, reason=str(available())),
]
LAG_MS = 20.0  # of a run that is worth anything


@pytest.fixture
def emulated(bundle: Bundle, training: HeadTraining, tmp_path: Path) -> Iterator[LinkEmulator]:
    """A link, with a trainer at its far end."""
    with LinkEmulator(*link.Link(20, 20, 40).ways()) as emulator:
        with inside(emulator.trainer_namespace):
            server = Server(bundle, training, link.ENDPOINT, SessionRegistry(tmp_path / "log"))
        with serving(server):
            yield emulator


@pytest.mark.parametrize(
    "asked",
    [link.Link(20, 20, 40), link.Link(2, 20, 40)],  # others vary: `benchmarks/link.py` prints them
)
def test_rates_and_round_trips_are_those_of_the_link(emulated: LinkEmulator, asked: link.Link) -> None:
    def dial(stop: Callable[[], bool]) -> Channel:
        with inside(emulated.device_namespace):
            channel = Channel(link.ENDPOINT, stop=stop)
            channel.open(30)
        return channel

    emulated.set(*asked.ways())
    for _ in range(2):
        with link.echoes(emulated) as echoed:
            start = time.monotonic()
            report = measure_link(dial, 10)
        if emulated.lag_ms < LAG_MS:
            break
    else:
        pytest.skip("this machine is too busy to emulate a link")
    assert report.up_mbit_s == pytest.approx(asked.up_mbit_s, rel=0.1)
    assert report.down_mbit_s == pytest.approx(asked.down_mbit_s, rel=0.1)
    serial_ms = link.PING_BYTES * 8e-3 * (1 / asked.up_mbit_s + 1 / asked.down_mbit_s)
    assert report.rtt_p50_ms == pytest.approx(asked.rtt_ms + serial_ms, rel=0.05, abs=2)  # the emulator adds 1 ms
    for load in ("up", "down"):  # with both at once BBR's queue comes and goes, and the two do not see the same of it
        ours, theirs = link.beside_echoes(report.series, load, start, echoed)
        assert ours == pytest.approx(theirs, rel=0.2, abs=3)
