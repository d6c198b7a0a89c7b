"""The answers to scrapes of a trainer's run and of a device's run."""

from __future__ import annotations

import contextlib
import math
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from adc_edge.errors import SettingError
from adc_edge.watch.metrics import endpoint
from adc_edge.watch.metrics.exporter import MetricsExporter
from adc_edge.watch.reading.state import WatchedRun
from tests.watch.metrics.scraping import scraped
from tests.watch.written_run import WrittenRun


def test_a_trainers_run_tells_devices_steps_link_memory_and_refusals(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "cloud", "trainer")
    run.hold()
    with scraped(run.path) as it:
        run.event("joined", session="a" * 16, device="cam-1", step=0, steps=100)
        run.event("joined", session="b" * 16, device="cam-2", step=0, steps=100)
        for step in range(3):
            run.trainer_step(step + 1, step, time=time.time() + step)
        run.trainer_step(4, 0, "cam-2", "b" * 16, loss=4.0)
        run.metric("evaluation", device="cam-1", session="a" * 16, step=3, images=10, accuracy=0.5, loss=1.5)
        run.event("away", session="b" * 16)
        run.event("rejected", code="key", text="unknown key")
        seconds = {"seconds": 5.0, "seconds_head": 2.0, "seconds_codec": 1.0, "seconds_update": 0.5}
        run.event("use", **seconds, memory_mb=300.0, held_bytes=4096, connections=2)
        values = it.samples()

        def value(name: str, **labels: str) -> float:
            return values[f"adc_edge_{name}", frozenset({"role": "trainer", "run": "cloud", **labels}.items())]

        assert value("steps_total", device="cam-1") == 3
        assert value("steps_total", device="cam-2") == 1
        assert value("images_total", device="cam-1") == 96
        assert value("bytes_total", device="cam-1", direction="up", kind="training") == 2700
        assert value("step", device="cam-1") == 3
        assert value("steps_planned", device="cam-1") == 100
        assert value("head_step") == 4
        assert value("head_loss") == 2.5
        assert value("loss", device="cam-2") == 4.0
        assert value("accuracy_ratio", device="cam-1") == 0.25
        assert value("test_accuracy_ratio", device="cam-1") == 0.5
        assert value("link_bytes_per_second", device="cam-1", direction="up") == 1e6
        assert value("link_rtt_seconds", device="cam-1") == 0.02
        assert value("step_seconds_count", device="cam-1") == 2  # from step to step
        assert value("head_seconds_sum", device="cam-1") == pytest.approx(0.15)
        assert value("devices", state="connected") == 1
        assert value("device_state", device="cam-2", state="away") == 1
        assert value("outages_total", device="cam-2") == 1
        assert value("refusals_total", code="key") == 1
        assert value("refusals_total", code="nan") == 0  # so that its first one is seen as an increase
        assert value("phase_seconds_total", phase="head") == 2.0
        assert value("phase_seconds_total", phase="other") == 1.5
        assert (value("memory_bytes"), value("held_bytes"), value("connections")) == (3e8, 4096, 2)
        assert value("run_state", state="running") == 1
        run.release()
        assert it.value("adc_edge_run_state", state="interrupted") == 1


def test_a_devices_run_tells_bytes_by_kind_phases_outages_and_its_step_time(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "edge", "device", name="cam-1")
    with scraped(run.path) as it:
        for step in range(2):
            run.device_step(step)
        run.metric("evaluation", step=2, images=10, accuracy=0.5, loss=1.5, bytes_up=70, bytes_down=30)
        run.event("waiting", since=time.time(), tries=1)
        run.event("resumed", seconds=12.0)
        run.event("warned", level="warning", text="the link is slow")
        values = it.samples()

    def value(name: str, **labels: str) -> float:
        return values[f"adc_edge_{name}", frozenset({"role": "device", "run": "edge", **labels}.items())]

    own = {"device": "cam-1"}
    assert value("steps_total", **own) == 2
    assert value("bytes_total", **own, direction="up", kind="training") == 2000
    assert value("bytes_total", **own, direction="down", kind="evaluation") == 30
    assert value("step_seconds_sum", **own) == pytest.approx(0.2)
    assert value("phase_seconds_total", phase="forward") == pytest.approx(0.02)
    assert value("outages_total", **own) == 1
    assert value("outage_seconds_total") == 12
    assert value("warnings_total", level="warning") == 1
    assert value("xi_ratio", **own) == 0.04
    assert value("precision_info", **own, precision="pca1", gradient_precision="pca0.25") == 1
    assert value("run_info", model="deit_tiny_patch16_224", split="3", version="0.9.0") == 1


def test_history_is_not_counted_but_its_last_values_are_shown(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "edge", "device", name="cam")
    for step in range(5):
        run.device_step(step)
    time.sleep(0.01)
    with scraped(run.path) as it:
        assert it.value("adc_edge_steps_total") == 0
        assert it.value("adc_edge_step") == 5
        run.device_step(5)
        assert it.value("adc_edge_steps_total") == 1


@pytest.mark.parametrize("role", ["device", "trainer"])
def test_a_step_that_a_resumed_run_repeats_counts_once_and_no_counter_falls(role: str, tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", role)

    def step(number: int) -> None:
        run.device_step(number) if role == "device" else run.trainer_step(number + 1, number)

    with scraped(run.path) as it:
        for number in range(10):
            step(number)
        before = it.samples()
        run.rewind(7)
        assert it.value("adc_edge_steps_total") == 10
        run.event("started", role=role, version="0.9.0", pid=2, step=7, steps=100)
        for number in range(7, 12):
            step(number)
        after = it.samples()
        assert it.value("adc_edge_steps_total") == 12
        assert it.value("adc_edge_repeated_steps_total") == 3
        assert it.value("adc_edge_step_seconds_count") in (11, 12)  # a trainer's first step has none before it
        up = "adc_edge_bytes_total"
        size = 1000 if role == "device" else 900
        assert it.value(up, direction="up", kind="training") == 12 * size
        assert it.value(up, direction="up", kind="repeated") == 3 * size
        counters = [key for key in before if key[0].endswith(("_total", "_count", "_sum", "_bucket"))]
        assert len(counters) > 20
        assert not [key for key in counters if after[key] < before[key]]


def test_a_run_that_begins_afresh_in_the_same_directory_counts_from_its_first_step(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", "device")
    with scraped(run.path) as it:
        for step in range(5):
            run.device_step(step)
        assert it.value("adc_edge_steps_total") == 5
        for name in ("metrics.jsonl", "events.jsonl"):
            (run.path / name).unlink()
        run.event("started", role="device", version="0.9.0", pid=2, step=0, steps=100)
        it.refresh()
        for step in range(2):
            run.device_step(step)
        assert it.value("adc_edge_steps_total") == 7
        assert it.value("adc_edge_repeated_steps_total") == 0
        assert it.value("adc_edge_step") == 2


def test_labels_are_bounded_cut_and_escaped(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "cloud", "trainer")
    run.hold()
    evil = '<b>"x"\\\n\x1b[31m\u202e' + "long" * 100
    with scraped(run.path) as it:
        for number, name in enumerate([evil, *(f"d{i}" for i in range(200))]):
            run.event("joined", session=f"{number:016x}", device=name, step=0, steps=9)
            run.trainer_step(number + 1, 0, name, f"{number:016x}")
            run.event("rejected", code=f"code-{number}", text="x")
            run.event("warned", level=f"L{number}", text="x")
        values = it.samples()
        text = it.text()
    devices = {dict(labels)["device"] for name, labels in values if name == "adc_edge_steps_total"}
    assert len(devices) == 65
    assert sum(value for (name, _), value in values.items() if name == "adc_edge_steps_total") == 201
    assert (
        values["adc_edge_steps_total", frozenset({"role": "trainer", "run": "cloud", "device": "other"}.items())] == 137
    )
    (first,) = (name for name in devices if name.startswith("<b>"))
    assert len(first) <= 64
    assert first.isprintable()
    assert "\\x0a\\x1b[31m\\u202e" in first
    assert not [line for line in text.splitlines() if not line.isprintable()]
    for label in ("code", "level"):
        assert len({dict(labels)[label] for _, labels in values if label in dict(labels)}) < 30
    assert (
        values["adc_edge_devices", frozenset({"role": "trainer", "run": "cloud", "state": "connected"}.items())] == 201
    )


def test_refused_peers_take_no_labels_of_devices(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "cloud", "trainer")
    with scraped(run.path) as it:
        for number in range(100):
            run.event("rejected", session=f"{number:016x}", device=f"peer{number}", code="key", text="x")
        it.samples()
        run.event("joined", session="f" * 16, device="cam", step=0, steps=9)
        devices = {dict(labels).get("device") for _, labels in it.samples()}
    assert devices == {None, "cam"}


@pytest.mark.parametrize("role", ["device", "trainer"])
def test_a_devices_counters_are_there_before_its_first_step(role: str, tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", role, name="cam")
    with scraped(run.path) as it:
        if role == "trainer":
            assert it.value("adc_edge_steps_total") is None
            run.event("joined", session="f" * 16, device="cam", step=0, steps=9)
        assert it.value("adc_edge_steps_total", device="cam") == 0


def test_a_loss_that_is_not_a_number_is_told_as_nan(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", "device")
    with scraped(run.path) as it:
        run.device_step(0, loss=math.nan)
        assert math.isnan(it.value("adc_edge_loss") or 0)
        assert math.isnan(it.value("adc_edge_head_loss") or 0)


def test_lines_with_wrong_types_do_no_harm(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", "trainer")
    with scraped(run.path) as it:
        wrong: list[Any] = [None, "x", [], {}, True, -1, 1e400, 10**400]
        for value in wrong:
            run.trainer_step(1, 0, seconds_cloud=value, images=value, body_bytes_up=value, loss=value, up_mbit_s=value)
            for name in ("step", "head_step", "device", "session", "time"):
                run.metric("step", **({"step": 1, "device": "d", "session": "c" * 16} | {name: value}))
            run.event("use", seconds=value, seconds_head=value, memory_mb=value, held_bytes=value)
            run.event("away", session=value)
            run.event("rejected", code=value)
        with (run.path / "metrics.jsonl").open("a") as out:
            out.write('{"torn": \n[1]\n"x"\n')
        run.trainer_step(90, 90, "last", "f" * 16)
        assert it.value("adc_edge_steps_total", device="last") == 1


def test_runs_of_the_same_name_have_labels_of_their_own(tmp_path: Path) -> None:
    paths = [WrittenRun(tmp_path / place / "run", "device").path for place in ("a", "b", "c")]
    with scraped(*paths) as it:
        names = {dict(labels)["run"] for _, labels in it.samples() if "run" in dict(labels)}
    assert names == {"run", "run#2", "run#3"}


def test_a_run_directory_that_does_not_exist_yet_is_scraped(tmp_path: Path) -> None:
    with scraped(tmp_path / "later") as it:
        assert it.value("adc_edge_run_state", state="running") == 0
        run = WrittenRun(tmp_path / "later", "device")
        run.device_step(0)
        assert it.value("adc_edge_steps_total", role="device") == 1


def test_a_port_in_use_is_an_error_that_names_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(SettingError, match=f"--metrics-port {port} on 127.0.0.1: Address already in use"):
            MetricsExporter([WatchedRun(tmp_path)], "127.0.0.1", port)
    for bind in ("203.0.113.7", "no such host", "a" * 300):
        with pytest.raises(SettingError, match="--metrics-port 0 on"):
            MetricsExporter([WatchedRun(tmp_path)], bind, 0)


def test_idle_and_malformed_connections_do_not_keep_a_scraper_out(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", "device")
    with scraped(run.path) as it, contextlib.ExitStack() as stack:
        run.device_step(0)
        port = int(it.exporter.url.split(":")[2].split("/")[0])
        for number in range(100):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            with contextlib.suppress(OSError):
                peer.sendall([b"", b"GET /metrics", b"\xff" * 100_000, b"POST / HTTP/9\r\n\r\n"][number % 4])
        stack.close()
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                assert it.value("adc_edge_steps_total") == 1
                return
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_peer_that_sends_byte_by_byte_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_LONGEST_S", 0.3)
    with scraped(WrittenRun(tmp_path / "run", "device").path) as it:
        port = int(it.exporter.url.split(":")[2].split("/")[0])
        with socket.create_connection(("127.0.0.1", port)) as peer, contextlib.suppress(OSError):
            for _ in range(100):
                peer.sendall(b"G")
                time.sleep(0.05)
            pytest.fail("it may still send after 5 s")


def test_a_page_of_another_site_cannot_read_the_metrics(tmp_path: Path) -> None:
    with scraped(WrittenRun(tmp_path / "run", "device").path) as it:
        for host, status in (("localhost", 200), ("127.0.0.1:9", 200), ("[::1]:80", 200), ("evil.example", 421)):
            with contextlib.closing(HTTPConnection(it.exporter.url.split("/")[2], timeout=20)) as peer:
                peer.request("GET", "/metrics", headers={"Host": host})
                assert peer.getresponse().status == status, host


SCALE = """
import json, resource, sys, time
from pathlib import Path
from tests.watch.metrics.scraping import Scraped
from tests.watch.written_run import WrittenRun

run = WrittenRun(Path(sys.argv[1]) / "cloud", "trainer")
it = Scraped((run.path,))
figures = {"loss": 2.0, "accuracy": 0.1, "seconds_cloud": 0.01, "body_bytes_up": 9, "body_bytes_down": 9}
same = {"kind": "step", "time": time.time() + 1, "images": 32, "up_mbit_s": 8.0, "rtt_ms": 3.0} | figures

def steps(first, last):
    with (run.path / "metrics.jsonl").open("a") as out:
        for number in range(first, last):
            who = {"device": f"d{number % 100}", "session": f"{number % 100:016x}", "step": number // 100}
            out.write(json.dumps(same | who | {"head_step": number + 1}) + "\\n")

steps(0, 20_000)
it.refresh()
it.text()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
steps(20_000, 100_000)
it.refresh()
times = []
for _ in range(5):
    begin = time.monotonic()
    size = len(it.text())
    times.append(time.monotonic() - begin)
assert sum(v for (n, _), v in it.samples().items() if n == "adc_edge_steps_total") == 100_000
print(min(times), size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory_and_the_time_of_a_scrape_are_bounded_over_100_000_steps(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", SCALE, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    seconds, size, grown_mb = map(float, done.stdout.split())
    print(f"a scrape: {seconds:.3f} s, {size:.0f} bytes; memory grew by {grown_mb:.1f} MB")
    assert seconds < 0.5, seconds
    assert size < 1_000_000
    assert grown_mb < 30, grown_mb
