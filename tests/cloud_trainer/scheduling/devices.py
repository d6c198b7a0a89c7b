"""Devices that keep several messages in flight at a real trainer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from adc_edge.storage.bundle import Bundle
from adc_edge.wire.messages import Gradient, Hello
from tests.stub_device import Device


class FleetDevice(Device):
    """A device that knows pauses, and trains from a thread of its own until the end of the block."""

    def hello(self) -> Hello:
        return msgspec.structs.replace(super().hello(), fleet=True)

    @contextmanager
    def training(self, window: int = 1, images: int = 8) -> Iterator[list[Gradient]]:
        """Send step after step, ``window`` micro-batches ahead; yields the answers so far."""
        over, answers = threading.Event(), list[Gradient]()
        self.session.open(30)
        thread = threading.Thread(target=self._train, args=(over, window, images, answers))
        thread.start()
        try:
            yield answers
        finally:
            over.set()
            thread.join(60)
            self.session.close()

    def _train(self, over: threading.Event, window: int, images: int, answers: list[Gradient]) -> None:
        sent = 0
        while not over.is_set() or self.session.in_flight:
            while not over.is_set() and self.session.in_flight < window:
                self.send(*divmod(sent, self.micro_batches), images)
                sent += 1
            if self.session.in_flight:
                answers.append(self.take()[0])


def fleet_device(bundle: Bundle, endpoint: str, session: int, micro_batches: int = 1, clusters: int = 4) -> FleetDevice:
    device = FleetDevice(bundle, endpoint, session, micro_batches=micro_batches)
    device.shape = (clusters, 7, bundle.manifest.dim)
    return device
