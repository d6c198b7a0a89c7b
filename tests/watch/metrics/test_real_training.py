"""A real training with kills on both sides: metrics agree with its report, and trackers get each step once."""

from __future__ import annotations

import json
import signal
import socket
import threading
from pathlib import Path

import pytest

from adc_edge.watch.reading.state import WatchedRun
from adc_edge.watch.trackers.factory import make_trackers
from tests.chaos.run import Run
from tests.chaos.zygote import Zygote
from tests.watch.metrics.scraping import scraped
from tests.watch.trackers.event_files import points

STEPS = 60


@pytest.mark.slow
def test_metrics_and_trackers_of_a_training_with_kills_count_each_step_once(bundle_dir: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with Zygote() as zygote, scraped(tmp_path / "device", tmp_path / "trainer") as it:
        run = Run(zygote, bundle_dir, tmp_path, port, STEPS)
        assert {watched.path for watched in it.runs} == {run.device_dir, run.trainer_dir}
        sinks = make_trackers([], tmp_path / "tb")
        others, end = [WatchedRun(run.device_dir), WatchedRun(run.trainer_dir)], threading.Event()

        def follow() -> None:
            while True:
                last = end.wait(0.1)
                it.refresh()
                for watched in others:
                    while lines := watched.refresh():
                        for sink in sinks:
                            sink.take(lines)
                if last:
                    return

        follower = threading.Thread(target=follow)
        follower.start()
        try:
            trainer, device = run.trainer(), run.device(run.endpoint)
            run.reach(20)
            trainer.signal(signal.SIGKILL)
            trainer.wait(10)
            trainer = run.trainer()
            run.reach(40)
            device.signal(signal.SIGKILL)
            device.wait(10)
            device = run.device(run.endpoint)
            assert device.wait(100) == 0, run.logs()
            assert trainer.wait(20) == 0, run.logs()
        finally:
            end.set()
            follower.join()
        for sink in sinks:
            sink.close()
        report = json.loads((tmp_path / "report.json").read_text())
        for role in ("device", "trainer"):
            assert it.value("adc_edge_steps_total", role=role) == STEPS
            assert it.value("adc_edge_starts_total", role=role) == 2
            assert it.value("adc_edge_run_state", role=role, state="finished") == 1
            assert it.value("adc_edge_step", role=role) == STEPS
        assert it.value("adc_edge_repeated_steps_total", role="device") == report["steps_repeated"]
        assert it.value("adc_edge_outages_total", role="device") != 0
        sent = [it.value("adc_edge_bytes_total", role="device", direction="up", kind=kind) or 0
                for kind in ("training", "evaluation", "repeated")]  # fmt: skip
        assert sum(sent) == pytest.approx(report["bytes_total_up"], rel=0.1)
        assert it.value("adc_edge_device_state", role="trainer", state="finished") == 1
        assert it.value("adc_edge_test_accuracy_ratio", role="device") == pytest.approx(report["accuracy"])
        assert it.value("adc_edge_warnings_total", role="device", level="warning") != 0
    for directory in (tmp_path / "tb").iterdir():
        assert [place for tag, place, _, _ in points(directory) if tag == "loss"] == list(range(1, STEPS + 1))
