"""Files and directories are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adc_edge.errors import SettingError
from adc_edge.files import check_output, new_directory, sha256, write_atomic
from adc_edge.storage.journal import Journal


@contextmanager
def disk_that_fills_up(after_bytes: int) -> Iterator[None]:
    """Let the kernel refuse files above a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_written_with_the_directories_above_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_a_new_directory_is_flushed_into_the_one_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr("adc_edge.files.sync_directory", flushed.append)
    write_atomic(tmp_path / "rounds" / "one", b"")
    write_atomic(tmp_path / "rounds" / "two", b"")
    Journal(tmp_path / "averages")
    assert flushed == [tmp_path, tmp_path / "rounds", tmp_path / "rounds", tmp_path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with disk_that_fills_up(1000), pytest.raises(OSError, match="File too large"):
        write_atomic(path, b"x" * 5000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_first_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with disk_that_fills_up(1000), pytest.raises(OSError, match="File too large"):
        write_atomic(tmp_path / "file", b"x" * 5000)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_is_not_overwritten_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomic(tmp_path / "name", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_a_reader_never_sees_a_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = {b"a" * 300_000, b"b" * 300_000}
    write_atomic(path, b"a" * 300_000)
    done = threading.Event()

    def write() -> None:
        for _ in range(10):
            for content in contents:
                write_atomic(path, content)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(path.read_bytes())
    writer.join()
    assert seen <= contents


def test_a_new_directory_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "very" / "deep" / "bundle"
    with new_directory(target) as directory:
        (directory / "file").write_text("new")
        assert not target.exists()
    assert (target / "file").read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o755
    assert list(target.parent.iterdir()) == [target]


def test_a_new_directory_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    for name in ("first", "second"):
        with new_directory(target) as directory:
            (directory / name).touch()
    assert [path.name for path in target.iterdir()] == ["second"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_new_directory_vanishes_on_an_error_and_the_old_one_stays(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "bundle"
    with new_directory(target) as directory:
        (directory / "old").touch()

    def fail() -> None:
        with new_directory(target) as directory:
            (directory / "half").touch()
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == [target]
    assert [path.name for path in target.iterdir()] == ["old"]


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_sha256_is_that_of_the_whole_file(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    assert sha256(tmp_path / "file") == hashlib.sha256(content[:size]).hexdigest()


@pytest.mark.parametrize(
    ("name", "directory", "words"),
    [
        ("folder", False, "it is a directory, not a file"),
        ("file", True, "it is a file, not a directory"),
        ("file/below", False, "file is a file, not a directory"),
        ("file/below/it", True, "file is a file, not a directory"),
        ("pipe", False, "a device or a pipe"),
        ("x" * 300, False, "File name too long"),
        ("nul\0l", False, "null byte"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_by_name(
    tmp_path: Path, name: str, directory: bool, words: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingError, match=words):
        check_output(tmp_path / name, directory=directory)


def test_an_output_that_can_be_written_is_taken_and_nothing_is_created(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    for path, directory in ((tmp_path / "old", False), (tmp_path / "a" / "b", False), (tmp_path / "c" / "d", True)):
        assert check_output(path, directory=directory) == path
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_to_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(SettingError, match="may not be written"):
        check_output(tmp_path / "file")


def test_a_read_only_file_system_is_refused() -> None:
    with pytest.raises(SettingError, match="may not be written"):
        check_output(Path("/proc/self/file"))
