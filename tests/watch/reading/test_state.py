"""The model of a run: lines of either side and of any version, kills, resumes, outages, states."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from adc_edge.storage.run_dir import RunDir
from adc_edge.watch.reading.identity import run_identity
from adc_edge.watch.reading.series import Series
from adc_edge.watch.reading.session import WatchedSession
from adc_edge.watch.reading.state import WatchedRun
from adc_edge.watch.web.picture import picture_of_run
from tests.watch.made_runs import (
    BEGIN,
    SESSION,
    STEP_S,
    append,
    keep_tally,
    make_device_run,
    make_trainer_run,
    make_troubled_run,
    open_run,
    settings_of,
    started,
    step_line,
)

V0_6 = Path(__file__).parents[2] / "compatibility" / "v0_6"
HOLD = (
    "import fcntl,sys,time; f=open(sys.argv[1]); fcntl.flock(f,fcntl.LOCK_EX); print('held',flush=True); time.sleep(60)"
)


def read(path: Path) -> WatchedRun:
    return WatchedRun(path).read_all()


def test_a_finished_run_tells_its_steps_accuracy_bytes_and_session(tmp_path: Path) -> None:
    run = read(make_device_run(tmp_path / "run", 200, name="pi"))
    assert (run.role, run.state, run.model, run.split) == ("device", "finished", "vit_tiny_patch16_224", 2)
    assert (run.steps_done, run.steps_planned, run.accuracy) == (200, 200, 0.87)
    assert run.session == f"{SESSION:016x}"
    assert run.totals.spent("up") == {"training": 800_000, "evaluation": 50_000, "trunk": 0, "repeated": 0, "probes": 0}
    assert run.totals.uncompressed == 200 * 16 * 17 * 32 * 4 * 2
    (own,) = run.sessions.values()
    assert (own.device, own.state, own.xi, own.precision) == ("pi", "finished", 0.5, "pca1")
    assert run.clock.elapsed == pytest.approx(200 * STEP_S)
    assert not run.marks


def test_before_the_first_step_a_list_by_epoch_stands_for_its_first_precision() -> None:
    own = WatchedSession("0" * 16)
    own.begin_with("", {"precision": "pca4,pca1,pca0.5,pca0.25", "gradient_precision": "pca1,int8"}, None, 10)
    assert (own.precision, own.gradient_precision) == ("pca4", "pca1")
    own.take_step(step_line(0, BEGIN) | {"precision": "pca0.5"}, 0.0, 16, 17)
    assert own.precision == "pca0.5"


def test_an_outage_new_settings_and_a_resume_stand_at_their_steps_and_times(tmp_path: Path) -> None:
    run = read(make_troubled_run(tmp_path / "run"))
    plan, outage, resume = run.marks
    assert (plan.kind, plan.step) == ("plan", 100)
    assert "pca0.5" in plan.text
    assert outage.kind == "outage"
    assert outage.seconds == pytest.approx(30.0)
    assert outage.time == pytest.approx(BEGIN + 60 * STEP_S + 0.2)
    assert (resume.kind, resume.step) == ("resume", 140)
    assert run.totals.steps_repeated == 10
    assert tuple(run.totals.spent("up").values()) == (800_000, 50_000, 0, 40_000, 2000)
    assert tuple(run.totals.spent("down").values()) == (600_000, 900, 0, 30_000, 1000)
    (own,) = run.sessions.values()
    assert (own.xi, own.precision, own.micro_batches) == (0.25, "pca0.5", 2)


def test_a_run_that_goes_on_is_followed_and_a_resume_rewinds_it(tmp_path: Path) -> None:
    path = make_device_run(tmp_path / "run", 10, planned=50, complete=False)
    run = read(path)
    assert [line.kind for line in run.refresh()] == []
    append(path, "metrics.jsonl", step_line(10, BEGIN + 11 * STEP_S))
    (line,) = run.refresh()
    assert (line.values["step"], line.anew, run.steps_done) == (10, False, 11)
    resumed = RunDir(path, json.loads((path / "settings.json").read_text())["fixed"], {})
    resumed.rewind(8, lambda line: line["step"] < 8)
    lines = run.refresh()
    assert [line.anew for line in lines] == [True, *[False] * 7]
    assert (run.steps_done, len(run.series), run.totals.images) == (8, 8, 8 * 16)
    resumed.close()


def test_a_run_is_running_while_a_process_holds_it_and_waiting_while_its_trainer_is_away(tmp_path: Path) -> None:
    path = make_device_run(tmp_path / "run", 10, planned=50, complete=False)
    assert read(path).state == "interrupted"
    with subprocess.Popen([sys.executable, "-c", HOLD, path / "lock"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert read(path).state == "running"
        append(path, "events.jsonl", {"kind": "waiting", "time": BEGIN + 9, "since": BEGIN + 8, "tries": 3})
        run = read(path)
        assert (run.state, run.happened.waiting["tries"], run.marks[-1].seconds) == ("waiting", 3, None)
        process.kill()
    assert read(path).state == "interrupted"


def test_looking_at_a_run_neither_makes_nor_keeps_its_lock(tmp_path: Path) -> None:
    path = make_device_run(tmp_path / "run", 3)
    run = read(path)
    with open_run(path, "device", steps=3):
        run.refresh()
        assert run.state == "running"
    (path / "lock").unlink()
    before = sorted(os.listdir(path))
    read(path)
    assert sorted(os.listdir(path)) == before


def test_torn_lines_and_values_of_other_types_are_passed_over(tmp_path: Path) -> None:
    path = make_device_run(tmp_path / "run", 5, planned=9, complete=False)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st\n[1, 2]\n\n')
        file.write('{"kind": "step", "step": "x", "loss": [], "time": {}, "bytes_up": true, "seconds": null}\n')
        file.write('{"kind": ["step"]}\n{"kind": "step", "step": 5, "loss": NaN, "bytes_up": 1e400}\n')
        file.write('{"kind": "step", "step": 6, "lo')
    run = read(path)
    assert (run.steps_done, run.torn) == (6, 2)
    assert run.series.last("loss") == pytest.approx(2.3 * 0.995**4, abs=0.1)
    assert run.totals.spent("up")["training"] == 5 * 4000


@pytest.mark.parametrize("content", ["", "{", "[]", '{"fixed": {"role": "other"}}', '{"fixed": 3}'])
def test_a_run_whose_settings_cannot_be_read_is_damaged_and_shows_what_it_has(tmp_path: Path, content: str) -> None:
    path = make_device_run(tmp_path / "run", 5)
    (path / "settings.json").write_text(content)
    run = read(path)
    assert run.state == "damaged"
    assert len(run.series) == 5


def test_a_run_without_a_checkpoint_that_can_be_read_is_damaged(tmp_path: Path) -> None:
    path = make_device_run(tmp_path / "run", 5)
    keep_tally(path, 3)
    (path / "checkpoint-00000005.safetensors").write_bytes(b"torn")
    run = read(path)
    assert (run.state, run.session) == ("finished", f"{SESSION:016x}")  # the older one is whole
    (path / "checkpoint-00000003.safetensors").write_bytes(b"\xff" * 99)
    assert read(path).state == "damaged"


def test_runs_of_0_6_are_read_without_times_and_events() -> None:
    device, trainer = read(V0_6 / "device"), read(V0_6 / "trainer")
    assert (device.steps_done, device.steps_planned, device.state) == (19, 40, "interrupted")
    assert device.session == "550c131fa70f8467"
    assert device.clock.elapsed == pytest.approx(3.72, abs=0.01)
    assert (trainer.role, trainer.steps_done, trainer.clock.elapsed) == ("trainer", 19, None)
    ((key, session),) = trainer.sessions.items()
    assert (key, session.key, session.device, session.step) == (device.session, device.session, "vm", 19)


def test_a_trainer_knows_which_device_is_connected_away_finished_or_refused(tmp_path: Path) -> None:
    path = make_trainer_run(tmp_path / "run", {1: "a", 2: "b", 3: "c"}, 20)
    late, end = BEGIN + 500.0, BEGIN + 600.0
    joined = {"kind": "joined", "session": f"{4:016x}", "device": "d", "key": "k", "step": 3, "steps": 9}
    refused = {"kind": "rejected", "session": f"{9:016x}", "code": "bundle", "text": "bundle 1…", "time": end}
    append(path, "events.jsonl", started(late, 60, 0, "trainer"), joined | {"time": late})
    append(
        path, "events.jsonl", joined | {"time": late, "session": f"{5:016x}"}, refused, {"kind": "future", "time": 1}
    )
    append(path, "events.jsonl", {"kind": "away", "session": f"{5:016x}", "time": end})
    with open_run(path, "trainer"):
        run = read(path)
    states = [(key[-1], session.state) for key, session in sorted(run.sessions.items())]
    assert states == [
        ("1", "finished"),
        ("2", "finished"),
        ("3", "finished"),
        ("4", "connected"),
        ("5", "away"),
        ("9", "refused"),
    ]
    assert run.sessions[f"{9:016x}"].last_error == "bundle 1…"
    assert run.happened.refusals == {"bundle": 1}
    assert run.sessions[f"{1:016x}"].steps_per_s == pytest.approx(1 / STEP_S)
    assert read(path).sessions[f"{4:016x}"].state == "away"  # the trainer's process has ended


def test_events_are_followed_into_the_file_that_replaces_a_full_one(tmp_path: Path) -> None:
    path = make_device_run(tmp_path / "run", 5, planned=9, complete=False)
    run = read(path)
    append(path, "events.jsonl", {"kind": "warned", "time": BEGIN, "level": "WARNING", "text": "last of the old"})
    (path / "events.jsonl").rename(path / "events.1.jsonl")
    append(path, "events.jsonl", {"kind": "warned", "time": BEGIN, "level": "WARNING", "text": "first of the new"})
    assert not any(line.anew for line in [*run.refresh(), *run.refresh()])
    for found in (run, read(path)):
        assert [warning.text for warning in found.warnings] == ["last of the old", "first of the new"]
        assert found.happened.starts == 1


def test_a_series_stays_bounded_and_keeps_mean_and_range() -> None:
    series = Series(("step", "value"), limit=100)
    for step in range(100_000):
        series.add({"step": step, "value": None if step % 2 else (1000.0 if step == 51_238 else 1.0)})
    assert 50 <= len(series) <= 100
    assert max(value or 0 for value in series.high("value")) == 1000.0
    assert all(value == 1.0 for value in series.low("value"))
    steps = series.mean("step")
    assert steps == sorted(steps, key=float)  # type: ignore[arg-type]
    thin = series.thinned(7)
    assert len(thin) <= 7
    assert max(value or 0 for value in thin.high("value")) == 1000.0
    whole = sum(value or 0 for value in thin.mean("step")) / len(thin)
    assert whole == pytest.approx(50_000, rel=0.1)


def test_memory_is_bounded_over_a_long_run(tmp_path: Path) -> None:
    path = make_device_run(tmp_path / "run", 3, planned=5000, complete=False)
    run = WatchedRun(path)
    for first in range(3, 4503, 1500):
        append(path, "metrics.jsonl", *(step_line(s, BEGIN + s) for s in range(first, first + 1500)))
        run.read_all()
    assert run.steps_done == 4503
    assert len(run.series) <= 2000
    assert len(next(iter(run.sessions.values())).series) <= 500


def test_a_manifest_that_comes_after_the_settings_is_taken(tmp_path: Path) -> None:
    path = make_device_run(tmp_path / "run", 3)
    manifest = (path / "manifest.json").read_bytes()
    (path / "manifest.json").unlink()
    run = read(path)
    assert run.model == ""
    (path / "manifest.json").write_bytes(manifest)
    run.refresh()
    assert run.model == "vit_tiny_patch16_224"
    (path / "settings.json").rename(path / "gone")
    run.refresh()
    assert run.about.damaged
    (path / "gone").rename(path / "settings.json")
    run.refresh()
    assert not run.about.damaged


def test_devices_of_a_killed_trainer_are_away_until_they_join_again(tmp_path: Path) -> None:
    path = tmp_path / "run"
    joined = {"kind": "joined", "session": f"{1:016x}", "device": "a", "step": 0, "steps": 9}
    late = {"kind": "step", "session": f"{1:016x}", "device": "a", "step": 0, "head_step": 1}
    with open_run(path, "trainer"):
        append(path, "events.jsonl", started(BEGIN, 0, 0, "trainer"), joined | {"time": BEGIN + 1})
        run = read(path)
        (session,) = run.sessions.values()
        assert session.state == "connected"
        append(path, "events.jsonl", started(BEGIN + 60, 0, 0, "trainer"))
        run.refresh()
        assert (session.state, session.changed, run.outages) == ("away", BEGIN + 60, 1)
        append(path, "events.jsonl", joined | {"time": BEGIN + 70})
        run.refresh()
        (outage,) = (mark for mark in run.marks if mark.kind == "outage")
        assert (session.state, outage.seconds, outage.session) == ("connected", 10.0, session.key)
        append(path, "events.jsonl", {"kind": "away", "session": session.key, "time": BEGIN + 80})
        append(path, "metrics.jsonl", late | {"time": BEGIN + 80.2})  # its step was being computed
        run.refresh()
        assert (session.state, run.outages) == ("away", 2)


def test_outages_are_counted_without_a_checkpoint_and_repeated_steps_are_not_known(tmp_path: Path) -> None:
    with open_run(path := tmp_path / "run", "device", steps=9):
        append(path, "events.jsonl", started(BEGIN, 0, 9))
        for time in range(0, 2500, 10):
            append(path, "events.jsonl", {"kind": "waiting", "time": BEGIN + time, "since": BEGIN + time, "tries": 1})
            append(path, "events.jsonl", {"kind": "resumed", "time": BEGIN + time + 5, "seconds": 5.0})
        append(path, "events.jsonl", {"kind": "waiting", "time": BEGIN + 9999, "since": BEGIN + 9999, "tries": 1})
        about = picture_of_run(read(path))
    assert (about["outages"], about["repeated"]) == (251, None)


def test_a_file_that_an_empty_one_replaced_begins_anew_with_its_first_line(tmp_path: Path) -> None:
    path = make_device_run(tmp_path / "run", 5, planned=9, complete=False)
    run = read(path)
    (path / "new").touch()
    (path / "new").rename(path / "metrics.jsonl")
    assert run.refresh() == []
    append(path, "metrics.jsonl", step_line(0, BEGIN + 99), step_line(1, BEGIN + 100))
    assert [line.anew for line in run.refresh()] == [True, False]


def test_what_comes_after_4_mb_without_an_object_is_read(tmp_path: Path) -> None:
    path = make_device_run(tmp_path / "run", 5, planned=9, complete=False)
    with (path / "metrics.jsonl").open("a") as file:
        file.write(("[" + " " * 999 + "]\n") * 9_000)
    append(path, "metrics.jsonl", step_line(5, BEGIN + 99))
    assert read(path).steps_done == 6


def test_a_run_keeps_its_identity_over_resumes_and_new_files_of_events(tmp_path: Path) -> None:
    path = make_device_run(tmp_path / "run", 5, planned=9, complete=False)
    first = run_identity(path)
    for name in ("events.1.jsonl", "events.jsonl"):
        (path / name).write_text('{"kind": "warned", "time": 9}\n')
    with open_run(path, "device", steps=5):
        assert run_identity(path) == first
    with closing(RunDir(path, *settings_of("device", steps=9), fresh=True)):
        assert run_identity(path) != first
