"""Images in files, in folders, and in a directory that others write to."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adc_edge.data.preprocessing import Preprocessing
from adc_edge.edge_runtime.infer import images as infer_images
from adc_edge.edge_runtime.infer.answers import broken, shown_name
from adc_edge.edge_runtime.infer.images import (
    FileVersion,
    ListedImages,
    Picture,
    WatchedImages,
    listed_files,
    read_picture,
    version_of,
)
from adc_edge.edge_runtime.infer.output import StreamWriter
from tests.inferring import write_images
from tests.serving import logged

SMALL = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)


def never() -> bool:
    return False


def test_files_and_folders_are_listed_once_in_order(tmp_path: Path) -> None:
    deep = write_images(tmp_path / "photos" / "deep", 2)
    flat = write_images(tmp_path / "photos", 2, 5)
    (tmp_path / "photos" / "notes.txt").touch()
    found = [file.path for file in listed_files([flat[1], tmp_path / "photos", flat[1]])]
    assert found == [flat[1], flat[0], *deep]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_every_image_comes_once_in_batches_and_a_broken_one_with_its_reason(size: int, tmp_path: Path) -> None:
    paths = write_images(tmp_path, 10)
    paths[4].write_bytes(b"no image at all")
    missing = FileVersion(tmp_path / "gone.png", 0)
    files = [*listed_files([tmp_path]), missing]
    batches = list(ListedImages(files, SMALL, 2).batches(size, never))
    assert max(map(len, batches)) <= size
    found = list(itertools.chain(*batches))
    assert [picture.file for picture in found] == files
    errors = {picture.file.path.name: picture.error for picture in found if picture.pixels is None}
    assert errors == {"0004.png": "no image", "gone.png": "no such file or directory"}


class Watching:
    """A directory that is watched by a thread."""

    def __init__(self, directory: Path, answered: Callable[[FileVersion], bool] = lambda file: False) -> None:
        self.found: list[Picture] = []
        self._over = threading.Event()
        self._source = WatchedImages(directory, SMALL, answered)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        for batch in self._source.batches(4, self._over.is_set):
            self.found += batch

    def __enter__(self) -> Watching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def names(self) -> list[str]:
        return [picture.file.path.name for picture in self.found]


def two_of_one_time(where: Path) -> tuple[Path, Path]:
    """Write an image below ``camera``, and another one elsewhere that its clock cannot tell from it."""
    (path,) = write_images(where / "camera", 1)
    (other,) = write_images(where / "elsewhere", 1)
    Image.new("RGB", (64, 64)).save(other)
    os.utime(other, ns=(path.stat().st_mtime_ns,) * 2)
    return path, other


def test_images_that_appear_are_read_once_and_one_that_is_written_again_once_more(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    write_images(tmp_path, 2)
    with Watching(tmp_path) as watching:
        eventually(lambda: len(watching.found) == 2)
        write_images(tmp_path / "deeper", 1, 7)
        eventually(lambda: len(watching.found) == 3)
        time.sleep(0.3)
        assert watching.names == ["0000.png", "0001.png", "0007.png"]
        write_images(tmp_path, 1)
        eventually(lambda: len(watching.found) == 4)
    assert watching.names[3:] == ["0000.png"]
    assert all(picture.pixels is not None for picture in watching.found)


def test_a_file_that_is_still_being_written_waits_until_it_is_whole(
    tmp_path: Path, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer_images, "_SETTLED_S", 3600.0)  # however long the writer is held up
    (source,) = write_images(tmp_path / "elsewhere", 1)
    data, target = source.read_bytes(), tmp_path / "camera" / "slow.png"
    target.parent.mkdir()
    with Watching(target.parent) as watching, target.open("wb") as file:
        for end in (len(data) // 3, len(data) - 6, len(data)):  # without the last bytes a decoder has all pixels
            file.write(data[file.tell() : end])
            file.flush()
            time.sleep(0.4)
        eventually(lambda: bool(watching.found))
    (picture,) = watching.found
    np.testing.assert_array_equal(picture.pixels, read_picture(version_of(source), SMALL).pixels)


def test_a_file_that_stays_broken_is_reported_once_it_has_settled(
    tmp_path: Path, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    monkeypatch.setattr(infer_images, "_SETTLED_S", 3600.0)
    with Watching(tmp_path) as watching:
        time.sleep(0.5)
        assert not watching.found
        monkeypatch.setattr(infer_images, "_SETTLED_S", 0.3)
        eventually(lambda: bool(watching.found))
        write_images(tmp_path, 1)
        eventually(lambda: len(watching.found) == 2)
        time.sleep(0.5)
    assert watching.names == ["broken.jpg", "0000.png"]
    assert watching.found[0].error


def test_images_that_were_answered_before_and_those_that_go_away_are_left_out(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    old, new = write_images(tmp_path, 2)
    known = version_of(old)
    with Watching(tmp_path, lambda file: file == known) as watching:
        eventually(lambda: bool(watching.found))
        shutil.rmtree(tmp_path)  # a mount that is away for a while
        time.sleep(0.3)
        write_images(tmp_path, 1, 9)
        eventually(lambda: len(watching.found) == 2)
    assert watching.names == [new.name, "0009.png"]


def test_images_of_a_directory_that_is_away_for_a_while_are_not_answered_again(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    camera, away = tmp_path / "camera", tmp_path / "away"
    write_images(camera, 2)
    with Watching(camera) as watching, logged("adc_edge.edge_runtime.infer") as lines:
        eventually(lambda: len(watching.found) == 2)
        camera.rename(away)
        eventually(lambda: any("cannot be listed" in line for line in lines))
        write_images(away, 1, 9)
        away.rename(camera)
        eventually(lambda: len(watching.found) >= 3)
        time.sleep(0.3)
    assert watching.names == ["0000.png", "0001.png", "0009.png"]


def test_a_file_that_is_written_again_within_the_coarse_time_of_a_memory_card_is_another_image(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    path, other = two_of_one_time(tmp_path)
    found: list[Picture] = []
    with Watching(tmp_path / "camera", lambda file: any(file[:2] == one.file[:2] for one in found)) as watching:
        found = watching.found
        eventually(lambda: len(found) == 1)
        os.replace(other, path)
        eventually(lambda: len(found) == 2)
    assert found[0].file.modified_ns == found[1].file.modified_ns


def test_a_file_that_takes_the_name_of_a_deleted_one_within_its_clocks_grain_is_another_image(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    path, other = two_of_one_time(tmp_path)
    writer = StreamWriter(lambda line: None, as_json=True)
    known = Watching(tmp_path / "camera", lambda file: writer.answered((shown_name(file), file.modified_ns)))
    with known as watching:
        eventually(lambda: len(watching.found) == 1)
        writer.write(broken(watching.found[0].file, "no image"))
        path.unlink()
        time.sleep(0.3)  # a look sees that it has gone
        os.replace(other, path)
        eventually(lambda: len(watching.found) == 2)


def test_images_of_a_mount_that_is_empty_for_a_while_are_not_answered_again(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    camera, away = tmp_path / "camera", tmp_path / "away"
    write_images(camera / "card", 2)
    with Watching(camera) as watching:
        eventually(lambda: len(watching.found) == 2)
        (camera / "card").rename(away)  # the mount point is there, and empty
        time.sleep(0.3)
        write_images(away, 1, 9)
        away.rename(camera / "card")
        eventually(lambda: len(watching.found) >= 3)
        time.sleep(0.3)
    assert watching.names == ["0000.png", "0001.png", "0009.png"]


def test_a_camera_that_deletes_its_images_fills_no_memory(
    tmp_path: Path, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer_images, "_MOST_GONE", 3)
    (tmp_path / "half.png").write_bytes(b"no image")
    with Watching(tmp_path) as watching:
        for number in range(5):
            (path,) = write_images(tmp_path, 1, number)
            eventually(lambda number=number: len(watching.found) == number + 1)
            path.unlink()
        (tmp_path / "half.png").unlink()
        source = watching._source
        eventually(lambda: not (source._done or source._seen))
    assert [file.path.name for file in source._gone] == ["0002.png", "0003.png", "0004.png"]
    assert [*source._changed_s, *source._tried] == []


def test_a_camera_whose_clock_begins_at_0_is_watched_too(tmp_path: Path, eventually: Callable[..., None]) -> None:
    (path,) = write_images(tmp_path, 1)
    os.utime(path, ns=(0, 0))
    with Watching(tmp_path) as watching:
        eventually(lambda: bool(watching.found))
    assert watching.found[0].file == version_of(path)
    assert not version_of(tmp_path / "gone.png").is_there


def test_a_file_moved_into_place_is_read_at_once(tmp_path: Path, eventually: Callable[..., None]) -> None:
    (source,) = write_images(tmp_path / "elsewhere", 1)
    (tmp_path / "camera").mkdir()
    with Watching(tmp_path / "camera") as watching:
        part = tmp_path / "camera" / "x.png.part"
        shutil.copy(source, part)
        time.sleep(0.3)
        assert not watching.found
        os.replace(part, tmp_path / "camera" / "x.png")
        eventually(lambda: bool(watching.found))
    assert watching.names == ["x.png"]
