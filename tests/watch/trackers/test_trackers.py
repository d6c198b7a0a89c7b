"""Trackers: what they get, once each, and that one which fails, hangs or is slow delays nothing."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adc_edge.errors import SettingError
from adc_edge.watch.reading.state import WatchedRun
from adc_edge.watch.trackers import factory
from adc_edge.watch.trackers.factory import TrackerSink, make_trackers
from adc_edge.watch.trackers.rows import RowMaker
from tests.watch.trackers.event_files import points
from tests.watch.watching import eventually
from tests.watch.written_run import WrittenRun

Make = Callable[[str], str]


def follow(run: WatchedRun, *sinks: TrackerSink) -> None:
    """Hand over every new line."""
    while lines := run.refresh():
        for sink in sinks:
            sink.take(lines)


def follow_once(path: Path, names: list[str], tensorboard: Path | None = None) -> None:
    """Watch a run from its beginning as one process does."""
    sinks = make_trackers(names, tensorboard)
    follow(WatchedRun(path), *sinks)
    for sink in sinks:
        sink.close()


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Write a module in the working directory, and return the name of its factory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names: list[str] = []

    def make(source: str) -> str:
        names.append(f"tracker_of_test_{time.monotonic_ns()}")
        (tmp_path / f"{names[-1]}.py").write_text(source)
        return f"{names[-1]}:start"

    yield make
    for name in names:
        sys.modules.pop(name, None)


RECORDER = """
runs = []

class Run:
    def __init__(self, **about):
        self.about, self.rows, self.ended = about, [], False
        self.step = max((s + 1 for r in runs if r.about["name"] == about["name"] for s, _ in r.rows), default=0)
        runs.append(self)

    def log(self, values, step):
        self.rows.append((step, values))

    def finish(self):
        self.ended = True

start = Run
"""


GATED = "import threading\ngate = threading.Event()\n" + RECORDER.replace(".append((", ".append(gate.wait(30) and (")


def recorded(name: str) -> list[Any]:
    runs: list[Any] = sys.modules[name.partition(":")[0]].runs
    return runs


def test_a_tracker_gets_each_step_with_the_evaluation_after_it_and_the_runs_settings(
    made: Make, tmp_path: Path
) -> None:
    run, name = WrittenRun(tmp_path / "edge", "device", name="cam"), made(RECORDER)
    for step in range(3):
        run.device_step(step, loss=3.0 - step)
    run.metric("evaluation", step=3, images=10, accuracy=0.5, loss=1.25, bytes_up=70, bytes_down=30)
    run.device_step(3, loss=math.nan)
    follow_once(run.path, [name, name])
    (logged,) = recorded(name)
    assert [step for step, _ in logged.rows] == [1, 2, 3, 4]
    assert logged.rows[0][1]["loss"] == 3.0
    assert logged.rows[0][1]["rtt_ms"] == 20.0
    assert logged.rows[0][1]["seconds_forward"] == 0.01
    assert "test_accuracy" not in logged.rows[1][1]
    assert (logged.rows[2][1]["test_accuracy"], logged.rows[2][1]["test_loss"]) == (0.5, 1.25)
    assert [values["bytes_so_far"] for _, values in logged.rows] == [1500, 3000, 4600, 6100]
    assert math.isnan(logged.rows[3][1]["loss"])
    assert logged.ended
    assert logged.about["project"] == "adc-edge"
    assert logged.about["config"]["model"] == "deit_tiny_patch16_224"
    assert logged.about["config"]["role"] == "device"


def test_a_trainers_devices_are_logged_by_the_heads_steps_under_their_names(made: Make, tmp_path: Path) -> None:
    run, name = WrittenRun(tmp_path / "cloud", "trainer"), made(RECORDER)
    run.trainer_step(1, 0, "cam/1", "a" * 16, loss=3.0)
    run.trainer_step(2, 0, "cam-2", "b" * 16, loss=1.0)
    run.metric("evaluation", device="cam/1", session="a" * 16, step=1, images=9, accuracy=0.5, loss=1.5)
    run.trainer_step(3, 1, "cam/1", "a" * 16, loss=2.0)
    follow_once(run.path, [name])
    (logged,) = recorded(name)
    assert [step for step, _ in logged.rows] == [1, 2, 3]
    assert logged.rows[0][1]["device/cam_1/loss"] == logged.rows[0][1]["loss"] == 3.0
    assert logged.rows[1][1]["device/cam_1/test_accuracy"] == 0.5
    assert "device/cam_1/loss" not in logged.rows[1][1]


@pytest.mark.parametrize("restarted", [False, True], ids=["watched on", "watched anew"])
def test_a_resumed_run_goes_on_in_the_same_tracker_run_and_logs_no_step_twice(
    restarted: bool, made: Make, tmp_path: Path
) -> None:
    run, name = WrittenRun(tmp_path / "edge", "device"), made(RECORDER)
    watched, sinks = WatchedRun(run.path), make_trackers([name], tmp_path / "tb")
    for step in range(10):
        run.device_step(step)
    follow(watched, *sinks)
    workers = [worker for sink in sinks for worker in sink._workers.values()]
    eventually(lambda: all(worker._run.steps_done == 10 for worker in workers))  # each one has read what is rewound
    if restarted:
        for sink in sinks:
            sink.close()
        watched, sinks = WatchedRun(run.path), make_trackers([name], tmp_path / "tb")
    run.rewind(7)
    run.event("started", role="device", version="0.9.0", pid=2, step=7, steps=100)
    for step in range(7, 13):
        run.device_step(step, loss=9.0)
    follow(watched, *sinks)
    for sink in sinks:
        sink.close()
    logs = recorded(name)
    assert len({log.about["name"] for log in logs}) == 1
    assert [step for log in logs for step, _ in log.rows] == list(range(1, 14))
    (directory,) = (tmp_path / "tb").iterdir()
    loss = [(place, value) for tag, place, value, _ in points(directory) if tag == "loss"]
    assert loss == [(step, 2.0 if step <= 10 else 9.0) for step in range(1, 14)]


def test_another_run_in_the_same_directory_is_another_tracker_run(made: Make, tmp_path: Path) -> None:
    run, name = WrittenRun(tmp_path / "edge", "device"), made(RECORDER)
    watched, sinks = WatchedRun(run.path), make_trackers([name], None)
    run.device_step(0)
    follow(watched, *sinks)
    eventually(lambda: recorded(name))
    for file in ("metrics.jsonl", "events.jsonl"):
        (run.path / file).unlink()
    run.event("started", role="device", version="0.9.0", pid=2, step=0, steps=100)
    follow(watched, *sinks)
    run.device_step(0)
    run.device_step(1)
    follow(watched, *sinks)
    sinks[0].close()
    first, second = recorded(name)
    assert first.about["name"] != second.about["name"]
    assert ([s for s, _ in first.rows], [s for s, _ in second.rows]) == ([1], [1, 2])
    assert first.ended


def test_tensorboard_gets_scalars_by_step_and_by_bytes(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "edge", "device")
    for step in range(3):
        run.device_step(step, loss=3.0 - step, accuracy=1e300)
    run.metric("evaluation", step=3, images=10, accuracy=0.5, loss=1.25, bytes_up=70, bytes_down=30)
    follow_once(run.path, [], tmp_path / "tb")
    (directory,) = (tmp_path / "tb").iterdir()
    assert directory.name.startswith("edge-")
    found = points(directory)
    assert [(place, value) for tag, place, value, _ in found if tag == "loss"] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert [(place, value) for tag, place, value, _ in found if tag == "test_accuracy"] == [(3, 0.5)]
    assert [value for tag, _, value, _ in found if tag == "accuracy"] == [math.inf] * 3
    assert all(abs(moment - time.time()) < 100 for _, _, _, moment in found)
    by_bytes = [(place, value) for tag, place, value, _ in points(directory / "by_bytes") if tag == "by_bytes/loss"]
    assert by_bytes == [(1500, 3.0), (3000, 2.0), (4600, 1.0)]


def test_what_a_killed_process_wrote_after_its_last_mark_is_written_again_and_shown_once(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "edge", "device")
    for step in range(4):
        run.device_step(step)
    follow_once(run.path, [], tmp_path / "tb")
    (directory,) = (tmp_path / "tb").iterdir()
    (directory / "logged.json").write_text('{"step": 2, "bytes": 3000}')  # as if killed before the next one
    run.device_step(4)
    follow_once(run.path, [], tmp_path / "tb")
    assert [place for tag, place, _, _ in points(directory) if tag == "loss"] == [1, 2, 3, 4, 5]
    by_bytes = points(directory / "by_bytes")
    assert [place for tag, place, _, _ in by_bytes if tag == "by_bytes/loss"] == [1500 * n for n in range(1, 6)]


FAULTS = {
    "cannot begin": "def start(**about): raise OSError('no network\\x1b[31m')",
    "exits": "import sys\ndef start(**about): sys.exit('no key')",
    "has no log": "def start(**about): return object()",
    "log fails": "class start:\n  def __init__(s, **a): ...\n  def log(s, v, step): raise ValueError('full')\n"
    "  def finish(s): raise OSError('x')",
    "hangs": "import time\nclass start:\n  def __init__(s, **a): ...\n  def log(s, v, step): time.sleep(1000)\n"
    "  def finish(s): ...",
    "hangs at the end": "import time\nclass start:\n  def __init__(s, **a): ...\n  def log(s, v, step): ...\n"
    "  def finish(s): time.sleep(1000)",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tracker_that_fails_or_hangs_delays_nothing_and_is_told_of(
    fault: str, made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(factory, "CLOSE_S", 0.3)
    run, good = WrittenRun(tmp_path / "edge", "device"), made(RECORDER)
    sinks = make_trackers([made(FAULTS[fault]), good], None)
    for step in range(50):
        run.device_step(step)
    watched = WatchedRun(run.path)
    begin = time.monotonic()
    follow(watched, *sinks)
    assert time.monotonic() - begin < 2
    for sink in sinks:
        sink.close()
    assert time.monotonic() - begin < 5
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert 0 < len(warnings) <= 4
    assert all(warning.startswith("tracker tracker_of_test") and warning.isprintable() for warning in warnings)
    (logged,) = recorded(good)
    assert len(logged.rows) == 50


def test_a_slow_tracker_gets_the_whole_past_of_a_long_run(
    made: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, name = WrittenRun(tmp_path / "edge", "device"), made(GATED)
    with (run.path / "metrics.jsonl").open("a") as out:
        out.writelines(f'{{"kind": "step", "time": {step}, "step": {step}, "loss": 1}}\n' for step in range(21_000))
    (sink,) = make_trackers([name], None)
    begin = time.monotonic()
    follow(WatchedRun(run.path), sink)
    assert time.monotonic() - begin < 5
    sys.modules[name.partition(":")[0]].gate.set()
    sink.close()
    (logged,) = recorded(name)
    assert [step for step, _ in logged.rows] == list(range(1, 21_001))
    assert not caplog.records


def test_bytes_begin_again_with_a_file_that_an_empty_one_replaced(tmp_path: Path) -> None:
    run, rows = WrittenRun(tmp_path / "edge", "device"), RowMaker()
    watched, sizes = WatchedRun(run.path), list[int]()
    (run.path / "metrics.jsonl").touch()
    for steps in (2, 0, 4):
        run.rewind(0)
        for step in range(steps):
            run.device_step(step)
        sizes += [row.bytes_so_far for line in watched.refresh() for row in rows.take(line)]
    assert sizes == [1500, 3000, 4500]


def test_a_name_that_cannot_be_imported_is_an_error_before_any_work(made: Make, tmp_path: Path) -> None:
    broken = made("import no_such_module_anywhere").partition(":")[0]
    for name, message in {
        "tensorboard": "wandb, trackio, or MODULE:FACTORY",
        "": "wandb, trackio, or MODULE:FACTORY",
        ":start": "wandb, trackio, or MODULE:FACTORY",
        "a b:start": "a b cannot be imported",
        "no_such_module_anywhere:start": "no_such_module_anywhere cannot be imported: ModuleNotFoundError",
        f"{broken}:start": "cannot be imported: ModuleNotFoundError: No module named 'no_such_module_anywhere'",
        "json:start": "json has no function start",
        "json:__name__": "json has no function __name__",
    }.items():
        with pytest.raises(SettingError, match=f"(?s)--tracker {name}.*{message}"):
            make_trackers([name], None)
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match=r"--tensorboard .*file.*: (Not a directory|File exists)"):
        make_trackers([], tmp_path / "file")


def test_nothing_is_imported_that_was_not_asked_for(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "edge", "device")
    run.device_step(0)
    code = f"""
import sys
from pathlib import Path
from adc_edge.watch.reading.state import WatchedRun
from adc_edge.watch.trackers.factory import make_trackers
(sink,) = make_trackers([], Path({str(tmp_path / "tb")!r}))
run = WatchedRun(Path({str(run.path)!r}))
sink.take(run.refresh())
sink.close()
loaded = {{name.partition(".")[0] for name in sys.modules}}
print(sorted({{"torch", "wandb", "trackio", "tensorboardX", "google", "pandas"}} & loaded))
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
    assert points(next((tmp_path / "tb").iterdir()))
