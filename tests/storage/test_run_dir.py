"""Files of a run, and when it may be resumed."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adc_edge.errors import CheckpointError, SettingError
from adc_edge.storage.run_dir import RunDir, check_run

STATE = {"w": np.arange(3, dtype=np.float32)}
FIXED: dict[str, Any] = {"bundle": "1234", "seed": 7, "optimizer": {"lr": 0.001}, "shape": (4, 9)}


def test_a_run_records_what_was_asked_for(tmp_path: Path) -> None:
    RunDir(tmp_path / "a" / "run", FIXED, {"trainer": "tcp://host:5700"}, {"torch": "2.5"}).close()
    settings = json.loads((tmp_path / "a" / "run" / "settings.json").read_text())
    assert re.fullmatch("[0-9a-f]{12}", settings.pop("run"))
    fixed = {**FIXED, "shape": [4, 9]}
    assert settings == {"fixed": fixed, "free": {"trainer": "tcp://host:5700"}, "machine": {"torch": "2.5"}}


def test_a_run_is_resumed_with_the_same_fixed_settings_and_any_free_ones(tmp_path: Path) -> None:
    for trainer in ("tcp://a:1", "tcp://b:2"):
        RunDir(tmp_path, FIXED, {"trainer": trainer}).close()
    assert json.loads((tmp_path / "settings.json").read_text())["free"] == {"trainer": "tcp://b:2"}


def test_a_runs_number_stays_over_resumes_and_a_run_of_an_older_version_gets_none(tmp_path: Path) -> None:
    def number(**more: Any) -> str | None:
        RunDir(tmp_path, FIXED, {}, **more).close()
        found: str | None = json.loads((tmp_path / "settings.json").read_text()).get("run")
        return found

    first = number()
    assert number() == first
    assert number(fresh=True) not in (first, None)
    (tmp_path / "settings.json").write_text(json.dumps({"fixed": {**FIXED, "shape": [4, 9]}}))
    assert number() is None


def begin(path: Path) -> None:
    """A run that has done its first step."""
    with closing(RunDir(path, FIXED, {})) as run:
        run.metric(kind="step", step=0)


def test_a_run_that_has_done_no_step_is_no_obstacle_to_another(tmp_path: Path) -> None:
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        run.checkpoint(0, STATE, {"session": 1})  # of a process that never reached its trainer
    with closing(RunDir(tmp_path, {**FIXED, "seed": 8}, {})) as run:
        assert run.latest() is None
        run.checkpoint(5, STATE, {})
    with pytest.raises(CheckpointError, match="seed was 8, is 7"):
        RunDir(tmp_path, FIXED, {})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 8}, "seed was 7, is 8"),
        ({"optimizer": {"lr": 0.01}}, "optimizer lr was 0.001, is 0.01"),
        ({"shape": (4, 8)}, "shape was [4, 9], is [4, 8]"),
        ({"precision": "fp16"}, "precision was None, is 'fp16'"),
        ({"seed": 8, "bundle": "99"}, "bundle was '1234', is '99'; seed was 7, is 8"),
    ],
)
def test_a_run_with_other_fixed_settings_is_refused_naming_what_changed(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    begin(tmp_path)
    before = (tmp_path / "settings.json").read_bytes()
    with pytest.raises(CheckpointError, match="use those, or another --run directory") as caught:
        RunDir(tmp_path, {**FIXED, **changes}, {})
    assert caught.value.received == f"{tmp_path} holds another run: {named}"
    assert (tmp_path / "settings.json").read_bytes() == before
    RunDir(tmp_path, FIXED, {}).close()  # whoever is refused holds nothing


def test_a_setting_that_is_gone_is_named_too(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(CheckpointError, match="seed was 7, is None"):
        RunDir(tmp_path, {name: value for name, value in FIXED.items() if name != "seed"}, {})


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"nonsense", b"\xff", b'{"fixed": 3}'])
def test_settings_that_cannot_be_read_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"settings\.json"):
        RunDir(tmp_path, FIXED, {})


def test_a_directory_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(SettingError, match=r"--run .*file.*\n.*a directory to write to"):
            RunDir(path, FIXED, {})
    with pytest.raises(SettingError, match="a directory to write to"):
        RunDir(Path("/proc/nothing/run"), FIXED, {})


def test_metrics_are_one_json_object_a_line_and_are_there_at_once(tmp_path: Path) -> None:
    for start in (0, 2):  # the second start continues the file
        with closing(RunDir(tmp_path, FIXED, {})) as run:
            for step in (start, start + 1):
                run.metric(kind="step", step=step, loss=0.5)
                assert read(tmp_path)[-1] == {"kind": "step", "step": step, "loss": 0.5}
    assert [line["step"] for line in read(tmp_path)] == [0, 1, 2, 3]


def test_a_metric_tells_its_time(tmp_path: Path) -> None:
    before = time.time()
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        run.metric(step=0)
    told = json.loads((tmp_path / "metrics.jsonl").read_text())["time"]
    assert before - 0.001 <= told <= time.time() + 0.001


def test_the_newest_state_comes_back(tmp_path: Path) -> None:
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        assert run.latest() is None
        for step in (5, 10):
            run.checkpoint(step, {"w": np.full(3, step, np.float32)}, {"session": step})
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        latest = run.latest()
    assert latest is not None
    assert (latest.step, latest.meta, latest.arrays["w"].tolist()) == (10, {"session": 10}, [10, 10, 10])


def test_files_of_the_run_are_kept_whole(tmp_path: Path) -> None:
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        run.keep("trunk.safetensors", b"first")
        run.keep("trunk.safetensors", b"second")
    assert (tmp_path / "trunk.safetensors").read_bytes() == b"second"


def test_without_a_directory_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(RunDir(None, FIXED, {}, fresh=True)) as run:
        run.metric(step=1)
        run.checkpoint(1, {}, {})
        run.keep("trunk.safetensors", b"weights")
        assert run.latest() is None
        assert run.rewind(0, lambda line: True) == []
        assert run.oldest(7) == 7  # it cannot come back at all
        run.journal.mkdir(exist_ok=True)
        (run.journal / "00000001").write_bytes(b"sent")
    assert list(tmp_path.iterdir()) == []
    assert not run.journal.exists()


@contextmanager
def at_work(path: Path, *, fresh: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a run until it is killed."""
    code = f"""
import pathlib, time
from adc_edge.storage.run_dir import RunDir
run = RunDir(pathlib.Path({str(path)!r}), {FIXED!r}, {{}}, fresh={fresh})
run.metric(step=0)
print("holds it", flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "holds it\n"
        yield process
        process.kill()
    process.wait()


def test_one_process_at_a_time_and_the_next_one_as_soon_as_the_first_is_dead(tmp_path: Path) -> None:
    with at_work(tmp_path) as first:
        for fresh in (False, True):
            with pytest.raises(SettingError, match="in use by another process"):
                RunDir(tmp_path, FIXED, {}, fresh=fresh)
        assert read(tmp_path) == [{"step": 0}]
        first.send_signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        RunDir(tmp_path, FIXED, {}).close()
        with at_work(tmp_path):
            pass
    RunDir(tmp_path, FIXED, {}).close()


def test_a_run_that_is_closed_lets_its_directory_go(tmp_path: Path) -> None:
    run = RunDir(tmp_path, FIXED, {})
    with (tmp_path / "lock").open() as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        run.close()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_fresh_forgets_the_run_and_nothing_but_the_run(tmp_path: Path) -> None:
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        run.checkpoint(5, STATE, {})
        run.checkpoint(10, STATE, {})
        run.metric(step=9)
        run.keep("trunk.safetensors", b"weights")
        run.keep("head.safetensors", b"weights")
        (run.journal / "0123").mkdir(parents=True)
        (run.journal / "0123" / "00000009").write_bytes(b"sent")
    (tmp_path / ".checkpoint-00000011.safetensors.x1").write_bytes(b"cut off")
    theirs = ("notes.txt", "model.safetensors", "checkpoint.pt", "metrics.jsonl.bak", "plots/loss.png")
    for name in theirs:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"the user's")
    with closing(RunDir(tmp_path, {**FIXED, "seed": 8}, {}, fresh=True)) as run:
        assert run.latest() is None
        assert not run.journal.exists()
        assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"settings.json", "metrics.jsonl", "lock", *theirs}
    RunDir(tmp_path, FIXED, {}).close()
    RunDir(tmp_path / "empty", FIXED, {}, fresh=True).close()


@pytest.mark.parametrize(
    "left", ["rounds/checkpoint-00000003.safetensors", "averages/00000010-0", "journal/00000009-0"]
)
def test_a_run_that_a_kill_left_half_deleted_is_refused_until_fresh_deletes_the_rest(tmp_path: Path, left: str) -> None:
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        run.checkpoint(5, STATE, {})
        (tmp_path / left).parent.mkdir()
        (tmp_path / left).write_bytes(b"of the run")

    def refused() -> None:
        for check in (lambda: RunDir(tmp_path, FIXED, {}), lambda: check_run(tmp_path, FIXED, fresh=False)):
            with pytest.raises(CheckpointError, match=r"no settings\.json") as error:
                check()
            assert "--fresh" in error.value.remedy

    (tmp_path / "settings.json").unlink()  # what --fresh deletes first
    refused()
    (tmp_path / "checkpoint-00000005.safetensors").unlink()
    refused()
    with closing(RunDir(tmp_path, FIXED, {}, fresh=True)):
        assert not (tmp_path / left).parent.exists()
    RunDir(tmp_path, FIXED, {}).close()


def test_fresh_deletes_the_settings_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        run.checkpoint(5, STATE, {})
    deleted: list[str] = []
    unlink = Path.unlink

    def noted(path: Path, **more: bool) -> None:
        deleted.append(path.name)
        unlink(path, **more)

    monkeypatch.setattr(Path, "unlink", noted)
    RunDir(tmp_path, FIXED, {}, fresh=True).close()
    assert deleted[0] == "settings.json"


def test_fresh_is_the_way_out_of_settings_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="--fresh"):
        RunDir(tmp_path, FIXED, {})
    RunDir(tmp_path, FIXED, {}, fresh=True).close()


def test_what_a_kill_left_in_the_middle_of_writing_is_removed_at_the_next_start(tmp_path: Path) -> None:
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        run.checkpoint(5, STATE, {})
    (tmp_path / ".checkpoint-00000010.safetensors.abc123").write_bytes(b"cut off")
    (tmp_path / "rounds").mkdir()
    for name in (".checkpoint-00000002.safetensors.x1", ".change-00000002.x2", ".turn.x3"):
        (tmp_path / "rounds" / name).write_bytes(b"cut off")
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        latest = run.latest()
    assert latest is not None
    assert latest.step == 5
    assert not list(tmp_path.rglob(".*"))


def test_a_machine_that_has_changed_is_told_and_admitted(tmp_path: Path) -> None:
    before = {"torch": "2.5", "threads": 4, "processor": "Cortex-A78AE"}
    for machine, changes in (
        (None, []),
        (before, []),  # of the first run nothing is known
        (before, []),
        ({**before, "threads": 2}, ["threads was 4, is 2"]),
        ({"torch": "2.6", "threads": 2}, ["torch was '2.5', is '2.6'", "processor was 'Cortex-A78AE', is None"]),
    ):
        with closing(RunDir(tmp_path, FIXED, {}, machine)) as run:
            assert run.changes == changes


def test_a_run_may_come_back_to_the_older_of_two_checkpoints_or_to_the_beginning(tmp_path: Path) -> None:
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        seen = [run.oldest(0)]
        for step in (0, 5, 10, 15):
            run.checkpoint(step, STATE, {})
            seen.append(run.oldest(step))
    assert seen == [0, 0, 0, 5, 10]


def test_the_newest_checkpoint_up_to_a_step_comes_back(tmp_path: Path) -> None:
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        for step in (5, 10):
            run.checkpoint(step, STATE, {})
        found = [run.latest(until) for until in (4, 5, 9, 10, 99)]
    assert [kept and kept.step for kept in found] == [None, 5, 5, 10, 10]


def test_going_back_drops_what_came_after_and_tells_which_metrics(tmp_path: Path) -> None:
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        for step in (5, 10):
            run.checkpoint(step, STATE, {})
        for step in range(12):
            run.metric(step=step)
        dropped = run.rewind(5, lambda line: int(line["step"]) < 5)
        assert [line["step"] for line in dropped] == list(range(5, 12))
        latest = run.latest()
        assert latest is not None
        assert latest.step == 5
        run.metric(step=5)
        assert run.rewind(5, lambda line: True) == []
    assert read(tmp_path) == [{"step": step} for step in range(6)]
    assert sorted(path.name for path in tmp_path.glob("*checkpoint*")) == ["checkpoint-00000005.safetensors"]


@pytest.mark.parametrize("torn", [b"{", b'{"step": 3, "loss": 0.', b'{"step": 3}', b"\xff\xfe", b"\n\n"])
def test_a_last_line_torn_by_a_power_cut_costs_that_line_at_most(tmp_path: Path, torn: bytes) -> None:
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        for step in range(3):
            run.metric(step=step)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        run.rewind(3, lambda line: line["step"] < 3)
        run.metric(step=3)
    assert read(tmp_path) == [{"step": step} for step in range(4)]


def read(path: Path) -> list[Any]:
    """Every line of metrics.jsonl, without its time."""
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def readable(path: Path) -> list[int]:
    """Steps of the lines of metrics.jsonl that can be read."""
    steps = []
    for line in (path / "metrics.jsonl").read_bytes().splitlines():
        try:
            steps.append(json.loads(line)["step"])
        except ValueError:
            continue
    return steps


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Callable[[int | None], None]]:
    """Sets how large a file may grow: to this process that is a disk that fills up in the middle of a write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (limits[0] if size is None else size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_fills_up_at_any_byte_loses_no_line_but_those_that_it_said_it_lost(
    tmp_path: Path, room: Callable[[int | None], None]
) -> None:
    for limit in range(5 * len(b'{"step": 100, "time": 1795934215.0}\n')):
        with closing(RunDir(tmp_path / str(limit), FIXED, {})) as run:
            written = []
            room(limit)
            for step in range(100, 105):
                run.metric(step=step)
                if run.trouble is None:
                    written.append(step)
            assert isinstance(run.trouble, OSError)
            for step in range(200, 202):
                room(None)
                run.metric(step=step)
                assert run.trouble is None
            found = readable(tmp_path / str(limit))
            assert set(found) >= {*written, 200, 201}
            assert found == sorted(set(found))
            run.rewind(0, lambda line: True)
        assert [line["step"] for line in read(tmp_path / str(limit))] == found


def test_a_disk_too_full_to_go_back_says_so_and_the_metrics_go_on(
    tmp_path: Path, room: Callable[[int | None], None]
) -> None:
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        for step in range(100):
            run.metric(step=step)
        room(100)
        with pytest.raises(OSError, match=r"metrics\.jsonl"):
            run.rewind(90, lambda line: line["step"] < 90)
        room(None)
        run.metric(step=100)
        assert run.trouble is None
    assert [line["step"] for line in read(tmp_path)] == list(range(101))


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_and_nothing_else(
    tmp_path: Path, room: Callable[[int | None], None]
) -> None:
    with closing(RunDir(tmp_path, FIXED, {})) as run:
        run.checkpoint(5, STATE, {})
        before = sorted(os.listdir(tmp_path))
        room(2000)
        with pytest.raises(OSError, match="checkpoint-00000010"):
            run.checkpoint(10, {"w": np.zeros(1000, np.float32)}, {})
        room(None)
        assert sorted(os.listdir(tmp_path)) == before
        latest = run.latest()
    assert latest is not None
    assert latest.step == 5
