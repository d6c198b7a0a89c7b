"""Whether a process is at work in a run directory is seen by anyone, and looking disturbs nobody."""

from __future__ import annotations

import fcntl
from contextlib import closing
from pathlib import Path

from adc_edge.storage.run_dir import RunDir
from adc_edge.storage.run_lock import LOCK, is_held


def test_a_run_is_held_while_a_process_is_at_work_in_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert not is_held(run)
    with closing(RunDir(run, {}, {})):
        assert is_held(run)
    assert not is_held(run)


def test_others_who_look_at_the_same_time_are_no_process_at_work(tmp_path: Path) -> None:
    with closing(RunDir(tmp_path, {}, {})):
        pass
    with (tmp_path / LOCK).open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not is_held(tmp_path)
