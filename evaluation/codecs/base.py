"""The interface of ADC and its rivals: a batch and its gradient are encoded and decoded at the cut.

One step in one process:

    device   sent = codec.compress(trunk, batch)               sent.body goes up
    trainer  arrived = codec.extract(sent.header, body)        head(arrived.features), loss, backward
    trainer  body = codec.compress_gradient(arrived, arrived.values.grad)          goes down
    device   sent.tensor.backward(codec.extract_gradient(sent, body))

``extract`` sees only the header and the body's bytes, as a trainer does. ``extract_gradient`` sees what the device has
kept. The encoders of the wire (`adc_edge.codec.precision`) make every body, so its length is that of the real message.

Letters: B images, N tokens, D channels, C classes; R rows of k tokens each that the head sees.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from adc_edge.arrays import Arrays, Int32, Int64
from adc_edge.codec.precision import Precision, decode, encode
from adc_edge.method.labels import label_triples, soft_labels
from adc_edge.method.trunk import Trunk
from adc_edge.wire.messages import TRIPLE_BYTES


class CodecBatch(NamedTuple):
    """A batch on the device, and the random generator that a method may use for it."""

    images: Tensor  # [B, 3, H, W]
    labels: Int64  # [B]
    rng: np.random.Generator


class Header(NamedTuple):
    """The description of a body in a message's header."""

    images: int  # B
    shape: tuple[int, ...]  # of the tensor at the start of the body
    triples: int  # labels at its end
    precision: Precision


class EncodedBatch(NamedTuple):
    """A compressed batch on the device: the bytes that it sends, and the tensor whose gradient comes back."""

    header: Header
    body: memoryview
    tensor: Tensor  # with its autograd graph
    where: Any = None  # positions sent, for methods that send only some


class Arrived(NamedTuple):
    """A decoded body on the trainer."""

    values: Tensor  # the leaf whose gradient is sent down
    features: Tensor  # [R, k, D], the input of the head, a function of ``values``
    soft: Tensor  # [R, C], rows summing to one
    where: Any = None


def encode_with_labels(tensor: Tensor, labels: Int32, precision: Precision) -> memoryview:
    """Encode a body: ``tensor`` ``[..., W]`` in ``precision``, then label triples."""
    return encode(tensor.detach().float().cpu().numpy(), precision, labels.tobytes())


def own_labels(labels: Int64, classes: int) -> Int32:
    """Label triples of images that are not merged: each image is a cluster."""
    return label_triples(np.arange(len(labels)), labels, classes)


def split_body(header: Header, body: memoryview) -> tuple[memoryview, memoryview]:
    """Split a body into its tensors and its label triples."""
    cut = len(body) - TRIPLE_BYTES * header.triples
    return body[:cut], body[cut:]


def read_labels(data: memoryview, rows: int, classes: int, images: int) -> Tensor:
    """Decode soft labels ``[R, C]`` from a body's triples."""
    return torch.from_numpy(soft_labels(data, rows, classes, images))


def decode_tensor(data: memoryview, shape: tuple[int, ...], precision: Precision) -> Tensor:
    """Decode one tensor of a body."""
    return torch.from_numpy(decode(data, shape, precision))


class Codec:
    """Plain quantization and casts, and the base of every method at one ratio and precision.

    A subclass changes what is sent up, or how the head's input is made of it; the full gradient of what was sent comes
    back. ``device`` and ``trainer`` are modules that it adds to trunk and head; ``place`` is where the head computes.

    Args:
        classes: C, the number of classes.
        precision: precision of the activations.
        gradient_precision: precision of the gradients.
    """

    device: nn.Module | None = None
    trainer: nn.Module | None = None
    place = torch.device("cpu")

    def __init__(self, classes: int, precision: Precision, gradient_precision: Precision) -> None:
        self.classes, self.precision, self.gradient_precision = classes, precision, gradient_precision

    def adapt(self, trunk: Trunk) -> None:
        """Change the trunk before its optimizer is made; here not at all."""

    def arrays(self) -> dict[str, Any]:
        """Return what later steps depend on, apart from ``device`` and ``trainer``, as arrays; here nothing."""
        return {}

    def restore_state(self, arrays: Arrays) -> None:
        """Restore what ``arrays`` returned."""

    def ratio(self, images: int) -> float:
        """Share of the B·N·D values that are sent up for a batch of ``images`` images; here all."""
        return 1.0

    def compress(self, trunk: Trunk, batch: CodecBatch) -> EncodedBatch:
        """Run the trunk, and encode activations and labels; here the full activations ``[B, N, D]``."""
        return self.pack(trunk(batch.images).float(), batch)

    def pack(self, tensor: Tensor, batch: CodecBatch) -> EncodedBatch:
        """Encode ``tensor`` with each image's own label."""
        labels = own_labels(batch.labels, self.classes)
        header = Header(len(batch.labels), tuple(tensor.shape), len(labels), self.precision)
        return EncodedBatch(header, encode_with_labels(tensor, labels, self.precision), tensor)

    def extract(self, header: Header, body: memoryview) -> Arrived:
        """Decode a body on the trainer, and let ``restore`` make the head's input of its tensor."""
        tensor, labels = split_body(header, body)
        values = decode_tensor(tensor, header.shape, header.precision).to(self.place).requires_grad_()
        features = self.restore(values, header.images)
        soft = read_labels(labels, len(features), self.classes, header.images)
        return Arrived(values, features, soft.to(self.place))

    def restore(self, values: Tensor, images: int) -> Tensor:
        """The input of the head, made of the decoded tensor."""
        return values

    def compress_gradient(self, arrived: Arrived, gradient: Tensor) -> memoryview:
        """Encode the gradient with respect to ``arrived.values`` on the trainer."""
        return encode(gradient.float().cpu().numpy(), self.gradient_precision)

    def extract_gradient(self, sent: EncodedBatch, body: memoryview) -> Tensor:
        """Decode the gradient with respect to ``sent.tensor`` on the device."""
        return decode_tensor(body, tuple(sent.tensor.shape), self.gradient_precision).to(sent.tensor.device)

    def through(self, features: Tensor) -> Tensor | None:
        """Test activations ``[B, N, D]`` after compression and decoding; None: the method does not compress at test."""
        return None
