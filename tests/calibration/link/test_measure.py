"""The measured link, against a link whose numbers are known."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from adc_edge.calibration.link.measure import LEAST_BYTES, measure_link
from adc_edge.calibration.link.report import LinkReport, link_lines, link_tables
from adc_edge.cli import main
from adc_edge.cloud_trainer.server import Server
from adc_edge.errors import LinkError
from adc_edge.logs import AnyConsole
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.channel import Channel
from tests.stub_device import Device, training_beside


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
            while True:
                client, _ = self._listener.accept()
                cloud = socket.create_connection(self._target)
                self._ends += [client, cloud]
                for source, sink, rate in ((client, cloud, self._rates[0]), (cloud, client, self._rates[1])):
                    source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                    self._threads.append(threading.Thread(target=self._pump, args=(source, sink, rate)))
                    self._threads[-1].start()
        except OSError:
            return

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


def dial_to(endpoint: str) -> Callable[[Callable[[], bool]], Channel]:
    def dial(stop: Callable[[], bool]) -> Channel:
        channel = Channel(endpoint, stop=stop)
        channel.open(10)
        return channel

    return dial


def link(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["link", *map(str, arguments)])


@pytest.mark.slow
def test_rates_and_round_trip_of_a_known_link_are_found(server: Server) -> None:
    with SlowProxy(server.endpoint, up_mbit_s=8, down_mbit_s=20, delay_ms=15) as proxy:
        report = measure_link(dial_to(proxy.endpoint), 6)
    assert 30 <= report.rtt_min_ms <= 60  # the proxy itself lags on a busy machine
    assert report.rtt_min_ms <= report.rtt_p50_ms <= report.rtt_p95_ms <= report.rtt_p99_ms
    assert report.up_mbit_s == pytest.approx(8, rel=0.2)
    assert report.down_mbit_s == pytest.approx(20, rel=0.2)


def test_the_command_prints_tables_and_writes_json_and_a_plot(server: Server, tmp_path: Path) -> None:
    file, plot = tmp_path / "link.json", tmp_path / "link.svg"
    result = link("--trainer", server.endpoint, "--seconds", "1", "--json", file, "--plot", plot)
    assert result.exit_code == 0, result.output
    assert "RTT" in result.output
    report = json.loads(file.read_text())
    kept = "up_mbit_s down_mbit_s rtt_ms rtt_min_ms rtt_p50_ms rtt_p95_ms rtt_p99_ms trainer seconds pings".split()
    assert set(kept) <= set(report)
    for rate in ("up_mbit_s", "down_mbit_s", "both_up_mbit_s", "both_down_mbit_s", "up_p10_mbit_s"):
        assert report[rate] > 10
    assert 0 < report["rtt_p50_ms"] <= report["rtt_p99_ms"]
    assert min(report["rtt_up_ms"], report["rtt_down_ms"], report["rtt_both_ms"], report["rpm"]) > 0
    assert [size["bytes"] for size in report["by_size"]] == [20_000, 200_000, 2_000_000]
    assert all(size["up_count"] and size["down_count"] for size in report["by_size"])
    assert report["bulk"]
    assert {moment["load"] for moment in report["series"]} == {"idle", "up", "down", "both"}
    assert datetime.fromisoformat(report["time"]).tzinfo is not None
    assert report["bytes"] == report["bytes_up"] + report["bytes_down"] > 2_000_000
    assert b"<svg" in plot.read_bytes()


@pytest.fixture(scope="module")
def shown() -> LinkReport:
    """A report of every figure, with long numbers."""
    import msgspec

    size = {"up_count": 20, "up_mbit_s": 940.123, "up_p10_mbit_s": 901.1, "up_ms": 17.021}
    size |= {name.replace("up", "down"): value for name, value in size.items()}
    load = dict.fromkeys(("up_mbit_s", "up_p10_mbit_s", "down_mbit_s", "down_p10_mbit_s"), 941.57)
    load |= dict.fromkeys(("rtt_p50_ms", "rtt_p95_ms", "rtt_p99_ms", "rpm"), 1234.56) | {"seconds": 2.0}
    numbers = dict.fromkeys((f.name for f in msgspec.structs.fields(LinkReport)), 1.0)
    more: dict[str, Any] = {
        "time": "2026-01-01T00:00:00+00:00",
        "trainer": "tcp://203.0.113.77:5700",
        "trainer_version": "0.9.0",
        "loads": dict.fromkeys(("up", "down", "both"), load),
        "by_size": [{"bytes": number} | size for number in (20_000, 200_000, 2_000_000)],
        "retransmitted_up": None,
        "retransmitted_down": None,
        "bulk": True,
        "bbr": True,
        "congestion": "bbr",
        "congestion_down": "bbr",
        "notes": [],
        "series": [],
        "share": {"share": 0.5, "wait_s": 0.05, "devices": 2},
    }
    return msgspec.convert(numbers | more, LinkReport, strict=False)


@pytest.mark.parametrize("width", [80, 120])
def test_no_word_of_the_tables_is_broken(shown: LinkReport, width: int) -> None:
    console = AnyConsole(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        for table in link_tables(shown, width):
            console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert text.count("941.6") == 8
    assert all(word in text for word in ("RTT p50", "p95", "RPM", "200 kB", "2 MB", "tcp://203.0.113.77:5700"))


def test_no_trainer_is_one_clear_error() -> None:
    result = link("--trainer", "tcp://127.0.0.1:9", "--wait", "0.5")
    assert result.exit_code == 1
    assert "no trainer at tcp://127.0.0.1:9" in result.output


def test_a_link_that_breaks_is_one_clear_error(server: Server, proxy_type: Any) -> None:
    with proxy_type(server.endpoint) as proxy:
        proxy.cut_after(500_000)
        with pytest.raises(LinkError, match=r"the link to tcp://127\.0\.0\.1:\d+ broke while it was measured"):
            measure_link(dial_to(proxy.endpoint), 2)
        assert proxy.cuts == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-bytes", "100kB"), "at least 500 kB"),
        (("--max-bytes", "many"), "no number above 0"),
        (("--repeat", "soon", "--log", "x"), "no number above 0"),
        (("--repeat", "1m"), "--log FILE"),
        (("--plot", "link.pdf"), ".png or .svg"),
        (("--plot", "pyproject.toml/link.png"), "is a file, not a directory"),
        (("--seconds", "inf"), "not a finite number"),
    ],
)
def test_a_mistake_is_told_before_anything_is_sent(options: tuple[str, ...], said: str) -> None:
    result = link("--trainer", "tcp://127.0.0.1:9", *options)
    assert result.exit_code == 2
    assert said in result.output


def test_a_plot_without_matplotlib_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = link("--trainer", "tcp://127.0.0.1:9", "--plot", tmp_path / "link.png")
    assert result.exit_code == 2
    assert "pip install matplotlib" in result.output


@pytest.mark.parametrize("most", [LEAST_BYTES, 5_000_000])
def test_max_bytes_is_never_exceeded(server: Server, proxy_type: Any, most: int) -> None:
    with proxy_type(server.endpoint) as proxy, SlowProxy(proxy.endpoint, 20, 20, delay_ms=1) as slow:
        report = measure_link(dial_to(slow.endpoint), 2, most)
    assert most / 4 < proxy.up + proxy.down <= most
    assert report.bytes <= most
    assert report.up_mbit_s is not None
    assert any("--max-bytes" in note for note in report.notes)


def test_a_trainer_of_0_8_is_measured_by_pings(server: Server) -> None:
    del server._pongs.about["bulk_bytes"]
    report = measure_link(dial_to(server.endpoint), 1)
    assert not report.bulk
    assert report.retransmitted_down is None
    assert report.up_mbit_s is not None
    assert report.down_mbit_s is not None
    assert all(size.up_count and size.down_count for size in report.by_size)
    assert any("pings of 64 KiB" in note for note in report.notes)
    assert not any(peer.measures for peer in server.sessions.peers.values())


@pytest.mark.slow
def test_a_measurement_pauses_while_others_train(server: Server, bundle: Bundle) -> None:
    device, over = Device(bundle, server.endpoint), threading.Event()

    def train() -> None:
        device.session.open(30)
        step = 0
        while not over.is_set():
            device.step(step)
            step += 1
            time.sleep(0.02)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        while device.next_step == 0:
            time.sleep(0.01)
        report = measure_link(dial_to(server.endpoint), 2)
    finally:
        over.set()
        thread.join()
        device.session.close()
    assert report.paused_s > 0.5
    assert any("serving others" in note for note in report.notes)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_repeat_appends_a_line_for_each_measurement(
    server: Server, tmp_path: Path, number: int, code: int, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    log = tmp_path / "day" / "link.jsonl"
    command = [sys.executable, "-m", "adc_edge", "link", "--trainer", server.endpoint, "--seconds", "0.5"]
    process = subprocess.Popen(
        [*command, "--max-bytes", "1MB", "--repeat", "0.2s", "--log", str(log)], stdout=subprocess.DEVNULL
    )
    try:
        eventually(lambda: log.exists() and len(log.read_bytes().splitlines()) >= 2)
        process.send_signal(number)
        assert process.wait(30) == code
    finally:
        process.kill()
        process.wait()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(line["rtt_ms"] > 0 for line in lines)
    assert lines[0]["time"] <= lines[1]["time"]


@pytest.mark.slow
def test_an_outage_between_two_measurements_is_a_line_of_the_log(
    bundle: Bundle, server: Server, tmp_path: Path, proxy_type: Any, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    log = tmp_path / "link.jsonl"
    with proxy_type(server.endpoint) as proxy:
        command = [sys.executable, "-m", "adc_edge", "link", "--trainer", proxy.endpoint, "--seconds", "0.5"]
        process = subprocess.Popen(
            [*command, "--max-bytes", "1MB", "--repeat", "0.2s", "--log", str(log), "--wait", "0.5"],
            stdout=subprocess.DEVNULL,
        )
        eventually(lambda: log.exists() and bool(log.read_bytes()))
    try:
        eventually(lambda: b'"error"' in log.read_bytes())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert "trainer" in lines[0]
    assert lines[-1].keys() == {"time", "error"}


def test_the_share_of_a_trainer_that_trains_others_is_told_and_round_trips_are_without_the_wait(
    server: Server, bundle: Bundle
) -> None:
    with training_beside(bundle, server.endpoint, 1000) as answers:
        while len(answers) < 3:
            time.sleep(0.01)
        report = measure_link(dial_to(server.endpoint), 1.0)
        step_ms = 1e3 * min(one.seconds_cloud for one in answers)
    assert report.share
    assert report.share.devices == 2
    assert report.rtt_min_ms < step_ms / 2
    assert any("1 other device too" in line for line in link_lines(report))
