"""A device without a trunk: it sends random activations, the same ones for the same step."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from msgspec import UNSET, UnsetType

from adc_edge.codec.precision import encode
from adc_edge.edge_runtime.choosing.link import shortest_ping
from adc_edge.edge_runtime.classes.labels import DeviceClasses
from adc_edge.edge_runtime.session import DeviceSession
from adc_edge.method.labels import label_triples
from adc_edge.storage.bundle import Bundle
from adc_edge.storage.journal import Journal, JournalKey
from adc_edge.wire.connection import ClientKeys, LinkLost
from adc_edge.wire.headers import pack_header
from adc_edge.wire.messages import VERSION, Gradient, Hello, Step

NUMBERS = itertools.count()


class Device:
    """One session; ``step`` does one step and returns the answer."""

    def __init__(
        self,
        bundle: Bundle,
        endpoint: str,
        session: int = 1,
        keys: ClientKeys | None = None,
        micro_batches: int = 1,
        classes: DeviceClasses | None = None,
    ) -> None:
        self.bundle, self.number, self.next_step, self.incarnation = bundle, session, 0, session
        self.micro_batches = micro_batches
        self.journal = Journal(bundle.path.parent / f"journal-{next(NUMBERS)}")
        self.stop = False
        self.shape = (4, 7, bundle.manifest.dim)
        self.session = DeviceSession(
            endpoint,
            self.hello,
            self.journal,
            bundle.manifest.dim,
            keys=keys,
            stop=lambda: self.stop,
            classes=classes,
        )
        self.tells_names: bool | UnsetType = UNSET if classes is None else True

    def hello(self) -> Hello:
        oldest, ours = (
            self.journal.oldest(self.next_step, lambda _: self.micro_batches),
            (self.number, self.incarnation, "test"),
        )
        stands = (self.next_step, 0, oldest)
        return Hello(
            VERSION, self.bundle.digest, *ours, *stands, micro_batches=self.micro_batches, class_names=self.tells_names
        )

    def message(self, step: int, seed: int | None = None, images: int = 8, part: int = 0) -> tuple[Step, bytes]:
        rng = np.random.default_rng([step if seed is None else seed, part])
        assignment = np.arange(images, dtype=np.int64) % self.shape[0]
        triples = label_triples(assignment, rng.integers(0, 10, images), 10)
        body = bytes(encode(rng.standard_normal(self.shape).astype(np.float32), "fp32", triples.tobytes()))
        clusters, kept, _ = self.shape
        return (
            Step(
                self.number,
                step,
                part,
                64 * step + part + 1,
                len(body),
                images,
                clusters,
                kept,
                len(triples),
                "fp32",
                "fp32",
            ),
            body,
        )

    def settle(self) -> None:
        """Wait until the trainer has done what it does after it has answered; anew if the link was cut meanwhile."""
        while True:
            try:
                shortest_ping(self.session.channel, 0, 0)
            except LinkLost:
                self.session.channel.disconnect()
                self.session.open(30)
            else:
                return

    def step(self, step: int, images: int = 8) -> tuple[Gradient, bytes]:
        message, body = self.message(step, images=images)
        self.journal.append(JournalKey(step), pack_header(message), body)
        self.session.submit(message, body)
        answer, gradient = self.session.result(outage_s=60)
        assert isinstance(answer, Gradient)
        self.next_step = step + 1
        return answer, bytes(gradient)

    def send(self, step: int, part: int, images: int = 8) -> None:
        """One micro-batch, whose answer is taken later."""
        message, body = self.message(step, images=images, part=part)
        self.journal.append(JournalKey(step, part), pack_header(message), body)
        self.session.submit(message, body)

    def take(self) -> tuple[Gradient, bytes]:
        """The answer to the oldest micro-batch in flight."""
        answer, gradient = self.session.result(outage_s=60)
        assert isinstance(answer, Gradient)
        self.next_step = answer.step + (answer.micro_batch + 1 == self.micro_batches)
        return answer, bytes(gradient)


@contextmanager
def training_beside(
    bundle: Bundle, endpoint: str, clusters: int = 256, classes: DeviceClasses | None = None
) -> Iterator[list[Gradient]]:
    """A device that trains with large messages until the end of the block. Yields its answers so far."""
    device, over, answers = Device(bundle, endpoint, session=2, classes=classes), threading.Event(), list[Gradient]()
    device.shape = (clusters, 17, bundle.manifest.dim)

    def train() -> None:
        device.session.open(30)
        while not over.is_set():
            answers.append(device.step(len(answers), images=clusters)[0])

    thread = threading.Thread(target=train)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join()
        device.session.close()
