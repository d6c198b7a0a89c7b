"""The exchange of class names after a Welcome, before the first step that a trainer's process gets."""

from __future__ import annotations

import secrets

from adc_edge.edge_runtime.classes.labels import DeviceClasses
from adc_edge.wire.channel import Channel
from adc_edge.wire.class_names import pack_names, unpack_names
from adc_edge.wire.connection import LinkLost
from adc_edge.wire.messages import ClassNames, Welcome

_TRANSFER_BITS = 62


def agree_on_classes(channel: Channel, welcome: Welcome, classes: DeviceClasses, timeout_ms: float) -> None:
    """Tell the trainer this device's class names if it asks for them, and label the data by the head's.

    Raises:
        LinkLost: no answer came in time.
        RefusedError, ProtocolError: the trainer refused the names, or its answer has none.
        DataError, CheckpointError: the data do not go with the head's classes.
    """
    if welcome.class_names is not True:
        classes.take_own()
        return
    body = pack_names(classes.told())
    channel.send(ClassNames(welcome.session, secrets.randbits(_TRANSFER_BITS), len(body), classes.positions), body)
    answer, names = channel.receive(timeout_ms)
    if not isinstance(answer, ClassNames):
        raise LinkLost(f"a {type(answer).__name__} instead of the class names")
    classes.take(unpack_names(names))
