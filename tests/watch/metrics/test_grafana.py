"""Dashboard and alert rules: the real Prometheus server scrapes runs, and each expression does what it says."""

from __future__ import annotations

import contextlib
import json
import math
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.watch.metrics.prometheus_server import GRAFANA, Prometheus, program, prometheus
from tests.watch.metrics.scraping import Scraped, scraped
from tests.watch.written_run import WrittenRun

DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboard.json").read_text())
ALERTS = re.findall(r"- alert: (\w+)", (GRAFANA / "alerts.yml").read_text())
A, B = "a" * 16, "b" * 16


def expressions() -> list[str]:
    """Every expression of the dashboard with its variables set: everything, and windows of ten seconds."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    for name, value in {"$run": ".*", "$device": ".*", "$__rate_interval": "10s"}.items():
        found = [expression.replace(name, value) for expression in found]
    return found


class Fleet:
    """A healthy trainer and device, and ill ones, whose files grow until the fleet is stopped."""

    def __init__(self, path: Path) -> None:
        self.well_trainer = WrittenRun(path / "well-trainer", "trainer")
        self.well_device = WrittenRun(path / "well-device", "device", name="cam-1")
        self.ill_trainer = WrittenRun(path / "ill-trainer", "trainer")
        self.ill_device = WrittenRun(path / "ill-device", "device", name="cam-9")
        self.stuck = WrittenRun(path / "stuck", "device")
        self.killed = WrittenRun(path / "killed", "device")
        self.damaged = WrittenRun(path / "damaged", "device")
        (self.damaged.path / "settings.json").write_text("{")
        for run in (self.well_trainer, self.well_device, self.ill_trainer, self.ill_device, self.stuck):
            run.hold()
        ill = (self.ill_trainer, self.ill_device, self.stuck, self.killed, self.damaged)
        self.groups = [(self.well_trainer,), (self.well_device,), ill]
        for trainer in (self.well_trainer, self.ill_trainer):
            for session, device in ((A, "cam-1"), (B, "cam-2")):
                trainer.event("joined", session=session, device=device, step=0, steps=100_000)
        self._step, self._ill = 0, False

    def fall_ill(self) -> None:
        """Let everything happen that an alert is for."""
        self._ill = True
        self.ill_trainer.event("away", session=B)
        self.ill_trainer.event("rejected", code="corrupt", text="bytes changed")

    def go_on(self) -> None:
        """Write a moment's lines."""
        step, ill = self._step, self._ill
        self._step += 1
        for trainer in (self.well_trainer, self.ill_trainer):
            sick = ill and trainer is self.ill_trainer
            changed = {"loss": 5.0 if sick else 2.0, "up_mbit_s": 0.5 if sick else 8.0}
            trainer.trainer_step(2 * step + 1, step, "cam-1", A, **changed)
            if not sick:
                trainer.trainer_step(2 * step + 2, step, "cam-2", B)
            if step % 5 == 0:
                spent = {"seconds": 1.0, "seconds_head": 0.4, "seconds_codec": 0.2, "seconds_update": 0.1}
                memory = 900.0 if sick else 300.0
                trainer.event("use", **spent, memory_mb=memory, held_bytes=4096, connections=2)
                figures = {"images": 10, "accuracy": 0.5, "loss": 1.5}
                trainer.metric("evaluation", device="cam-1", session=A, step=step, **figures)
                trainer.metric("evaluation", source="central", round=1, head_step=step, step=step, **figures)
        for device in (self.well_device, self.ill_device):
            device.device_step(step, loss=math.nan if ill and device is self.ill_device else 2.0)
        if not ill:
            self.stuck.device_step(step)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[tuple[Fleet, list[Scraped]]]:
    """A fleet at work behind three exporters."""
    fleet, end = Fleet(tmp_path / "runs"), threading.Event()
    with contextlib.ExitStack() as stack:
        exporters = [stack.enter_context(scraped(*(run.path for run in group))) for group in fleet.groups]

        def work() -> None:
            while not end.wait(0.2):
                fleet.go_on()
                for exporter in exporters:
                    exporter.refresh()

        worker = threading.Thread(target=work)
        worker.start()
        stack.callback(worker.join)
        stack.callback(end.set)
        yield fleet, exporters


def has_data(server: Prometheus) -> bool:
    return all(server.query(expression) for expression in expressions())


@pytest.mark.slow
def test_every_panel_has_data_and_each_alert_fires_for_the_run_that_is_ill_alone(
    fleet: tuple[Fleet, list[Scraped]], tmp_path: Path
) -> None:
    runs, exporters = fleet
    targets = [exporter.exporter.url.split("/")[2] for exporter in exporters]
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = f"127.0.0.1:{closed.getsockname()[1]}"
    with prometheus(tmp_path / "prometheus", [*targets, dead]) as server:
        server.wait(lambda: server.query("count(adc_edge_steps_total > 20)"), "scrapes", 60)
        with contextlib.suppress(AssertionError):
            server.wait(lambda: has_data(server), "data", 30)
        assert [expression for expression in expressions() if not server.query(expression)] == []
        assert {"well-trainer", "well-device"} <= set(server.ask("label/run/values"))
        time.sleep(15)  # what is normal, to compare with
        runs.fall_ill()
        expected = {
            ("AdcEdgeDown", dead),
            ("AdcEdgeRunInterrupted", "killed"),
            ("AdcEdgeRunDamaged", "damaged"),
            ("AdcEdgeDeviceAway", "ill-trainer"),
            ("AdcEdgeNoStep", "stuck"),
            ("AdcEdgeLossNotFinite", "ill-device"),
            ("AdcEdgeLossRising", "ill-trainer"),
            ("AdcEdgeLinkSlow", "ill-trainer"),
            ("AdcEdgeRefusals", "ill-trainer"),
            ("AdcEdgeMemory", "ill-trainer"),
        }
        assert {name for name, _ in expected} == set(ALERTS)
        seen: set[tuple[str, str]] = set()

        def all_fired() -> bool:
            seen.update(server.firing())
            return seen >= expected

        server.wait(all_fired, "an alert", 150)
        assert not {(name, about) for name, about in seen if about.startswith("well-")}
        assert seen == expected, seen - expected
        problems = server.query("up != 1")
        assert [found["metric"]["instance"] for found in problems] == [dead]


@pytest.mark.slow
def test_promtool_finds_no_fault_in_rules_configuration_and_metrics(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "runs")
    fleet.go_on()
    with scraped(*(run.path for group in fleet.groups for run in group)) as it:
        it.refresh()
        text = it.text()
    tool = program("promtool")
    for command, given in {
        ("check", "rules", "--lint=all", "--lint-fatal", str(GRAFANA / "alerts.yml")): "",
        ("check", "config", "--lint=all", "--lint-fatal", str(GRAFANA / "prometheus.yml")): "",
        ("check", "metrics"): text,
    }.items():
        done = subprocess.run([tool, *command], input=given, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        assert given == "" or done.stdout + done.stderr == ""


def families(text: str) -> set[str]:
    return set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))


def test_the_docs_list_every_metric_and_dashboard_and_rules_use_known_ones(tmp_path: Path) -> None:
    with scraped(WrittenRun(tmp_path / "run", "trainer").path) as it:
        known = families(it.text())
    page = (GRAFANA.parents[1] / "docs" / "watching.md").read_text()
    assert set(re.findall(r"`(adc_edge_\w+)`", page)) == known
    written = "\n".join(expressions()) + (GRAFANA / "alerts.yml").read_text()
    used = {re.sub(r"_bucket$", "", name) for name in re.findall(r"\badc_edge_\w+", written)}
    assert used <= known
    unused = known - used
    assert not unused, f"nothing shows {unused}"


def test_the_dashboard_is_of_grafanas_form_and_its_panels_do_not_overlap() -> None:
    assert DASHBOARD["schemaVersion"] >= 39
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    for panel in panels:
        for target in panel.get("targets", ()):
            assert panel["datasource"] == target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
