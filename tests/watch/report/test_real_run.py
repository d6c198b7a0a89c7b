"""A real training with an outage, new settings and a kill: the report has all three where the run's files have them."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from adc_edge.cli import main
from adc_edge.files import json_bytes
from adc_edge.storage.decisions import Decision
from adc_edge.storage.run_dir import DECISIONS
from adc_edge.watch.reading.state import WatchedRun
from tests.chaos.run import Run
from tests.chaos.zygote import Zygote
from tests.watch.report.test_report import data_of

pytestmark = pytest.mark.slow


def lines_of(path: Path, kind: str) -> list[dict[str, Any]]:
    return [found for line in path.read_text().splitlines() if (found := json.loads(line))["kind"] == kind]


def check_against_report(found: WatchedRun, report: dict[str, Any]) -> None:
    """Check a finished run as it is watched against what `serve --report` wrote."""
    assert found.totals.steps_repeated == report["steps_repeated"]
    for way in ("up", "down"):
        spent = found.totals.spent(way)
        total = report[f"bytes_total_{way}"]
        assert sum(spent.values()) == pytest.approx(total, abs=2000)  # those of Bye come after the last line
        assert spent["repeated"] == report[f"bytes_repeated_{way}"]
    assert found.totals.uncompressed == report["bytes_uncompressed_fp32"]
    assert found.accuracy == pytest.approx(report["accuracy"])


def test_a_killed_trainer_new_settings_and_a_killed_device_stand_in_the_report(
    bundle_dir: Path, tmp_path: Path
) -> None:
    with Zygote() as zygote, socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        probe.close()
        run = Run(zygote, bundle_dir, tmp_path, port, 60)
        run.device_dir.mkdir()
        decision = Decision(20, 2, 2, 3, 9, "pca1", "pca1", "the link became slower")
        (run.device_dir / DECISIONS).write_bytes(json_bytes([decision]))
        trainer, device = run.trainer(), run.device(run.endpoint)
        run.reach(30)
        assert WatchedRun(run.device_dir).read_all().state in ("running", "waiting")
        trainer.signal(signal.SIGKILL)
        trainer.wait(10)
        time.sleep(1.0)
        trainer = run.trainer()
        run.reach(45)
        device.signal(signal.SIGKILL)
        device.wait(10)
        stopped = WatchedRun(run.device_dir).read_all()
        assert stopped.state == "interrupted"
        device = run.device(run.endpoint)
        assert device.wait(100) == 0, run.logs()
        assert trainer.wait(20) == 0, run.logs()

    out = tmp_path / "report.html"
    result = CliRunner().invoke(main, ["report", str(run.device_dir), str(run.trainer_dir), "-o", str(out)])
    assert result.exit_code == 0, result.output
    values = data_of(out.read_text())[0]
    metrics, events = run.device_dir / "metrics.jsonl", run.device_dir / "events.jsonl"
    steps = {line["step"]: line for line in lines_of(metrics, "step")}
    assert list(steps) == list(range(60))
    origin = steps[0]["time"] - steps[0]["seconds"]
    marks = {mark["kind"]: mark for mark in values["marks"]}
    assert marks["plan"]["step"] == 20
    (change,) = lines_of(metrics, "plan")
    assert marks["plan"]["elapsed"] == pytest.approx(change["time"] - origin, abs=0.1)

    away = max(lines_of(events, "resumed"), key=lambda line: line["seconds"])
    outages = [mark for mark in values["marks"] if mark["kind"] == "outage"]
    outage = next(mark for mark in outages if mark["seconds"] == pytest.approx(away["seconds"], abs=0.1))
    assert outage["elapsed"] == pytest.approx(away["time"] - away["seconds"] - origin, abs=0.2)
    during = [step for step, line in steps.items() if line["time"] < away["time"] - away["seconds"]]
    assert abs(outage["step"] - len(during)) <= 1

    first, again = lines_of(events, "started")
    assert first["step"] == 0
    assert marks["resume"]["step"] == again["step"]
    assert marks["resume"]["elapsed"] == pytest.approx(again["time"] - origin, abs=0.1)
    found = WatchedRun(run.device_dir).read_all()
    assert found.state == "finished"
    check_against_report(found, json.loads((tmp_path / "report.json").read_text()))
    (session,) = WatchedRun(run.trainer_dir).read_all().sessions.values()
    assert (session.key, session.state, session.step) == (found.session, "finished", 60)
