"""The bytes of a step: its bodies as the messages and frames that the wire carries.

``Counted`` adds up their lengths. ``Carried`` sends every frame over a ZeroMQ connection on loopback and reads the
kernel's count of TCP bytes. Tests compare the two.
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
    """Carries bodies up and down, and counts the bytes of their messages."""

    @property
    def bytes_up(self) -> int:
        """Bytes from device to trainer so far, with framing."""

    @property
    def bytes_down(self) -> int:
        """Bytes from trainer to device so far, with framing."""

    def up(self, header: Header, body: memoryview, codec: Codec, step: int) -> memoryview:
        """Carry a step's body to the trainer; return the body that arrives."""

    def down(self, body: memoryview, codec: Codec, step: int, loss: float) -> memoryview:
        """Carry a gradient's body to the device; return the body that arrives."""


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
    """The header that a trainer sends with a gradient's body."""
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
    """Adds up the bytes of each message's frames, and returns the bodies unchanged."""

    def __init__(self) -> None:
        self.bytes_up = 0
        self.bytes_down = 0

    def up(self, header: Header, body: memoryview, codec: Codec, step: int) -> memoryview:
        """See ``Wire.up``."""
        self.bytes_up += sum(
            frame_bytes(*frames) for frames in to_frames(step_message(header, body, codec, step), body)
        )
        return body

    def down(self, body: memoryview, codec: Codec, step: int, loss: float) -> memoryview:
        """See ``Wire.down``."""
        message = gradient_message(body, codec, step, loss)
        self.bytes_down += sum(frame_bytes(*frames) for frames in to_frames(message, body))
        return body


class Carried:
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

    @property
    def bytes_up(self) -> int:
        """Bytes up by the kernel's count."""
        return self._meter.totals()[0] - self._before[0]

    @property
    def bytes_down(self) -> int:
        """Bytes down by the kernel's count."""
        return self._meter.totals()[1] - self._before[1]

    def up(self, header: Header, body: memoryview, codec: Codec, step: int) -> memoryview:
        """See ``Wire.up``."""
        message = step_message(header, body, codec, step)
        assembler = Assembler(unpack_from_device, lambda m: getattr(m, "body_bytes", 0))
        return self._carry(self._device, self._trainer, list(to_frames(message, body)), assembler)

    def down(self, body: memoryview, codec: Codec, step: int, loss: float) -> memoryview:
        """See ``Wire.down``."""
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
        assert whole is not None, "the frames make one complete message"
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
