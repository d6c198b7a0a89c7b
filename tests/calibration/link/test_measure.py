"""The measured link, against a link whose numbers are known."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from adc_edge.calibration.link.measure import measure_link
from adc_edge.cli import main
from adc_edge.cloud_trainer.server import Server
from adc_edge.wire.channel import Channel


class SlowProxy:
    """TCP through user space: a rate in each direction (token by token) and a delay one way."""

    def __init__(self, endpoint: str, up_mbit_s: float, down_mbit_s: float, delay_ms: float) -> None:
        host, port = endpoint.removeprefix("tcp://").split(":")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._target, self._rates, self._delay_s = (host, int(port)), (up_mbit_s, down_mbit_s), delay_ms / 1e3
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> SlowProxy:
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._listener, *self._ends):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
            cloud = socket.create_connection(self._target)
        except OSError:
            return
        self._ends += [client, cloud]
        for source, sink, rate in ((client, cloud, self._rates[0]), (cloud, client, self._rates[1])):
            source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            self._threads.append(threading.Thread(target=self._pump, args=(source, sink, rate)))
            self._threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket, mbit_s: float) -> None:
        free_at = 0.0
        queue: list[tuple[float, bytes]] = []
        try:
            source.settimeout(0.0005)
            while True:
                try:
                    data = source.recv(4096) if len(queue) < 64 else None
                    if data == b"":
                        return
                    if data:
                        free_at = max(free_at, time.monotonic()) + len(data) * 8 / (mbit_s * 1e6)
                        queue.append((free_at + self._delay_s, data))
                except TimeoutError:
                    pass
                while queue and queue[0][0] <= time.monotonic():
                    sink.sendall(queue.pop(0)[1])
                if len(queue) >= 64:
                    time.sleep(0.0005)
        except OSError:
            return


@pytest.mark.slow
def test_rates_and_round_trip_of_a_known_link_are_found(server: Server) -> None:
    with SlowProxy(server.endpoint, up_mbit_s=8, down_mbit_s=20, delay_ms=15) as proxy:
        channel = Channel(proxy.endpoint)
        channel.open(10)
        report = measure_link(channel, 4)
        channel.close()
    assert 30 <= report.rtt_min_ms <= 60  # the proxy itself lags on a busy machine
    assert report.rtt_min_ms <= report.rtt_p50_ms <= report.rtt_p95_ms <= report.rtt_p99_ms
    assert report.up_mbit_s == pytest.approx(8, rel=0.2)
    assert report.down_mbit_s == pytest.approx(20, rel=0.2)


def test_the_command_prints_a_table_and_writes_json(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "link.json"
    result = CliRunner().invoke(main, ["link", "--trainer", server.endpoint, "--seconds", "1", "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "RTT" in result.output
    report = json.loads(file.read_text())
    assert report["up_mbit_s"] > 10
    assert report["down_mbit_s"] > 10
    assert 0 < report["rtt_p50_ms"] <= report["rtt_p99_ms"]


def test_no_trainer_is_one_clear_error() -> None:
    result = CliRunner().invoke(main, ["link", "--trainer", "tcp://127.0.0.1:9", "--wait", "0.5"])
    assert result.exit_code == 1
    assert "no trainer at tcp://127.0.0.1:9" in result.output
