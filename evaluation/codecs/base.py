"""The one face of ADC and its rivals: what becomes of a batch at the cut, and how it and its gradient travel.

A step in one process, as the two halves would do it:

    device   sent = codec.compress(trunk, batch)               sent.body travels up
    trainer  arrived = codec.extract(sent.header, body)        head(arrived.features), loss, backward
    trainer  body = codec.compress_gradient(arrived, arrived.values.grad)          travels down
    device   sent.tensor.backward(codec.extract_gradient(sent, body))

``extract`` sees the header and the body's bytes alone, as a trainer does; ``extract_gradient``, what the device still
has. Every body comes from the encoders of the wire (`adc_edge.codec.precision`), so its length is what travels.

Letters: B images, N tokens, D channels, C classes; R rows that the head sees, of k tokens each.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adc_edge.codec.precision import Precision, decode, encode
from adc_edge.method.labels import label_triples, soft_labels
from adc_edge.method.trunk import Trunk
from adc_edge.wire.messages import TRIPLE_BYTES


class CodecBatch(NamedTuple):
    """A batch on the device, and the random numbers that a method may draw for it."""

    images: Tensor  # [B, 3, H, W]
    labels: npt.NDArray[np.int64]  # [B]
    rng: np.random.Generator


class Header(NamedTuple):
    """What a message's header tells of its body."""

    images: int  # B
    shape: tuple[int, ...]  # of the tensor that leads the body
    triples: int  # labels that end it
    precision: Precision


class EncodedBatch(NamedTuple):
    """What the device has after compressing: the bytes that leave it, and what the gradient will be of."""

    header: Header
    body: memoryview
    tensor: Tensor  # with its graph
    where: Any = None  # places in it, of the methods that send only some


class Arrived(NamedTuple):
    """What the trainer makes of a body."""

    values: Tensor  # the leaf whose gradient goes down
    features: Tensor  # [R, k, D] that the head sees, a function of ``values``
    soft: Tensor  # [R, C], rows summing to one
    where: Any = None


class Codec(Protocol):
    """A method at one ratio and precision; ``device`` and ``trainer`` are modules that it adds to either half."""

    precision: Precision
    gradient_precision: Precision
    device: nn.Module | None
    trainer: nn.Module | None
    place: torch.device  # where the head computes

    def ratio(self, images: int) -> float:
        """Values sent up for a batch of so many images, as a share of the B·N·D there are."""

    def compress(self, trunk: Trunk, batch: CodecBatch) -> EncodedBatch:
        """Run the trunk and encode what it sends (activations, then labels)."""

    def extract(self, header: Header, body: memoryview) -> Arrived:
        """Decode a body, as the trainer."""

    def compress_gradient(self, arrived: Arrived, gradient: Tensor) -> memoryview:
        """Encode the gradient with respect to ``arrived.values``, as the trainer."""

    def extract_gradient(self, sent: EncodedBatch, body: memoryview) -> Tensor:
        """Decode it into the gradient with respect to ``sent.tensor``, as the device."""

    def through(self, features: Tensor) -> Tensor | None:
        """Test activations ``[B, N, D]`` as the method would bring them to the head; None: whole."""


def encode_with_labels(tensor: Tensor, labels: npt.NDArray[np.int32], precision: Precision) -> memoryview:
    """A body: ``tensor`` ``[..., W]`` in ``precision``, then label triples."""
    return encode(tensor.detach().float().cpu().numpy(), precision, labels.tobytes())


def own_labels(labels: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int32]:
    """Label triples of images that are not merged: each its own cluster."""
    return label_triples(np.arange(len(labels)), labels, classes)


def split_body(header: Header, body: memoryview) -> tuple[memoryview, memoryview]:
    """The tensors of a body, and its label triples."""
    cut = len(body) - TRIPLE_BYTES * header.triples
    return body[:cut], body[cut:]


def read_labels(data: memoryview, rows: int, classes: int, images: int) -> Tensor:
    """Soft labels ``[R, C]`` of a body's triples."""
    return torch.from_numpy(soft_labels(data, rows, classes, images))


def decode_tensor(data: memoryview, shape: tuple[int, ...], precision: Precision) -> Tensor:
    """A tensor of a body."""
    return torch.from_numpy(decode(data, shape, precision))


class Dense:
    """What methods share that send one tensor up and its whole gradient down; alone: quantization and casts.

    Args:
        classes: C.
        precision: of what goes up.
        gradient_precision: of what comes down.
    """

    device: nn.Module | None = None
    trainer: nn.Module | None = None
    place = torch.device("cpu")

    def __init__(self, classes: int, precision: Precision, gradient_precision: Precision) -> None:
        self.classes, self.precision, self.gradient_precision = classes, precision, gradient_precision

    def ratio(self, images: int) -> float:
        """All of it."""
        return 1.0

    def compress(self, trunk: Trunk, batch: CodecBatch) -> EncodedBatch:
        """The whole activations ``[B, N, D]``."""
        return self.pack(trunk(batch.images).float(), batch)

    def pack(self, tensor: Tensor, batch: CodecBatch) -> EncodedBatch:
        """Send ``tensor`` with each image's own label."""
        labels = own_labels(batch.labels, self.classes)
        header = Header(len(batch.labels), tuple(tensor.shape), len(labels), self.precision)
        return EncodedBatch(header, encode_with_labels(tensor, labels, self.precision), tensor)

    def extract(self, header: Header, body: memoryview) -> Arrived:
        """The decoded tensor, and what ``restore`` makes of it."""
        tensor, labels = split_body(header, body)
        values = decode_tensor(tensor, header.shape, header.precision).to(self.place).requires_grad_()
        features = self.restore(values, header.images)
        soft = read_labels(labels, len(features), self.classes, header.images)
        return Arrived(values, features, soft.to(self.place))

    def restore(self, values: Tensor, images: int) -> Tensor:
        """What the head sees of what arrived."""
        return values

    def compress_gradient(self, arrived: Arrived, gradient: Tensor) -> memoryview:
        """The whole gradient."""
        return encode(gradient.float().cpu().numpy(), self.gradient_precision)

    def extract_gradient(self, sent: EncodedBatch, body: memoryview) -> Tensor:
        """The whole gradient."""
        return decode_tensor(body, tuple(sent.tensor.shape), self.gradient_precision).to(sent.tensor.device)

    def through(self, features: Tensor) -> Tensor | None:
        """Whole: compression is for training."""
        return None
