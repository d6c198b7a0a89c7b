"""The exchange of class names and their images after a Welcome, before the first step that a trainer's process gets."""

from __future__ import annotations

import secrets

from msgspec import UNSET

from adc_edge.edge_runtime.classes.labels import DeviceClasses
from adc_edge.wire.channel import Channel
from adc_edge.wire.class_names import pack_class_counts, pack_names, unpack_names
from adc_edge.wire.connection import LinkLost
from adc_edge.wire.messages import ClassNames, Welcome

_TRANSFER_BITS = 62


def agree_on_classes(channel: Channel, welcome: Welcome, classes: DeviceClasses, timeout_ms: float) -> None:
    """Tell the trainer this device's class names if it asks for them, and label the data by the head's.

    If it takes them, the number of training images of each class is told too.

    Raises:
        LinkLost: no answer came in time.
        RefusedError, ProtocolError: the trainer refused the names, or its answer has none.
        DataError, CheckpointError: the data do not go with the head's classes.
    """
    asked = welcome.class_names is True
    if not asked:
        classes.take_own()
    names = classes.told() if asked else classes.present()
    counted = pack_class_counts(classes.images_of(names)) if welcome.class_counts is True else None
    if not asked and counted is None:
        return
    body, told = (pack_names(names), UNSET) if counted is None else (counted, True)
    transfer = secrets.randbits(_TRANSFER_BITS)
    channel.send(ClassNames(welcome.session, transfer, len(body), classes.positions, told), body)
    answer, head = channel.receive(timeout_ms)
    if not isinstance(answer, ClassNames):
        raise LinkLost(f"a {type(answer).__name__} instead of the class names")
    if asked:
        classes.take(unpack_names(head))
