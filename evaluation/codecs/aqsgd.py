"""AQ-SGD: the change of an image's activations since they were last sent, in few bits (arXiv 2206.01299).

Device and trainer remember the activations that the trainer decoded last for each image (`remembered.py`). The first
time an image is sent whole; later its change is quantized. The error of an image is then fed back by itself: it is part
of the next change. Gradients are quantized directly. The paper's settings are 2, 3 and 4 bits up with 4, 6 and 8 bits
down, and a first epoch in full precision: here ``aqsgd/int2:int4``, ``aqsgd/int3:int8``, ``aqsgd/int4:int8``, as the
wire has no 6 bits. ``aqsgd-direct`` sends an image's first activations in the precision of its changes.

Different from the paper: an augmented image is an image of its own. The quantizer is that of the wire, with one scale a
token; the authors' released code has one scale for several tokens. The memory is fp16.

A body holds the slots, the new images' activations, the changes of the others, and the labels.

Letters: as in `adc_edge.evaluation.codecs.base`.
"""

from __future__ import annotations

from typing import Any

import torch

from adc_edge.arrays import Arrays, Float32
from adc_edge.codec.precision import Precision, decode, encode, encoded_bytes
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
from adc_edge.evaluation.codecs.remembered import (
    SLOT_BYTES,
    ImageSlots,
    RememberedRows,
    Slots,
    image_keys,
    unpack_slots,
)
from adc_edge.method.trunk import Trunk

MEMORY_BYTES = 2 * 1024**3  # of each side, at most
_HALF_BYTES = 2


class AqSgd(Codec):
    """Sends each image's first activations whole, and then their changes.

    Args:
        classes: C, the number of classes.
        tokens: N, the tokens of an image.
        dim: D, the channels.
        precision: precision of the changes.
        gradient_precision: precision of the gradients.
        first: precision in which an image is sent for the first time; the paper's is fp32.
        capacity: number of images that are remembered; None: as many as fit into ``MEMORY_BYTES``.
    """

    def __init__(
        self,
        classes: int,
        tokens: int,
        dim: int,
        precision: Precision,
        gradient_precision: Precision,
        first: Precision = "fp32",
        capacity: int | None = None,
    ) -> None:
        super().__init__(classes, precision, gradient_precision)
        self.first = first
        slots = capacity or max(1, MEMORY_BYTES // (_HALF_BYTES * tokens * dim))
        self._table = ImageSlots(slots)  # the device's alone
        self._sides = {side: RememberedRows((tokens, dim), slots) for side in ("device", "trainer")}

    def compress(self, trunk: Trunk, batch: CodecBatch) -> EncodedBatch:
        """Run the trunk, and encode the slots, the activations of new images, and the changes of the others."""
        tensor = trunk(batch.images).float()  # [B, N, D]
        slots, rows = self._table.look_up(image_keys(batch.images)), self._sides["device"]
        whole, before = tensor.detach().cpu().numpy(), rows.read(slots)
        parts = [encode(whole[slots.new], self.first), encode((whole - before)[~slots.new], self.precision)]
        sent = b"".join(bytes(part) for part, some in zip(parts, _some(slots), strict=True) if some)
        rows.write(slots, self._after(memoryview(sent), slots, before))
        labels = own_labels(batch.labels, self.classes)
        header = Header(len(batch.labels), tuple(tensor.shape), len(labels), self.precision)
        return EncodedBatch(header, memoryview(slots.packed + sent + labels.tobytes()), tensor)

    def extract(self, header: Header, body: memoryview) -> Arrived:
        """Decode the activations, and remember them.

        Raises:
            ProtocolError: the body is not as the header says, or speaks of an image that was never sent.
        """
        data, labels = split_body(header, body)
        cut = SLOT_BYTES * header.images
        slots, rows = unpack_slots(data[:cut], header.images), self._sides["trainer"]
        after = self._after(data[cut:], slots, rows.read(slots))
        rows.write(slots, after)
        values = torch.from_numpy(after).to(self.place).requires_grad_()
        soft = read_labels(labels, header.images, self.classes, header.images)
        return Arrived(values, values, soft.to(self.place))

    def _after(self, data: memoryview, slots: Slots, before: Float32) -> Float32:
        """Activations ``[B, N, D]`` as the trainer has them: those of new images, and ``before`` plus its change."""
        after, place = before.copy(), 0
        chosen = ((slots.new, self.first), (~slots.new, self.precision))
        for (which, precision), some in zip(chosen, _some(slots), strict=True):
            if some:
                shape = (int(which.sum()), *before.shape[1:])
                size = encoded_bytes(shape, precision)
                after[which] += decode(data[place : place + size], shape, precision)
                place += size
        return after

    def arrays(self) -> dict[str, Any]:
        """Return the device's table and both sides' rows as arrays."""
        parts = {"table": self._table.arrays()} | {side: rows.arrays() for side, rows in self._sides.items()}
        return {f"{part}.{name}": value for part, arrays in parts.items() for name, value in arrays.items()}

    def restore_state(self, arrays: Arrays) -> None:
        """Restore what ``arrays`` returned."""
        self._table.restore({name: arrays[f"table.{name}"] for name in ("keys", "slots")})
        for side, rows in self._sides.items():
            rows.restore({"rows": arrays[f"{side}.rows"]})


def _some(slots: Slots) -> tuple[bool, bool]:
    """Whether the batch has new images, and whether it has others."""
    return bool(slots.new.any()), not bool(slots.new.all())
