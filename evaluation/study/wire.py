"""What a step weighs: its bodies as the messages and frames that the wire would carry.

``Counted`` adds up lengths; ``Carried`` sends every frame over a real ZeroMQ connection on loopback and asks the kernel
what its TCP carried. Tests hold one to the other.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Protocol

import zmq

from adc_edge.evaluation.codecs.base import Codec, Header
from adc_edge.wire.framing import Assembler, to_frames
from adc_edge.wire.messages import Gradient, Step, unpack_from_device, unpack_from_trainer
from adc_edge.wire.tcp import SocketMeter, frame_bytes

_SESSION = 2**62 + 1  # ids are random 63-bit numbers
_TIMEOUT_MS = 60_000


class Wire(Protocol):
    """Carries bodies up and down; ``bytes_up`` and ``bytes_down`` are what that has cost so far."""

    @property
    def bytes_up(self) -> int:
        """Bytes from device to trainer, framing included."""

    @property
    def bytes_down(self) -> int:
        """Bytes from trainer to device, framing included."""

    def up(self, header: Header, body: memoryview, codec: Codec, step: int) -> memoryview:
        """Carry a step's body to the trainer; returns what arrives."""

    def down(self, body: memoryview, codec: Codec, step: int, loss: float) -> memoryview:
        """Carry a gradient's body to the device; returns what arrives."""


def step_message(header: Header, body: memoryview, codec: Codec, step: int) -> Step:
    """The header that a device sends with a step's body."""
    rows = header.shape[0]
    return Step(
        session=_SESSION,
        step=step,
        micro_batch=0,
        transfer=step + 1,
        body_bytes=len(body),
        images=header.images,
        clusters=rows,
        kept=header.shape[1] if len(header.shape) == 3 else 1,
        triples=header.triples,
        precision=header.precision,
        gradient=codec.gradient_precision,
        durable=step,
    )


def gradient_message(body: memoryview, codec: Codec, step: int, loss: float) -> Gradient:
    """The header that a trainer answers with."""
    return Gradient(
        session=_SESSION,
        step=step,
        micro_batch=0,
        transfer=step + 1,
        body_bytes=len(body),
        precision=codec.gradient_precision,
        loss=loss,
        accuracy=0.5,
        seconds_cloud=0.1,
        down_mbit_s=20.1,
        durable=step,
    )


class Counted:
    """Adds up what the frames of each message weigh, and hands the bodies over as they are."""

    def __init__(self) -> None:
        self.bytes_up = 0
        self.bytes_down = 0

    def up(self, header: Header, body: memoryview, codec: Codec, step: int) -> memoryview:
        """As ``Wire.up``."""
        self.bytes_up += sum(
            frame_bytes(*frames) for frames in to_frames(step_message(header, body, codec, step), body)
        )
        return body

    def down(self, body: memoryview, codec: Codec, step: int, loss: float) -> memoryview:
        """As ``Wire.down``."""
        message = gradient_message(body, codec, step, loss)
        self.bytes_down += sum(frame_bytes(*frames) for frames in to_frames(message, body))
        return body


class Carried:
    """Two ZeroMQ sockets on loopback, framed and put together again as the runtime does; use as a context.

    A thread stands at the trainer's end: the device's own may not wait for itself.
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
        self._exchange(self._device, self._trainer, [(b"", memoryview(b""))], 1)  # the greeting is over
        self._before = self._meter.totals()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let both sockets go."""
        self._meter.close()
        self._trainer.close(0)
        self._device.close(0)
        self._context.term()

    @property
    def bytes_up(self) -> int:
        """As the kernel counted."""
        return self._meter.totals()[0] - self._before[0]

    @property
    def bytes_down(self) -> int:
        """As the kernel counted."""
        return self._meter.totals()[1] - self._before[1]

    def up(self, header: Header, body: memoryview, codec: Codec, step: int) -> memoryview:
        """As ``Wire.up``."""
        message = step_message(header, body, codec, step)
        assembler = Assembler(unpack_from_device, lambda m: getattr(m, "body_bytes", 0))
        return self._carry(self._device, self._trainer, list(to_frames(message, body)), assembler)

    def down(self, body: memoryview, codec: Codec, step: int, loss: float) -> memoryview:
        """As ``Wire.down``."""
        message = gradient_message(body, codec, step, loss)
        assembler = Assembler(unpack_from_trainer, lambda m: getattr(m, "body_bytes", 0))
        return self._carry(self._trainer, self._device, list(to_frames(message, body)), assembler)

    def _carry(
        self,
        source: zmq.Socket[bytes],
        sink: zmq.Socket[bytes],
        frames: list[tuple[bytes, memoryview]],
        assembler: Assembler[Any],
    ) -> memoryview:
        whole: memoryview | None = None
        for frame, piece in self._exchange(source, sink, frames, len(frames)):
            done = assembler.feed(frame, piece)
            whole = None if done is None else done[1]
        assert whole is not None, "the frames make one whole message"
        return whole

    @staticmethod
    def _exchange(
        source: zmq.Socket[bytes], sink: zmq.Socket[bytes], frames: list[tuple[bytes, memoryview]], count: int
    ) -> list[tuple[bytes, bytes]]:
        sender = threading.Thread(target=lambda: [source.send_multipart(pair) for pair in frames])
        sender.start()
        received = [sink.recv_multipart() for _ in range(count)]
        sender.join()
        return [(frame, piece) for frame, piece in received]
