"""What a run leaves behind, and when it may be taken up again."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adc_edge.errors import CheckpointError, SettingError
from adc_edge.run_dir import RunDir

FIXED: dict[str, Any] = {"bundle": "1234", "seed": 7, "optimizer": {"lr": 0.001}, "shape": (4, 9)}


def test_a_run_records_what_was_asked_for(tmp_path: Path) -> None:
    RunDir(tmp_path / "a" / "run", FIXED, {"trainer": "tcp://host:5700"}).close()
    settings = json.loads((tmp_path / "a" / "run" / "settings.json").read_text())
    assert settings == {"fixed": {**FIXED, "shape": [4, 9]}, "free": {"trainer": "tcp://host:5700"}}


def test_a_run_is_resumed_with_the_same_fixed_settings_and_any_free_ones(tmp_path: Path) -> None:
    for trainer in ("tcp://a:1", "tcp://b:2"):
        RunDir(tmp_path, FIXED, {"trainer": trainer}).close()
    assert json.loads((tmp_path / "settings.json").read_text())["free"] == {"trainer": "tcp://b:2"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 8}, "seed was 7, is 8"),
        ({"optimizer": {"lr": 0.01}}, "optimizer was {'lr': 0.001}, is {'lr': 0.01}"),
        ({"shape": (4, 8)}, "shape was [4, 9], is [4, 8]"),
        ({"precision": "fp16"}, "precision was None, is 'fp16'"),
        ({"seed": 8, "bundle": "99"}, "bundle was '1234', is '99'; seed was 7, is 8"),
    ],
)
def test_a_run_with_other_fixed_settings_is_refused_naming_what_changed(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    RunDir(tmp_path, FIXED, {}).close()
    before = (tmp_path / "settings.json").read_bytes()
    with pytest.raises(CheckpointError, match="use those, or another --run directory") as caught:
        RunDir(tmp_path, {**FIXED, **changes}, {})
    assert caught.value.received == f"{tmp_path} holds another run: {named}"
    assert (tmp_path / "settings.json").read_bytes() == before


def test_a_setting_that_is_gone_is_named_too(tmp_path: Path) -> None:
    RunDir(tmp_path, FIXED, {}).close()
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
                lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
                assert json.loads(lines[-1]) == {"kind": "step", "step": step, "loss": 0.5}
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]


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
    with closing(RunDir(None, FIXED, {})) as run:
        run.metric(step=1)
        run.checkpoint(1, {}, {})
        run.keep("trunk.safetensors", b"weights")
        assert run.latest() is None
    assert list(tmp_path.iterdir()) == []
