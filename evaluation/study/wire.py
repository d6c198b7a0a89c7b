"""The bytes of a step and of a fleet's rounds: bodies as the messages and frames that the wire carries.

``Counted`` adds up their lengths. ``Carried`` sends every frame over a ZeroMQ connection on loopback and reads the
kernel's count of TCP bytes. Tests compare the two.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import zmq

from adc_edge.codec.precision import Precision
from adc_edge.defaults import FleetPrecision
from adc_edge.evaluation.codecs.base import Header
from adc_edge.evaluation.fleet.rounds import TrunkAnswer
from adc_edge.wire.fleet_messages import TrunkAverage, TrunkDelta
from adc_edge.wire.framing import Assembler, to_frames
from adc_edge.wire.headers import unpack_from_device, unpack_from_trainer
from adc_edge.wire.messages import Gradient, Step
from adc_edge.wire.tcp import SocketMeter, frame_bytes

Carryable = Step | Gradient | TrunkDelta | TrunkAverage
UPWARD = (Step, TrunkDelta)
_SESSION = 2**62 + 1  # ids are random 63-bit numbers
_TIMEOUT_MS = 60_000


class Wire:
    """Carries bodies up and down in the runtime's messages, and counts the bytes of their frames."""

    @property
    def bytes_up(self) -> int:
        """Bytes from device to trainer so far, with framing."""
        return self.totals()[0]

    @property
    def bytes_down(self) -> int:
        """Bytes from trainer to device so far, with framing."""
        return self.totals()[1]

    def totals(self) -> tuple[int, int]:
        """Bytes up and down so far, with framing."""
        raise NotImplementedError

    def up(self, header: Header, body: memoryview, gradient: Precision | None, step: int) -> memoryview:
        """Carry a step's body to the trainer; return the body that arrives.

        Args:
            header: describes the body.
            body: activations and labels.
            gradient: precision of the answer; None: the trunk is frozen and needs no gradient.
            step: of the device.
        """
        message = Step(
            **_place(step, body),
            micro_batch=0,
            durable=step,
            images=header.images,
            clusters=header.shape[0],
            kept=header.shape[1] if len(header.shape) == 3 else 1,
            triples=header.triples,
            precision=header.precision,
            gradient=gradient,
        )
        return self._carry(message, body)

    def down(self, body: memoryview, precision: Precision, step: int, loss: float) -> memoryview:
        """Carry a gradient's body to the device; return the body that arrives."""
        message = Gradient(
            **_place(step, body),
            micro_batch=0,
            durable=step,
            precision=precision,
            loss=loss,
            accuracy=0.5,
            seconds_cloud=0.1,
            seconds_codec=0.1,
            down_mbit_s=20.1,
            down_app_limited=True,
        )
        return self._carry(message, body)

    def change_up(
        self, body: bytes, precision: FleetPrecision, step: int, base: int, images: int, last: bool = False
    ) -> memoryview:
        """Carry the change of a device's trunk to the trainer; return the body that arrives.

        Args:
            body: the encoded change; nothing: the device asks for the newest trunk.
            precision: of the change.
            step: of the device.
            base: round that its trunk was the fleet's in.
            images: that it has trained on since its trunk was the fleet's.
            last: whether it has come to its last step.
        """
        view = memoryview(body)
        change = TrunkDelta(**_place(step, view), base=base, images=images, precision=precision, last=last)
        return self._carry(change, view)

    def average_down(self, answer: TrunkAnswer, precision: FleetPrecision, step: int) -> memoryview:
        """Carry what brings a device's trunk to the newest one; return the body that arrives."""
        view = memoryview(answer.body)
        told = TrunkAverage(
            **_place(step, view), base=answer.base, round=answer.round, whole=answer.whole, precision=precision
        )
        return self._carry(told, view)

    def _carry(self, message: Carryable, body: memoryview) -> memoryview:
        raise NotImplementedError


def _place(step: int, body: memoryview) -> dict[str, Any]:
    """The fields that all messages share."""
    return {"session": _SESSION, "step": step, "transfer": step + 1, "body_bytes": len(body)}


class Counted(Wire):
    """Adds up the bytes of each message's frames, from those already sent on, and returns the bodies unchanged."""

    def __init__(self, bytes_up: int = 0, bytes_down: int = 0) -> None:
        self._up, self._down = bytes_up, bytes_down

    def totals(self) -> tuple[int, int]:
        """The sums of the lengths so far."""
        return self._up, self._down

    def _carry(self, message: Carryable, body: memoryview) -> memoryview:
        size = sum(frame_bytes(*frames) for frames in to_frames(message, body))
        if isinstance(message, UPWARD):
            self._up += size
        else:
            self._down += size
        return body


class Carried(Wire):
    """Sends messages between two ZeroMQ sockets on loopback, with the runtime's framing; a context manager.

    A thread sends while the caller's receives: one thread would wait for itself.
    """

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._trainer = self._context.socket(zmq.PAIR)
        self._device = self._context.socket(zmq.PAIR)
        for socket in (self._trainer, self._device):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVTIMEO, _TIMEOUT_MS)
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
        self._meter = SocketMeter(self._device)

    def __enter__(self) -> Carried:
        """Connect."""
        port = self._trainer.bind_to_random_port("tcp://127.0.0.1")
        self._device.connect(f"tcp://127.0.0.1:{port}")
        self._exchange(self._device, self._trainer, [(b"", memoryview(b""))], 1)  # ZeroMQ's handshake is over
        self._before = self._meter.totals()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close both sockets."""
        self._meter.close()
        self._trainer.close(0)
        self._device.close(0)
        self._context.term()

    def totals(self) -> tuple[int, int]:
        """Bytes up and down by the kernel's count."""
        up, down = self._meter.totals()
        return up - self._before[0], down - self._before[1]

    def _carry(self, message: Carryable, body: memoryview) -> memoryview:
        rises = isinstance(message, UPWARD)
        ends = (self._device, self._trainer) if rises else (self._trainer, self._device)
        unpack: Callable[[bytes], Any] = unpack_from_device if rises else unpack_from_trainer
        assembler = Assembler(unpack, lambda m: getattr(m, "body_bytes", 0))
        frames = list(to_frames(message, body))
        done = [assembler.feed(*pair) for pair in self._exchange(*ends, frames, len(frames))][-1]
        assert done is not None, "the frames make one complete message"
        return done[1]

    @staticmethod
    def _exchange(
        source: zmq.Socket[bytes], sink: zmq.Socket[bytes], frames: list[tuple[bytes, memoryview]], count: int
    ) -> list[tuple[bytes, bytes]]:
        sender = threading.Thread(target=lambda: [source.send_multipart(pair) for pair in frames])
        sender.start()
        received = [sink.recv_multipart() for _ in range(count)]
        sender.join()
        return [(frame, piece) for frame, piece in received]
