"""The images that devices have of each class: kept for each session, told once, in words a person can use."""

from __future__ import annotations

import msgpack
import pytest

from adc_edge.cloud_trainer.record.class_images import ClassImages, imbalance
from adc_edge.errors import ProtocolError
from adc_edge.storage.events import Event, ToldClasses
from adc_edge.wire.class_names import pack_class_counts, unpack_class_counts


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ({"cat": 5000, "dog": 1}, "2 of 10 classes; largest 5,000 x smallest (cat 5,000, dog 1)"),
        ({"cat": 10, "dog": 10}, "2 of 10 classes; largest 1 x smallest (cat 10, cat 10)"),
        ({"cat": 15, "a\x1b[2J": 10}, "2 of 10 classes; largest 1.5 x smallest (cat 15, a�[2J 10)"),
        ({}, "training images of 0 of 10 classes"),
    ],
)
def test_imbalance_in_words(images: dict[str, int], words: str) -> None:
    assert imbalance(images, 10) == words


def test_what_was_told_is_told_again_only_if_it_has_changed() -> None:
    events: list[Event] = []
    classes = ClassImages(events.append, 3)
    for images in ({"dog": 1, "cat": 2, "ant": 0}, {"cat": 2, "dog": 1}, None, {"cat": 3, "dog": 1}):
        classes.take(7, "orin", images)
    first, second = (event for event in events if isinstance(event, ToldClasses))
    assert (list(first.images.items()), first.classes, first.of, first.rest) == ([("cat", 2), ("dog", 1)], 2, 3, 0)
    assert second.images == {"cat": 3, "dog": 1}
    classes.forget(7)
    assert classes.of_session == {}


def test_an_event_lists_the_largest_hundred_classes_and_counts_the_others() -> None:
    events: list[Event] = []
    ClassImages(events.append).take(7, "orin", {f"class {number}": number for number in range(151)})
    (event,) = (event for event in events if isinstance(event, ToldClasses))
    assert (len(event.images), event.classes, event.rest) == (100, 150, sum(range(51)))
    assert next(iter(event.images)) == "class 150"


def test_counts_come_back_and_hostile_ones_are_refused() -> None:
    images = {"cat": 3, "dog": 0}
    body = pack_class_counts(images)
    assert body is not None
    assert unpack_class_counts(body) == images
    assert pack_class_counts({f"n{number:012}": 1 for number in range(21_841)}) is None  # too large for a message
    for wrong in (
        [["cat"], [-1]],
        [["cat"], [1, 2]],
        [["cat", "cat"], [1, 2]],
        [["cat"], [2**40]],
        ["cat"],
        [[""], [1]],
    ):
        with pytest.raises(ProtocolError):
            unpack_class_counts(msgpack.packb(wrong))
