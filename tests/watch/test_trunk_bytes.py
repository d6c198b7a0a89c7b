"""The bytes of the trunk's changes stand in report, page, list of runs, metrics and trackers, each once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from adc_edge.cli import main
from adc_edge.storage.checkpoint import save_checkpoint
from adc_edge.watch.reading.state import WatchedRun
from adc_edge.watch.report.curves import run_values
from adc_edge.watch.trackers.rows import RowMaker, TrackedRow
from adc_edge.watch.web.picture import picture_of_run
from tests.watch.metrics.scraping import scraped
from tests.watch.written_run import WrittenRun

KITCHEN, HALL = "a" * 16, "b" * 16
UP, DOWN = 70_000, 90_000  # of one change, and of the answer


def device_average(run: WrittenRun, step: int, number: int | None = None) -> None:
    run.metric("average", step=step, round=number or step, devices=2, bytes_up=UP, bytes_down=DOWN, seconds=0.5)


def trainer_round(run: WrittenRun, step: int) -> None:
    """A round as a trainer writes it: the changes of both devices, and then each device's exchange."""
    sums = {"images": 64, "bytes_up": 2 * UP, "bytes_down": DOWN, "seconds": 0.1, "seconds_waited": 0.2, "left_out": []}
    run.metric("average", round=step, head_step=2 * step, devices=2, **sums)
    for session, device in ((KITCHEN, "kitchen"), (HALL, "hall")):
        sizes = {"body_bytes_up": UP, "body_bytes_down": DOWN}
        run.metric("trunk", device=device, session=session, step=step, head_step=2 * step, round=step, **sizes)


@pytest.fixture
def device(tmp_path: Path) -> WrittenRun:
    """Two steps, with an average before each and one after the last."""
    run = WrittenRun(tmp_path / "edge", "device", name="kitchen")
    for step in range(2):
        device_average(run, step)
        run.device_step(step)
    device_average(run, 2)
    run.metric("evaluation", step=2, images=10, accuracy=0.5, loss=1.25, bytes_up=70, bytes_down=30)
    return run


@pytest.fixture
def trainer(tmp_path: Path) -> WrittenRun:
    run = WrittenRun(tmp_path / "cloud", "trainer")
    for session, name in ((KITCHEN, "kitchen"), (HALL, "hall")):
        run.event("joined", session=session, device=name, step=0, steps=2)
    trainer_round(run, 0)
    run.trainer_step(1, 0, "kitchen", KITCHEN)
    run.trainer_step(2, 0, "hall", HALL)
    trainer_round(run, 1)
    return run


def rows(run: WatchedRun, maker: RowMaker | None = None) -> Iterator[TrackedRow]:
    maker = maker or RowMaker()
    for line in run.refresh():
        yield from maker.take(line)
    yield from maker.rest()


def test_a_devices_run_counts_them_apart_and_in_every_sum(device: WrittenRun) -> None:
    run = WatchedRun(device.path).read_all()
    assert run.totals.spent("up") == {"training": 2000, "evaluation": 70, "trunk": 3 * UP, "repeated": 0, "probes": 0}
    assert run.totals.spent("down")["trunk"] == 3 * DOWN
    assert run_values(run, "edge")["bytes"]["trunk"] == 3 * (UP + DOWN)
    assert run.series.mean("bytes") == [UP + DOWN + 1500, 2 * (UP + DOWN + 1500)]  # of a curve against bytes
    assert run.tests.last("bytes") == 3 * (UP + DOWN) + 2 * 1500
    (own,) = run.sessions.values()
    assert (own.bytes_up, own.bytes_down) == (3 * UP + 2000, 3 * DOWN + 1000)


def test_a_trainers_run_counts_the_changes_and_the_answers_of_each_device(trainer: WrittenRun) -> None:
    run = WatchedRun(trainer.path).read_all()
    assert run.totals.spent("up") == {"training": 1800, "evaluation": 0, "trunk": 4 * UP, "repeated": 0, "probes": 0}
    assert run.totals.spent("down")["trunk"] == 4 * DOWN
    assert sorted(run.sessions) == [KITCHEN, HALL]
    assert [one.bytes_down for one in run.sessions.values()] == [2 * DOWN + 400] * 2
    assert picture_of_run(run)["bytes"]["up"]["trunk"] == 4 * UP


def test_a_line_that_was_lost_is_made_up_for_by_the_checkpoint(device: WrittenRun) -> None:
    """The lines are those of three averages; the device has counted four."""
    tally = {"bytes_up": 2000, "bytes_down": 1000, "averages": 4, "evaluations": [{"step": 2}]}
    tally |= {"bytes_evaluation_up": 70, "bytes_evaluation_down": 30}
    tally |= {"bytes_trunk_up": 4 * UP, "bytes_trunk_down": 4 * DOWN}
    save_checkpoint(device.path, 2, {}, {"session": 1, "tally": tally, "fleet": {"averaged": 2, "round": 2}})
    run = WatchedRun(device.path).read_all()
    assert (run.totals.spent("up")["trunk"], run.totals.spent("up")["training"]) == (4 * UP, 2000)
    device_average(device, 3)
    run.read_all()
    assert (run.totals.spent("up")["trunk"], run.totals.spent("down")["trunk"]) == (5 * UP, 5 * DOWN)


def test_report_and_list_of_runs_show_them(device: WrittenRun, trainer: WrittenRun, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = CliRunner().invoke(main, ["report", str(device.path), str(trainer.path), "-o", str(page)])
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert '<th scope="col">trunk</th>' in text
    assert "<td>480 kB</td>" in text  # of the device
    assert "<td>640 kB</td>" in text  # of the trainer
    assert "changes of the trunk" in text
    listed = json.loads(CliRunner().invoke(main, ["runs", str(tmp_path), "--json"]).stdout)
    assert {row["run"]: row["bytes_up"] for row in listed} == {"edge": 3 * UP + 2070, "cloud": 4 * UP + 1800}


def test_metrics_of_a_device_count_an_average_that_is_told_again_once(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "edge", "device", name="kitchen")
    with scraped(run.path) as it:
        assert it.value("adc_edge_bytes_total", direction="down", kind="trunk") == 0
        for step in range(4):
            device_average(run, step)
            run.device_step(step)
        assert it.value("adc_edge_bytes_total", direction="down", kind="trunk") == 4 * DOWN
        assert it.value("adc_edge_phase_seconds_total", phase="trunk") == 2.0
        run.rewind(2)
        run.event("started", role="device", version="0.11.0", pid=2, step=2, steps=100)
        for step in range(2, 5):  # two averages come from its disk
            device_average(run, step)
            run.device_step(step)
        assert it.value("adc_edge_bytes_total", direction="up", kind="trunk") == 5 * UP
        assert it.value("adc_edge_bytes_total", direction="up", kind="repeated") == 2 * 1000
        assert it.value("adc_edge_phase_seconds_total", phase="trunk") == 2.5


def test_metrics_count_the_second_average_at_a_step_where_a_run_had_ended_and_goes_on(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "edge", "device", name="kitchen")
    with scraped(run.path) as it:
        device_average(run, 0)
        run.device_step(0)
        device_average(run, 1)
        run.event("started", role="device", version="0.11.0", pid=2, step=1, steps=100)
        for _ in range(2):  # the second time it comes from its disk
            device_average(run, 1, 5)
        run.device_step(1)
        assert it.value("adc_edge_bytes_total", direction="up", kind="trunk") == 3 * UP
        assert it.value("adc_edge_steps_total") == 2


def test_metrics_of_a_trainer_count_each_devices_exchange_and_no_round_twice(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "cloud", "trainer")
    settings = json.loads((run.path / "settings.json").read_text())
    settings["fixed"]["mode"] = "averaged, every 10 steps"
    (run.path / "settings.json").write_text(json.dumps(settings))
    with scraped(run.path) as it:
        for session, name in ((KITCHEN, "kitchen"), (HALL, "hall")):
            run.event("joined", session=session, device=name, step=0, steps=2)
        assert it.value("adc_edge_bytes_total", device="hall", direction="up", kind="trunk") == 0
        trainer_round(run, 0)
        trainer_round(run, 1)
        found = {
            (dict(labels)["device"], dict(labels)["direction"]): value
            for (name, labels), value in it.samples().items()
            if name == "adc_edge_bytes_total" and dict(labels)["kind"] == "trunk"
        }
    assert found == {
        ("kitchen", "up"): 2 * UP,
        ("kitchen", "down"): 2 * DOWN,
        ("hall", "up"): 2 * UP,
        ("hall", "down"): 2 * DOWN,
    }


def test_trackers_count_them_in_the_bytes_so_far_and_afresh_after_a_resume(
    device: WrittenRun, trainer: WrittenRun
) -> None:
    run, maker, average = WatchedRun(device.path), RowMaker(), UP + DOWN
    assert [row.bytes_so_far for row in rows(run, maker)] == [2 * average + 1500, 3 * average + 3100]
    device.rewind(2)  # its first line is an average: the sum begins with that one
    device.device_step(2)
    (row,) = rows(run, maker)
    assert (row.step, row.bytes_so_far) == (3, 2 * average + 4500)
    last = list(rows(WatchedRun(trainer.path)))[-1]
    assert last.bytes_so_far == 4 * average + 2 * 1300
