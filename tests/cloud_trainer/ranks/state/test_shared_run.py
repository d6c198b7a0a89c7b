"""Lines of a rank on their way to rank 0: none is lost by a kill, and none is written twice."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from adc_edge.cloud_trainer.ranks.state.shared_run import SharedRun, WrittenLines, rank_file
from adc_edge.cloud_trainer.record.trainer_record import TrainerRecord
from adc_edge.errors import SettingError
from adc_edge.storage.checkpoint import save_checkpoint
from adc_edge.storage.events import Use, Warned
from adc_edge.storage.run_dir import RunDir

EVALUATION: dict[str, Any] = {
    "kind": "evaluation", "session": f"{7:016x}", "step": 3, "head_step": 9, "images": 4, "accuracy": 0.5, "loss": 1.0
}  # fmt: skip


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def events(run: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (run / "events.jsonl").read_text().splitlines()]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_rank_0_writes_the_lines_of_all_ranks_with_their_times(run: Path) -> None:
    with closing(RunDir(run, {}, {})) as first, closing(SharedRun(run, 1)) as second:
        second.metric(kind="step", step=0, head_step=1)
        second.event(Warned(level="warning", text="full"))
        second.event(
            Use(
                seconds=5.0, seconds_head=1, seconds_codec=0, seconds_update=0, memory_mb=9, held_bytes=0, connections=1
            )
        )
        told = second.lines.tell()
        (line,) = [json.loads(line)["metric"] for line in told.splitlines() if b'"metric"' in line]
        WrittenLines(first).hear([b"", told])
        assert metrics(run) == [line]
        assert events(run) == ["full"]  # what a process uses is that of rank 0


def test_a_line_that_nobody_would_write_again_is_on_disk_until_rank_0_has_joined_a_later_round(run: Path) -> None:
    with closing(RunDir(run, {}, {})), closing(SharedRun(run, 1)) as second:
        second.metric(kind="step", step=0, head_step=1)
        assert not rank_file(run, 1).exists()
        second.metric(**EVALUATION)
        assert rank_file(run, 1).exists()
        second.lines.tell()
        assert second.lines.tell() == b""  # rank 0 may be writing the lines of the round before
        assert rank_file(run, 1).exists()
        second.lines.tell()
        assert not rank_file(run, 1).exists()
        second.metric(**EVALUATION)
        second.lines.tell()
        second.lines.all_written()
        assert not rank_file(run, 1).exists()


def test_what_a_kill_has_left_is_taken_in_once(run: Path) -> None:
    with closing(RunDir(run, {}, {})) as first:
        for rank in (1, 3):  # also of a rank that the world has no more
            with closing(SharedRun(run, rank)) as other:
                other.metric(**EVALUATION | {"step": rank})
                other.metric(**EVALUATION | {"session": f"{8:016x}"})  # of no session of the checkpoint
                other.event(Warned(level="warning", text=f"rank {rank}"))
                if rank == 3:  # rank 0 had written this one when it was killed
                    WrittenLines(first).hear([other.lines.tell()])
        record = TrainerRecord(first)
        for line in metrics(run):
            record.keeps(line, 0, {EVALUATION["session"]})
        before = len(metrics(run))
        WrittenLines(first).take_in({7}, record.evaluated_late)
        assert [line["step"] for line in metrics(run)[before:]] == [1]
        assert events(run) == ["rank 3", "rank 1"]
        assert not list(run.glob("rank-*"))


def test_a_rank_beside_the_first_writes_heads_of_its_sessions_and_nothing_else(run: Path) -> None:
    with closing(RunDir(run, {}, {})), closing(SharedRun(run, 1)) as second:
        second.keep("best-head-1.safetensors", b"x")
        second.keep("classes.json", b"x")
        second.show("manifest.json", b"x")
        second.checkpoint(1, {}, {})
        assert second.kept("best-head-1.safetensors") == b"x"
        assert {path.name for path in run.iterdir()} == {
            "settings.json", "metrics.jsonl", "lock", "best-head-1.safetensors",
        }  # fmt: skip
        with pytest.raises(SettingError, match="in use"):
            RunDir(run, {}, {})


@contextmanager
def refusing(monkeypatch: pytest.MonkeyPatch, method: str, number: int = errno.EIO) -> Iterator[None]:
    """Have storage refuse one kind of call on files of ranks, as a network file system may."""
    real: Callable[..., Any] = getattr(Path, method)

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name.startswith("rank-"):
            raise OSError(number, os.strerror(number))
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, method, refuse)
        yield


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EROFS])
def test_a_file_that_cannot_be_deleted_ends_no_round_and_loses_no_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with closing(RunDir(run, {}, {})) as first, closing(SharedRun(run, 1)) as second:
        writes = WrittenLines(first)
        second.event(Warned(level="warning", text="before"))
        with refusing(monkeypatch, "unlink", number):
            for _ in range(3):
                writes.hear([b"", second.lines.tell()])
            assert rank_file(run, 1).exists()
            second.event(Warned(level="warning", text="after"))
            second.lines.all_written()  # nothing was told of it yet
        left = rank_file(run, 1).read_text()
        assert "after" in left  # where it is found after a kill
        writes.take_in(set(), lambda line: None)
        assert events(run) == ["before", "after"]
        for _ in range(3):
            second.lines.tell()
        assert not list(run.glob("rank-*"))


def test_what_was_taken_in_and_cannot_be_deleted_is_not_taken_in_again(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(RunDir(run, {}, {})) as first:
        with closing(SharedRun(run, 1)) as other:
            other.event(Warned(level="warning", text="left"))
            other.metric(**EVALUATION)
        record = TrainerRecord(first)
        with refusing(monkeypatch, "unlink"):
            WrittenLines(first).take_in({7}, record.evaluated_late)
        for number in range(20_000):  # more than a look at the end would find
            first.event(Warned(level="warning", text=f"{number:064d}"))
        with closing(SharedRun(run, 1)) as again:  # goes on in a file of its own
            again.event(Warned(level="warning", text="new"))
            told = again.lines.tell()
            assert "left" not in told.decode()
            WrittenLines(first).take_in({7}, record.evaluated_late)
        found = events(run)
        assert [found.count(text) for text in ("left", "new")] == [1, 1]
        assert len(metrics(run)) == 1
        assert not list(run.glob("rank-*"))


def test_a_file_that_cannot_be_read_is_kept_for_the_next_start(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(RunDir(run, {}, {})) as first:
        with closing(SharedRun(run, 1)) as other:
            other.event(Warned(level="warning", text="left"))
        with refusing(monkeypatch, "read_bytes"):
            WrittenLines(first).take_in(set(), lambda line: None)
        with closing(SharedRun(run, 1)) as again:
            again.event(Warned(level="warning", text="new"))
            again.lines.tell()
            again.lines.all_written()  # deletes its own file, and not that of the process before
        assert [path.name for path in run.glob("rank-*")] == ["rank-1.jsonl"]
        WrittenLines(first).take_in(set(), lambda line: None)
        assert events(run) == ["left"]


def test_a_line_that_was_taken_in_from_a_file_is_not_written_when_it_is_told(run: Path) -> None:
    with closing(RunDir(run, {}, {})) as first, closing(SharedRun(run, 1)) as second:
        second.event(Warned(level="warning", text="early"))  # before rank 0 has looked for files
        writes = WrittenLines(first)
        writes.take_in(set(), lambda line: None)
        writes.hear([b"", second.lines.tell()])
        assert events(run) == ["early"]


def test_each_method_of_a_run_directory_works_for_a_rank_that_does_not_own_it(run: Path) -> None:
    calls: dict[str, Callable[[SharedRun], Any]] = {
        "settle": lambda shared: shared.settle(seed=1),
        "has_begun": lambda shared: shared.has_begun,
        "latest": lambda shared: shared.latest(),
        "checkpoint": lambda shared: shared.checkpoint(9, {}, {}),
        "oldest": lambda shared: shared.oldest(8),
        "trouble": lambda shared: shared.trouble,
        "metric": lambda shared: shared.metric(kind="step"),
        "event": lambda shared: shared.event(Warned(level="warning", text="x")),
        "rewind": lambda shared: shared.rewind(0, lambda line: True),
        "keep": lambda shared: shared.keep("classes.json", b"x"),
        "show": lambda shared: shared.show("manifest.json", b"x"),
        "kept": lambda shared: shared.kept("classes.json"),
        "close": lambda shared: shared.close(),
    }
    assert calls.keys() == {name for name in vars(RunDir) if not name.startswith("_")}
    with closing(RunDir(run, {}, {})):
        before = (run / "settings.json").read_bytes()
        for step in (2, 5):
            save_checkpoint(run, step, {}, {})
        found = {name: call(SharedRun(run, 1)) for name, call in calls.items()}
        assert found["latest"].step == 5
        assert found["has_begun"] is True
        assert found["oldest"] == 2
        assert found["trouble"] is found["kept"] is None
        assert (run / "settings.json").read_bytes() == before
