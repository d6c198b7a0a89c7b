"""A trainer's own evaluation and the devices' classes, in report, page, metrics, trackers and on its screen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from adc_edge.cli import main
from adc_edge.cloud_trainer.screen.fleet import Fleet
from adc_edge.storage.events import CentralEvaluation
from adc_edge.watch.metrics.book import RunBook
from adc_edge.watch.metrics.gauges import GaugeCollector
from adc_edge.watch.metrics.instruments import Instruments
from adc_edge.watch.reading.state import WatchedRun
from adc_edge.watch.report.class_images import class_sheet
from adc_edge.watch.report.curves import run_values
from adc_edge.watch.trackers.rows import RowMaker
from adc_edge.watch.web.picture import picture_of_run
from tests.watch.made_runs import BEGIN, append, make_trainer_run

EVIL = "<img src=x>\x1b[31m"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = make_trainer_run(tmp_path / "cloud", {1: "kitchen", 2: EVIL, 3: "older"}, 20)
    for step, accuracy in ((30, 0.5), (60, 0.8)):
        line = {"kind": "evaluation", "source": "central", "step": step, "head_step": step, "round": step // 10}
        append(path, "metrics.jsonl", line | {"images": 1000, "accuracy": accuracy, "loss": 1.0, "time": BEGIN + 11})
    own = {"kind": "evaluation", "device": "kitchen", "session": f"{1:016x}", "step": 20, "head_step": 60}
    append(path, "metrics.jsonl", own | {"images": 50, "accuracy": 0.7, "loss": 1.1, "time": BEGIN + 12})
    told = {"kind": "toldclasses", "time": BEGIN, "of": 10}
    append(
        path,
        "events.jsonl",
        told | {"session": f"{1:016x}", "device": "kitchen", "images": {"cat": 5000, "dog": 1}, "classes": 2},
        told | {"session": f"{2:016x}", "device": EVIL, "images": {EVIL: 40, "dog": 20}, "classes": 2},
    )
    return path


def test_it_is_the_runs_accuracy_and_no_devices(run: Path) -> None:
    read = WatchedRun(run).read_all()
    assert read.accuracy == 0.8
    assert sorted(session.device for session in read.sessions.values()) == sorted(["kitchen", EVIL, "older"])
    assert [session.test_accuracy for session in read.sessions.values()] == [0.7, None, None]
    assert run_values(read, "cloud")["tests"]["accuracy"] == [0.5, 0.8]
    assert run_values(read, "cloud")["tests"]["step"] == [30, 60]


def test_the_report_shows_it_with_the_devices_accuracies_and_their_images_of_each_class(run: Path) -> None:
    page = run.parent / "report.html"
    result = CliRunner().invoke(main, ["report", str(run), "-o", str(page)])
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert "80 % of 1,000 images of the trainer&#39;s, at step 60, round 6" in text
    assert '<th scope="col">train accuracy</th><th scope="col">test accuracy</th>' in text
    assert "<td>70 %</td>" in text
    assert "Training images of each class, cloud" in text
    assert "<img src=x>" not in text
    columns, rows = class_sheet(WatchedRun(run).read_all()) or ([], [])
    assert columns == ["device", "classes", "largest / smallest", "cat", EVIL, "dog"]
    assert rows == [
        ["kitchen", "2 of 10", "5,000", "5,000", "0", "1"],
        [EVIL, "2 of 10", "2", "0", "40", "20"],
        ["all devices", "3 of 10", "238", "5,000", "40", "21"],
    ]


def test_devices_of_0_10_tell_no_classes_and_the_report_has_no_such_table(tmp_path: Path) -> None:
    assert class_sheet(WatchedRun(make_trainer_run(tmp_path / "cloud", {1: "older"}, 3)).read_all()) is None


def test_classes_without_an_end_are_counted_and_not_listed(run: Path) -> None:
    many = {f"class {number:03}": 200 - number for number in range(100)}
    told = {"kind": "toldclasses", "time": BEGIN, "session": f"{3:016x}", "device": "older", "of": 500}
    append(run, "events.jsonl", told | {"images": many, "classes": 300, "rest": 900})
    columns, rows = class_sheet(WatchedRun(run).read_all()) or ([], [])
    assert len(columns) == 3 + 12 + 1
    older = next(row for row in rows if row[0] == "older")
    assert (older[1], older[2]) == ("300 of 500", "not known")
    assert int(older[-1].replace(",", "")) == sum(many.values()) + 900 - sum(int(cell) for cell in older[3:-1])
    assert rows[-1][1] == "not known of 500"


def test_the_page_is_told_it_and_the_largest_classes(run: Path) -> None:
    picture = picture_of_run(WatchedRun(run).read_all())
    json.dumps(picture)
    assert picture["central"] == {"accuracy": 0.8, "loss": 1.0, "images": 1000, "round": 6, "step": 60}
    first, second = picture["classes"]
    assert first == {
        "device": "kitchen",
        "classes": 2,
        "of": 10,
        "ratio": 5000.0,
        "images": [["cat", 5000], ["dog", 1]],
        "others": 0,
    }
    assert "\x1b" not in second["device"] + second["images"][0][0]


def test_metrics_have_a_gauge_of_it_and_count_it_for_no_device(run: Path) -> None:
    watched, registry = WatchedRun(run), CollectorRegistry()
    book = RunBook(watched, "cloud", Instruments(registry))
    for line in watched.refresh():
        book.take(line)
    samples = [sample for family in GaugeCollector([book]).collect() for sample in family.samples]
    (central,) = (sample for sample in samples if sample.name == "adc_edge_central_accuracy_ratio")
    assert (central.value, central.labels) == (0.8, {"role": "trainer", "run": "cloud"})
    assert {sample.labels["device"] for sample in samples if "device" in sample.labels} == {
        "kitchen",
        "<img src=x>\\x1b[31m",
        "older",
    }


def test_trackers_get_it_beside_the_newest_step(run: Path) -> None:
    maker, watched = RowMaker(), WatchedRun(run)
    rows = [row for line in watched.refresh() for row in maker.take(line)] + list(maker.rest())
    assert rows[-1].step == 60
    assert rows[-1].values["central_accuracy"] == 0.8
    assert rows[-1].values["central_head_step"] == 60
    assert rows[-1].values["test_accuracy"] == 0.7


def test_the_trainers_screen_keeps_the_last_one() -> None:
    fleet = Fleet()
    for accuracy in (0.5, 0.8):
        fleet.take(CentralEvaluation(head_step=60, round=6, images=1000, accuracy=accuracy, loss=1.0, seconds=2.0))
        fleet.take({"kind": "evaluation", "source": "central", "step": 60, "accuracy": accuracy})
    fleet.update()
    assert fleet.central is not None
    assert fleet.central.accuracy == 0.8
    assert fleet.rows == {}
