"""A class of a device's data stays at one output of the head for the whole run, and the screen shows the data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import UNSET

from adc_edge.cloud_trainer.server import Server
from adc_edge.data.sources import ArraySplit, Dataset
from adc_edge.edge_runtime.classes.labels import DeviceClasses
from adc_edge.edge_runtime.classes.summary import overview
from adc_edge.edge_runtime.settings import same_source
from adc_edge.errors import CheckpointError, DataError, RefusedError
from adc_edge.storage.bundle import Bundle, Manifest
from adc_edge.storage.run_dir import CLASSES, LearnedClasses, RunDir
from adc_edge.wire.class_names import pack_names
from adc_edge.wire.messages import ClassNames, Welcome
from tests.serving import logged
from tests.stub_device import Device


def dataset(images: dict[str, tuple[int, int]], named: bool = True) -> Dataset:
    labels = ([label for label, counts in enumerate(images.values()) for _ in range(counts[i])] for i in (0, 1))
    train, test = (ArraySplit(np.zeros((len(y), 4, 4), np.uint8), np.array(y, np.int64)) for y in labels)
    return Dataset(train, test, list(images), named)


def manifest(bundle: Bundle, **fields: Any) -> Manifest:
    return msgspec.structs.replace(bundle.manifest, **fields)


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[RunDir]:
    with closing(RunDir(tmp_path / "run", {}, {})) as found:
        yield found


def test_two_devices_get_one_list_over_the_wire_and_each_labels_by_it(bundle: Bundle, server: Server) -> None:
    found = []
    for number, images in enumerate(({"cat": (2, 1), "dog": (1, 0)}, {"dog": (1, 1), "zebra": (2, 0)}), 1):
        data = dataset(images)
        device = Device(bundle, server.endpoint, session=number, classes=DeviceClasses(data, bundle.manifest))
        device.session.open(30)
        device.step(0)
        found.append((data.train.labels.tolist(), data.test.labels.tolist()))
        device.session.close()
    assert found == [([0, 0, 1], [0]), ([1, 2, 2], [1])]
    assert server._answers._classes.names == ["cat", "dog", "zebra"]


@pytest.mark.parametrize(
    ("labels", "remedy"),
    [
        (np.arange(1, 11), "y = y - 1"),
        (np.arange(-1, 9), "x[y >= 0]"),
        (np.array([0, *range(100, 1000, 100)]), "np.unique"),
    ],
)
def test_numbers_that_are_no_outputs_are_refused_with_the_line_that_mends_them(
    bundle: Bundle, labels: Any, remedy: str
) -> None:
    split = ArraySplit(np.zeros((10, 4, 4), np.uint8), labels)
    data = Dataset(split, split, [str(number) for number in range(labels.max() + 1)], named=False)
    with pytest.raises(DataError, match=f"labels from {labels.min()} to {labels.max()}") as caught:
        DeviceClasses(data, bundle.manifest)
    assert remedy in caught.value.remedy


def test_names_travel_once_to_a_trainer_process_and_not_again_after_an_outage(bundle: Bundle, server: Server) -> None:
    classes = DeviceClasses(dataset({"cat": (2, 1)}), bundle.manifest)
    device = Device(bundle, server.endpoint, classes=classes)
    device.session.open(30)
    sent = []
    device.session.channel.send = lambda *message: sent.append(message)  # type: ignore[method-assign]
    device.session.channel.disconnect()
    device.session.open(30)
    assert not sent
    device.session.close()


def test_a_device_that_the_head_has_no_room_for_is_refused_by_the_trainer(bundle: Bundle, server: Server) -> None:
    server._answers._classes.learn([f"c{number}" for number in range(10)], False, "first")
    classes = DeviceClasses(dataset({"cat": (2, 1)}), bundle.manifest)
    device = Device(bundle, server.endpoint, classes=classes)
    with pytest.raises(RefusedError, match="1 new class: cat") as caught:
        device.session.open(30)
    assert "export --num-classes 11" in caught.value.remedy
    device.session.close()


def test_more_classes_than_outputs_are_refused_before_any_trainer_is_asked(bundle: Bundle) -> None:
    with pytest.raises(DataError, match="11 new classes: c0, c1, c2, c3, c4 and 6 more"):
        DeviceClasses(dataset({f"c{number}": (1, 1) for number in range(11)}), bundle.manifest)


def test_a_bundle_with_names_needs_no_trainer_to_map_them(bundle: Bundle) -> None:
    data = dataset({"cat": (1, 1), "dog": (2, 0), "misc": (0, 0)})
    named = manifest(bundle, classes=3, class_names=["zebra", "dog", "cat"])
    DeviceClasses(data, named).take_own()
    assert data.train.labels.tolist() == [2, 1, 1]
    with pytest.raises(DataError, match="1 class that the head lacks: Dog"):
        DeviceClasses(dataset({"Dog": (1, 1)}), named)
    with pytest.raises(DataError, match="without class names"):
        DeviceClasses(dataset({"0": (1, 1)}, named=False), named)


def test_a_class_added_before_a_resume_comes_last_and_one_that_vanished_keeps_its_output(
    bundle: Bundle, run_dir: RunDir
) -> None:
    first = DeviceClasses(dataset({"cat": (1, 1), "dog": (1, 1)}), bundle.manifest)
    first.resume(run_dir, 0)
    first.take(first.told())
    second = DeviceClasses(dataset({"ant": (1, 0), "dog": (1, 1)}), bundle.manifest)
    second.resume(run_dir, 5)
    assert second.told() == ["cat", "dog", "ant"]


def test_a_trainer_whose_list_moves_a_class_of_this_run_is_refused(bundle: Bundle, run_dir: RunDir) -> None:
    data = dataset({"cat": (1, 1), "dog": (1, 1)})
    classes = DeviceClasses(data, bundle.manifest)
    classes.resume(run_dir, 0)
    classes.take(["cat", "dog"])
    with pytest.raises(CheckpointError, match="'cat' at output 1") as caught:
        classes.take(["dog", "cat"])
    assert "--fresh" in caught.value.remedy
    assert data.train.labels.tolist() == [0, 1]


def test_a_run_of_0_6_keeps_its_labels(bundle: Bundle, run_dir: RunDir) -> None:
    classes = DeviceClasses(dataset({"cat": (1, 1), "dog": (1, 1)}), bundle.manifest)
    classes.resume(run_dir, 18)
    with pytest.raises(CheckpointError, match="output 0, which it has trained"):
        classes.take(["dog", "cat"])
    classes.take(["cat", "dog", "zebra"])


def test_a_trainer_of_0_6_gets_positions_and_a_class_added_later_still_comes_last(
    bundle: Bundle, run_dir: RunDir
) -> None:
    with logged("adc_edge.edge_runtime") as lines:
        first = DeviceClasses(dataset({"cat": (1, 1), "dog": (1, 1)}), bundle.manifest)
        first.resume(run_dir, 0)
        first.take_own()
    assert "keeps no class names" in lines[0]
    data = dataset({"ant": (1, 0), "cat": (1, 1), "dog": (1, 1)})
    second = DeviceClasses(data, bundle.manifest)
    second.resume(run_dir, 5)
    second.take_own()
    assert data.train.labels.tolist() == [2, 0, 1]


def test_a_class_without_images_takes_no_output_of_a_head_that_others_need(bundle: Bundle) -> None:
    images = {"ant": (0, 0), "cat": (1, 1)}
    assert DeviceClasses(dataset(images), bundle.manifest).told() == ["cat"]
    trained = manifest(bundle, classes=2, classifier_kept=True)
    assert DeviceClasses(dataset(images), trained).told() == ["ant", "cat"]


def test_a_damaged_file_of_classes_is_refused(bundle: Bundle, run_dir: RunDir) -> None:
    run_dir.keep(CLASSES, b"{")
    with pytest.raises(CheckpointError, match=r"classes\.json"):
        DeviceClasses(dataset({"cat": (1, 1)}), bundle.manifest).resume(run_dir, 0)


def log_of(images: dict[str, tuple[int, int]], bundle: Bundle, run_dir: RunDir, head: list[str]) -> list[str]:
    with logged("adc_edge.edge_runtime") as lines:
        classes = DeviceClasses(dataset(images), bundle.manifest)
        classes.resume(run_dir, 0)
        classes.take(head)
        classes.take(head)  # a trainer that was started again changes nothing on the screen
    return lines


def test_the_screen_shows_classes_and_images_at_the_start_and_what_changed_at_a_resume(
    bundle: Bundle, run_dir: RunDir
) -> None:
    head = ["cat", "dog", "zebra", "ant"]
    assert log_of({"cat": (12, 3), "dog": (11, 2)}, bundle, run_dir, head) == [
        "classes  cat 12+3, dog 11+2, zebra 0+0, ant 0+0 (train+test)"
    ]
    assert log_of({"ant": (4, 0), "dog": (10, 2)}, bundle, run_dir, head) == [
        "classes  dog 10+2, ant 4+0, cat 0+0, zebra 0+0 (train+test)",
        "new classes in the data: ant",
        "classes gone from the data: cat",
        "data changed: dog 10+2, was 11+2",
    ]


def test_a_single_class_and_a_class_without_images_are_said(bundle: Bundle, run_dir: RunDir) -> None:
    assert log_of({"cat": (3, 1), "dog": (0, 1), "yak": (0, 0)}, bundle, run_dir, ["cat", "dog", "yak"]) == [
        "classes  cat 3+1, dog 0+1, yak 0+0 (train+test)",
        "all training images are of one class, cat",
        "no training image of dog, yak",
    ]


def test_many_classes_fit_into_a_line() -> None:
    line = overview([f"n{number:08}" for number in range(1000)], {f"n{number:08}": (1300, 50) for number in range(10)})
    assert line == "classes  n00000000 1300+50, … 10 of 1000 here (train+test)"
    assert len(line) <= 62


def test_the_same_folder_spelt_another_way_is_the_same_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    monkeypatch.chdir(tmp_path)
    for old in ("folder:photos", f"folder:{tmp_path / 'photos'}"):
        RunDir(tmp_path / "run", {"data": old}, {"data": old}, fresh=True).close()
        for spelt in ("photos", "./photos", "photos/", f"{tmp_path}/photos", "link", "../" + tmp_path.name + "/photos"):
            assert same_source(f"folder:{spelt}", tmp_path / "run") == old
        assert same_source("folder:other", tmp_path / "run") == f"folder:{tmp_path}/other"
        assert same_source("npz:photos", tmp_path / "run") != old
    assert same_source("folder:photos", tmp_path / "new") == f"folder:{tmp_path}/photos"
    assert same_source("digits", None) == "digits"
    assert same_source("mine.flowers:make", None) == "mine.flowers:make"


def test_the_same_words_in_another_directory_are_other_data_unless_the_project_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, run = tmp_path / "old", tmp_path / "run"
    for place in (old / "photos", tmp_path / "other" / "photos", run):
        place.mkdir(parents=True)
    settings = {"fixed": {"data": f"folder:{old}/photos"}, "free": {"data": "folder:photos"}}
    (run / "settings.json").write_text(json.dumps(settings))
    monkeypatch.chdir(tmp_path / "other")
    assert same_source("folder:photos", run) == f"folder:{tmp_path}/other/photos"
    old.rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "new")
    assert same_source("folder:photos", run) == f"folder:{old}/photos"


def told_images(server: Server) -> dict[int, dict[str, int]]:
    return server._record.classes.of_session


def test_a_device_tells_its_images_of_each_class_and_the_trainer_says_how_unequal_they_are(
    bundle: Bundle, server: Server
) -> None:
    data = dataset({"cat": (500, 1), "dog": (2, 1), "ant": (0, 3), "empty": (0, 0)})
    device = Device(bundle, server.endpoint, classes=DeviceClasses(data, bundle.manifest))
    device.session.open(30)
    assert told_images(server) == {1: {"cat": 500, "dog": 2}}
    line = "classes of device 'test': 2 of 10 classes; largest 250 x smallest (cat 500, dog 2)"
    assert line in server.lines  # type: ignore[attr-defined]
    device.session.close()


def test_a_bundle_that_names_every_class_is_told_the_images_too(bundle: Bundle, server: Server) -> None:
    named = manifest(bundle, class_names=[f"c{number}" for number in range(10)])
    server._answers._classes._manifest = named
    server._answers._classes._learned = LearnedClasses(list(named.class_names))
    data = dataset({"c3": (2, 1), "c9": (1, 0)})
    device = Device(bundle, server.endpoint, classes=DeviceClasses(data, named))
    device.session.open(30)
    device.step(0)
    assert told_images(server) == {1: {"c3": 2, "c9": 1}}
    assert data.train.labels.tolist() == [3, 3, 9]
    device.session.close()


def test_a_trainer_of_0_10_is_told_the_names_alone(bundle: Bundle, server: Server) -> None:
    classes = DeviceClasses(dataset({"cat": (2, 1)}), bundle.manifest)
    device, sent = Device(bundle, server.endpoint, classes=classes), list[tuple[Any, ...]]()
    send, receive = device.session.channel.send, device.session.channel.receive

    def send_and_keep(*message: Any) -> None:
        sent.append(message)
        send(*message)

    def receive_as_of_0_10(*limits: Any) -> Any:
        answer, body = receive(*limits)
        return msgspec.structs.replace(answer, class_counts=UNSET) if isinstance(answer, Welcome) else answer, body

    device.session.channel.receive = receive_as_of_0_10  # type: ignore[method-assign, assignment]
    device.session.channel.send = send_and_keep  # type: ignore[method-assign, assignment]
    device.session.open(30)
    (names,) = (message for message in sent if isinstance(message[0], ClassNames))
    assert names[0].counted is UNSET
    assert names[1] == pack_names(["cat"])
    assert told_images(server) == {}
    device.session.close()
