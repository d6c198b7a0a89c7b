"""Sizes of messages before anything is sent: those of a step, and how an evaluation is divided into messages."""

from __future__ import annotations

from typing import NamedTuple

from adc_edge.codec.precision import component_bits, dct_bits, encoded_bytes
from adc_edge.defaults import MAX_IMAGES, Precision
from adc_edge.method.ratio import Shape
from adc_edge.wire.messages import LABEL_BYTES, TRIPLE_BYTES

EVALUATED_ROWS, _EVALUATED_BYTES = 16_384, 2**24  # tokens of one message of an evaluation, and their size in fp32
_ROWS_PER_CHANNEL = 8  # with fewer, int8 is closer than pca4
_LEAST_BITS = 1.0  # of a value: with fewer, single evaluations were up to 2.8 points off
_HEADER_BYTES = 350  # of a message's header and its frames, about


def sizes_of_messages(shape: Shape, dim: int, precisions: tuple[Precision, Precision | None]) -> tuple[int, int]:
    """Return the bytes of a micro-batch's message and of its answer, nearly: headers and labels vary a little.

    Args:
        shape: of the micro-batch.
        dim: channels of an activation.
        precisions: of activations and of gradients; the latter None if none come.
    """
    up, down = precisions
    sent = (shape.clusters, shape.kept, dim)
    answer = 0 if down is None else encoded_bytes(sent, down)
    return encoded_bytes(sent, up) + TRIPLE_BYTES * shape.images + _HEADER_BYTES, answer + _HEADER_BYTES


def evaluation_images(tokens: int, dim: int, batch_size: int, most: int) -> int:
    """Return the most images of one message of an evaluation: many, since principal components cost less over more.

    Args:
        tokens: N of an image.
        dim: D, channels of an activation.
        batch_size: images of a step, which a message may always have.
        most: images of a message that the trainer takes.
    """
    fitting = min(EVALUATED_ROWS // tokens, _EVALUATED_BYTES // (4 * tokens * dim))
    return max(batch_size, min(most, fitting))


def evaluation_precision(rows: int, dim: int, training: Precision) -> Precision:
    """Return the cheapest precision whose evaluations are close to unrounded ones (docs/results/method.md tells how).

    A head that learns from principal components judges test images in the same precision as it judges unrounded ones,
    down to one bit a value; the same bits in dct are closer still. Few rows of a message do not bear their principal
    components, and come in int8.

    Args:
        rows: tokens of the evaluation's smallest message.
        dim: D, channels of an activation.
        training: precision of the activations that the head learns from, the last one if it changes by epoch.
    """
    if rows < _ROWS_PER_CHANNEL * dim:
        return "int8"
    bits = component_bits(training)
    if not bits:
        return "pca4"
    if bits >= _LEAST_BITS:
        return training
    return "dct1" if dct_bits(training) else "pca1"


class EvaluationMessages(NamedTuple):
    """The messages of one evaluation, in the order in which they are sent."""

    precision: Precision
    images: list[int]
    body_bytes: list[int]  # activations and labels


def evaluation_messages(
    tokens: int, dim: int, images: int, batch_size: int, precision: Precision | None, training: Precision = "fp32"
) -> EvaluationMessages:
    """Return an evaluation's messages as `serve` sends them to a trainer that takes as many images as by default.

    Args:
        tokens: N of an image.
        dim: D, channels of an activation.
        images: that are evaluated.
        batch_size: images of a step, which a message may always have.
        precision: that is chosen; None: as the device does by itself.
        training: precision of the activations in training; by default the one whose evaluations are the largest.
    """
    parts = max(1, -(-images // evaluation_images(tokens, dim, batch_size, MAX_IMAGES)))
    fewest, larger = divmod(images, parts)
    sizes = [fewest + (part < larger) for part in range(parts)]  # all of nearly one size, as the device divides them
    chosen = precision or evaluation_precision(tokens * fewest, dim, training)
    bodies = [encoded_bytes((size, tokens, dim), chosen) + LABEL_BYTES * size for size in sizes]
    return EvaluationMessages(chosen, sizes, bodies)
