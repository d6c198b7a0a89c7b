"""Messages of a device that sends each image once, with activations that tell which row they are."""

from __future__ import annotations

import msgspec
import numpy as np

from adc_edge.codec.precision import encode
from adc_edge.method.labels import label_triples
from adc_edge.storage.bundle import Bundle
from adc_edge.wire.fleet_messages import SentSteps
from adc_edge.wire.messages import LABEL_BYTES, Evaluate, Hello, Step
from tests.stub_device import Device

ROWS, KEPT = 4, 7


class OnceDevice(Device):
    """A stub device that sends ``sent`` steps of a run of ``planned``; those from ``first`` on are to be kept."""

    def __init__(
        self, bundle: Bundle, endpoint: str, sent: int, planned: int, told_bytes: int = 0, first: int = 0
    ) -> None:
        super().__init__(bundle, endpoint)
        self.planned, self.sends = planned, SentSteps(sent, told_bytes, 2, first)

    def hello(self) -> Hello:
        return msgspec.structs.replace(super().hello(), steps=self.planned, sends=self.sends)

    def evaluation(self, images: int = 6) -> tuple[Evaluate, bytes]:
        """The test images, as one message after the last step."""
        message, body = evaluation(self.bundle, self.sends.steps, images=images)
        return msgspec.structs.replace(message, session=self.number), body


def step(bundle: Bundle, number: int, micro_batch: int = 0, prefix: int = 1) -> tuple[Step, bytes]:
    """A micro-batch of ROWS images; the first channel of every token tells its row, the second its place."""
    activations = np.zeros((ROWS, KEPT, bundle.manifest.dim), np.float32)
    activations[:, :, 0] = (100 * number + 10 * micro_batch + np.arange(ROWS))[:, None]
    activations[:, :, 1] = np.arange(KEPT)
    labels = (np.arange(ROWS) + number) % 10
    triples = label_triples(np.arange(ROWS, dtype=np.int64), labels, 10)
    body = bytes(encode(activations, "fp32", triples.tobytes()))
    shape = (ROWS, ROWS, KEPT, len(triples))
    return Step(1, number, micro_batch, 5, len(body), *shape, "fp32", None, durable=3, replay=True, offset=0), body


def evaluation(bundle: Bundle, number: int, part: int = 0, images: int = 6) -> tuple[Evaluate, bytes]:
    """A part of an evaluation, of random activations."""
    manifest, rng = bundle.manifest, np.random.default_rng(part)
    activations = rng.standard_normal((images, manifest.tokens, manifest.dim)).astype(np.float32)
    body = bytes(encode(activations, "fp32", (np.arange(images, dtype="<i4") % 10).tobytes()))
    assert len(body) == activations.nbytes + LABEL_BYTES * images
    return Evaluate(1, number, part, 9, len(body), images, "fp32"), body
