"""Bytes of a step's messages, before anything is sent: nearly, since headers and labels vary a little."""

from __future__ import annotations

from adc_edge.codec.precision import encoded_bytes
from adc_edge.defaults import Precision
from adc_edge.method.ratio import Shape
from adc_edge.wire.messages import TRIPLE_BYTES

_HEADER_BYTES = 350  # of a message's header and its frames, about


def sizes_of_messages(shape: Shape, dim: int, precisions: tuple[Precision, Precision | None]) -> tuple[int, int]:
    """Return the bytes of a micro-batch's message and of its answer.

    Args:
        shape: of the micro-batch.
        dim: channels of an activation.
        precisions: of activations and of gradients; the latter None if none come.
    """
    up, down = precisions
    sent = (shape.clusters, shape.kept, dim)
    answer = 0 if down is None else encoded_bytes(sent, down)
    return encoded_bytes(sent, up) + TRIPLE_BYTES * shape.images + _HEADER_BYTES, answer + _HEADER_BYTES
