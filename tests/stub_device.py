"""A device's end of the wire without a trunk: it sends random activations, the same for the same step."""

from __future__ import annotations

import itertools

import numpy as np

from adc_edge.bundle import Bundle
from adc_edge.connection import ClientKeys
from adc_edge.device_channel import DeviceChannel
from adc_edge.journal import Journal, Key
from adc_edge.labels import label_triples
from adc_edge.precision import encode, encoded_bytes
from adc_edge.protocol import VERSION, Gradient, Hello, Step, pack

NUMBERS = itertools.count()


class Device:
    """One session; ``step`` does one step and returns the answer."""

    def __init__(self, bundle: Bundle, endpoint: str, session: int = 1, keys: ClientKeys | None = None) -> None:
        self.bundle, self.session, self.next_step, self.life = bundle, session, 0, session
        self.journal = Journal(bundle.path.parent / f"journal-{next(NUMBERS)}")
        self.notes: list[str] = []
        self.stop = False
        self.shape = (4, 7, bundle.manifest.dim)
        self.channel = DeviceChannel(
            endpoint,
            self.hello,
            self.journal,
            keys=keys,
            notify=self.notes.append,
            stop=lambda: self.stop,
            gradient_bytes=lambda g: encoded_bytes(self.shape, g.precision),
        )

    def hello(self) -> Hello:
        oldest = self.journal.oldest(self.next_step)
        return Hello(VERSION, self.bundle.digest, self.session, self.life, "test", self.next_step, 0, oldest)

    def message(self, step: int, seed: int | None = None, images: int = 8) -> tuple[Step, bytes]:
        rng = np.random.default_rng(step if seed is None else seed)
        assignment = np.arange(images, dtype=np.int64) % self.shape[0]
        triples = label_triples(assignment, rng.integers(0, 10, images), 10)
        body = encode(rng.standard_normal(self.shape).astype(np.float32), "fp32") + triples.tobytes()
        clusters, kept, _ = self.shape
        return (
            Step(self.session, step, 0, 1, step + 1, len(body), images, clusters, kept, len(triples), "fp32", True),
            body,
        )

    def step(self, step: int, images: int = 8) -> tuple[Gradient, bytes]:
        message, body = self.message(step, images=images)
        self.journal.append(Key(step), pack(message), body)
        self.channel.submit(message, body)
        answer, gradient = self.channel.result(outage_s=60)
        assert isinstance(answer, Gradient)
        self.next_step = step + 1
        return answer, bytes(gradient)
