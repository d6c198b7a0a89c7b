"""A codec that treats a batch's tokens as rows of one matrix, and sends matrix and gradient by a coder each."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from adc_edge.arrays import Arrays, Float32
from adc_edge.codec.precision import Precision
from adc_edge.evaluation.codecs.base import (
    Arrived,
    Codec,
    CodecBatch,
    EncodedBatch,
    Header,
    own_labels,
    read_labels,
    split_body,
)
from adc_edge.method.trunk import Trunk


class MatrixCoder(Protocol):
    """Encodes matrices of one direction. Only ``encode`` may use and change the coder's state."""

    def encode(self, x: Float32) -> bytes:
        """Encode ``[M, D]``."""

    def decode(self, data: memoryview, rows: int) -> Float32:
        """Decode ``[rows, D]`` from bytes alone."""

    def arrays(self) -> dict[str, Any]:
        """Return the state as arrays."""

    def restore(self, arrays: Arrays) -> None:
        """Restore what ``arrays`` returned."""


class MatrixCodec(Codec):
    """Sends activations ``[B, N, D]`` and their gradient as matrices ``[B*N, D]``.

    Args:
        classes: C, the number of classes.
        share: share of the uncompressed bytes that the coders are made for.
        precision: precision of the activations, as the messages tell it.
        gradient_precision: precision of the gradients.
        up: coder of the activations.
        down: coder of the gradients.
    """

    def __init__(
        self,
        classes: int,
        share: float,
        precision: Precision,
        gradient_precision: Precision,
        up: MatrixCoder,
        down: MatrixCoder,
    ) -> None:
        super().__init__(classes, precision, gradient_precision)
        self.share, self.coders = share, {"up": up, "down": down}

    def ratio(self, images: int) -> float:
        """The share of the bytes."""
        return self.share

    def compress(self, trunk: Trunk, batch: CodecBatch) -> EncodedBatch:
        """Encode the matrix of the activations."""
        tensor = trunk(batch.images).float()
        labels = own_labels(batch.labels, self.classes)
        header = Header(len(batch.labels), tuple(tensor.shape), len(labels), self.precision)
        body = self.coders["up"].encode(_matrix(tensor)) + labels.tobytes()
        return EncodedBatch(header, memoryview(body), tensor)

    def extract(self, header: Header, body: memoryview) -> Arrived:
        """Decode the matrix of the activations.

        Raises:
            ProtocolError: the body is not as the header says.
        """
        data, labels = split_body(header, body)
        values = self._decode("up", data, header.shape).to(self.place).requires_grad_()
        soft = read_labels(labels, header.images, self.classes, header.images)
        return Arrived(values, values, soft.to(self.place))

    def compress_gradient(self, arrived: Arrived, gradient: Tensor) -> memoryview:
        """Encode the matrix of the gradient."""
        return memoryview(self.coders["down"].encode(_matrix(gradient)))

    def extract_gradient(self, sent: EncodedBatch, body: memoryview) -> Tensor:
        """Decode the matrix of the gradient."""
        return self._decode("down", body, tuple(sent.tensor.shape)).to(sent.tensor.device)

    def _decode(self, side: str, data: memoryview, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(self.coders[side].decode(data, math.prod(shape[:-1]))).view(shape)

    def arrays(self) -> dict[str, Any]:
        """Return both coders' state as arrays."""
        states = {side: coder.arrays() for side, coder in self.coders.items()}
        return {f"{side}.{name}": value for side, state in states.items() for name, value in state.items()}

    def restore_state(self, arrays: Arrays) -> None:
        """Restore what ``arrays`` returned."""
        for side, coder in self.coders.items():
            coder.restore({name.partition(".")[2]: v for name, v in arrays.items() if name.startswith(f"{side}.")})


def _matrix(tensor: Tensor) -> Float32:
    """Rows ``[M, D]`` of ``[B, N, D]``."""
    flat: Float32 = tensor.detach().float().flatten(0, 1).cpu().numpy()
    return flat
