"""The names of the head's classes: learned from devices, never moved, on disk before a device is told."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from adc_edge.cloud_trainer.classes import HeadClasses
from adc_edge.cloud_trainer.server import Server
from adc_edge.errors import CheckpointError, DataError, ProtocolError, RefusedError
from adc_edge.storage.bundle import Bundle, Manifest
from adc_edge.storage.run_dir import CLASSES, RunDir
from adc_edge.wire.class_names import pack_names, unpack_names
from adc_edge.wire.messages import NAMES_BYTES, ClassNames
from tests.serving import logged
from tests.stub_device import Device


def changed(bundle: Bundle, **fields: Any) -> Manifest:
    return msgspec.structs.replace(bundle.manifest, **fields)


def test_names_are_learned_in_the_order_in_which_devices_bring_them(bundle: Bundle) -> None:
    classes = HeadClasses(bundle.manifest)
    with logged() as lines:
        assert classes.learn(["cat", "dog"], False, "a") == ["cat", "dog"]
        assert classes.learn(["ant", "dog"], False, "b") == ["cat", "dog", "ant"]
        classes.learn(["dog"], False, "a")
    assert lines == [
        "classes learned from device 'a': cat, dog (2 of 10)",
        "classes learned from device 'b': ant (3 of 10)",
    ]


def test_a_trainer_that_starts_again_knows_its_classes(bundle: Bundle, tmp_path: Path) -> None:
    with closing(RunDir(tmp_path / "run", {}, {})) as run_dir:
        HeadClasses(bundle.manifest, run_dir).learn(["zebra", "dog"], False, "a")
        assert (tmp_path / "run" / CLASSES).is_file()
    with closing(RunDir(tmp_path / "run", {}, {})) as run_dir:
        assert HeadClasses(bundle.manifest, run_dir).learn(["ant"], False, "b") == ["zebra", "dog", "ant"]
    with closing(RunDir(tmp_path / "run", {}, {}, fresh=True)) as run_dir:
        assert HeadClasses(bundle.manifest, run_dir).names == []


def test_a_list_that_cannot_be_written_is_not_told(bundle: Bundle, tmp_path: Path) -> None:
    with closing(RunDir(tmp_path / "run", {}, {})) as run_dir:
        classes = HeadClasses(bundle.manifest, run_dir)
        (tmp_path / "run" / CLASSES).mkdir()
        with pytest.raises(OSError, match="classes"):
            classes.learn(["cat"], False, "a")
        assert classes.names == []


@pytest.mark.parametrize("content", ["{", '{"head": [1]}', '{"head": ["cat", "cat"]}'])
def test_a_damaged_list_is_refused(bundle: Bundle, tmp_path: Path, content: str) -> None:
    with closing(RunDir(tmp_path / "run", {}, {})) as run_dir:
        run_dir.keep(CLASSES, content.encode())
        with pytest.raises(CheckpointError, match=r"classes\.json"):
            HeadClasses(bundle.manifest, run_dir)


def test_more_classes_than_the_head_has_outputs_are_refused_and_change_nothing(bundle: Bundle) -> None:
    classes = HeadClasses(bundle.manifest)
    names = [f"c{number}" for number in range(9)]
    classes.learn(names, False, "a")
    with pytest.raises(ProtocolError, match="2 new classes: ant, bee") as caught:
        classes.learn(["ant", "bee"], False, "b")
    assert caught.value.code == "labels"
    assert classes.names == names


def test_a_trained_head_without_names_takes_them_from_a_first_device_with_all_of_them(bundle: Bundle) -> None:
    classes = HeadClasses(changed(bundle, classes=2, classifier_kept=True))
    with pytest.raises(ProtocolError, match="1 of the 2 classes of a trained head") as caught:
        classes.learn(["cat"], False, "a")
    assert "--classes FILE" in caught.value.remedy
    with logged() as lines:
        assert classes.learn(["cat", "dog"], False, "b") == ["cat", "dog"]
    assert "trained head's classes have no names" in lines[0]
    assert classes.learn(["dog"], False, "a") == ["cat", "dog"]


def test_labels_without_names_and_named_classes_do_not_mix(bundle: Bundle) -> None:
    named, positions = HeadClasses(bundle.manifest), HeadClasses(bundle.manifest)
    named.learn(["cat", "dog"], False, "a")
    with pytest.raises(ProtocolError, match="labels from 0 to 1 without class names"):
        named.learn(["0", "1"], True, "b")
    assert positions.learn(["0", "1"], True, "a") == ["0", "1"]
    assert positions.learn(["0", "1", "2"], True, "b") == ["0", "1", "2"]
    with pytest.raises(ProtocolError, match="the classes cat, dog"):
        positions.learn(["cat", "dog"], False, "c")
    assert positions.names == ["0", "1", "2"]


def test_a_bundle_that_names_every_class_asks_no_device(bundle: Bundle) -> None:
    assert HeadClasses(bundle.manifest).asked_for
    assert not HeadClasses(changed(bundle, classes=2, class_names=["cat", "dog"])).asked_for


def test_a_device_of_0_6_is_served_until_classes_have_names_and_then_refused(bundle: Bundle, server: Server) -> None:
    device = Device(bundle, server.endpoint)
    device.session.open(30)
    device.step(0)
    device.session.close()
    assert any("tells no class names" in line for line in server.lines)  # type: ignore[attr-defined]
    server._answers._classes.learn(["cat", "dog"], False, "new")
    old = Device(bundle, server.endpoint, session=2)
    with pytest.raises(RefusedError, match="tells no class names") as caught:
        old.session.open(30)
    assert "cat, dog" in caught.value.expected
    old.session.close()


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1",
        msgpack.packb("cat"),
        msgpack.packb(["cat", 7]),
        msgpack.packb(["cat", ""]),
        msgpack.packb(["x" * 257]),
        msgpack.packb(["cat", "cat"]),
        b"\xdd\xff\xff\xff\xff",
        b"\x91\xa2\xff\xff",
    ],
)
def test_hostile_class_names_are_refused_by_name(bundle: Bundle, server: Server, body: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack_names(body)
    device = Device(bundle, server.endpoint)
    device.session.open(30)
    device.session.channel.send(ClassNames(device.number, 5, len(body)), body)
    with pytest.raises(RefusedError, match="malformed"):
        device.session.channel.receive(10_000)
    assert server._answers._classes.names == []
    device.session.close()


def test_names_beyond_the_limits_of_a_message_are_refused_on_the_device() -> None:
    pack_names([f"n{number:08}" for number in range(21_841)])  # ImageNet-21k
    for names in ([f"{number:08}" for number in range(NAMES_BYTES // 9 + 1)], ["x" * 257]):
        with pytest.raises(DataError, match="class names of"):
            pack_names(names)
