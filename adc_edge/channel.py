"""The device's channel to its trainer: one request at a time, over as many connections as it takes.

Heartbeats notice a dead peer within seconds; every retry uses a fresh socket (a kept one wakes up to 20 s late and
with duplicates). A request survives reconnects: it is sent again after the session is resumed, and the trainer knows
by (session, step, micro-batch) whether it has answered already.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable

import zmq
from tenacity import (
    RetryCallState,
    RetryError,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    stop_never,
    wait_random_exponential,
)

from adc_edge.endpoint import tune
from adc_edge.errors import LinkError, ProtocolError, RefusedError
from adc_edge.framing import Assembler, Body, cut
from adc_edge.protocol import (
    CHUNK_BYTES,
    Bye,
    ByeAck,
    FromTrainer,
    Gradient,
    Hello,
    Message,
    Pong,
    Refused,
    Welcome,
    unpack_from_trainer,
)
from adc_edge.tcp import KERNEL_COUNTS, SocketMeter, TcpInfo, frame_bytes

CONNECT_MS = 3_000
WELCOME_MS = 60_000  # a trainer that computes another device's step answers late, and its heartbeats go on
_SAY_EVERY_S = 30.0
_UNREADABLE = 3  # answers in a row after which the two sides do not speak one language
_TICK_MS = 100  # how soon a signal or a dead link is noticed while waiting

Answer = tuple[FromTrainer, memoryview]


class LinkLost(Exception):
    """The connection ended; a fresh one may work. Never leaves this module's users without a retry."""


class Stopped(Exception):
    """The caller asked to stop while the channel was waiting."""


class DeviceChannel:
    """One device's way to its trainer.

    Args:
        endpoint: ``tcp://HOST:PORT``.
        hello: makes the Hello of the current state; None for a sessionless use (``adc-edge link``).
        notify: told in words when the link is lost, tried again, and back.
        stop: asked while waiting; True raises Stopped.
        gradient_bytes: exact body size that a Gradient must have; asked before allocating.
    """

    def __init__(
        self,
        endpoint: str,
        hello: Callable[[], Hello] | None = None,
        *,
        notify: Callable[[str], None] = lambda text: None,
        stop: Callable[[], bool] = lambda: False,
        gradient_bytes: Callable[[Gradient], int] = lambda gradient: 0,
    ) -> None:
        self.endpoint = endpoint
        self._hello, self._notify, self._stop, self._gradient_bytes = hello, notify, stop, gradient_bytes
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._meter: SocketMeter | None = None
        self._inbox: Assembler[FromTrainer] | None = None
        self._past = self._framed = (0, 0)
        self._pending: tuple[Message, Body] | None = None
        self._unreadable = 0
        self.outages = 0

    def open(self, wait_s: float | None) -> None:
        """Connect and say hello, trying for ``wait_s`` seconds (None: for ever).

        Raises:
            LinkError: the trainer did not answer in time.
            RefusedError: it answered no.
            Stopped: ``stop`` said so.
        """
        start, said = time.monotonic(), -math.inf

        def say_now_and_then(_: RetryCallState) -> None:
            nonlocal said
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                self._notify(f"waiting for the trainer at {self.endpoint}")

        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(LinkLost),
                wait=wait_random_exponential(multiplier=0.2, max=5),
                stop=stop_never if wait_s is None else stop_after_delay(wait_s),
                sleep=self._sleep,
                before_sleep=say_now_and_then,
            ):
                with attempt:
                    self._connect()
        except RetryError as error:
            cause = error.last_attempt.exception()
            raise LinkError(
                f"no trainer at {self.endpoint} after {time.monotonic() - start:.0f} s ({cause})",
                "a running `adc-edge trainer` bound to that address",
                "check the address and the firewall, or let it keep trying with --wait inf",
            ) from None

    def submit(self, message: Message, body: Body = b"") -> None:
        """Start a request; the bytes travel while the caller goes on. Its answer comes from ``result``."""
        assert self._pending is None, "one request at a time"
        self._pending = (message, body)
        try:
            self.send(message, body)
        except LinkLost:
            self._disconnect()  # `result` resumes

    def result(self, outage_s: float | None = None) -> Answer:
        """The answer to the submitted request, reconnecting and sending again as often as needed.

        Args:
            outage_s: give up after this long without the trainer; None: never.

        Raises:
            LinkError: after ``outage_s``.
            RefusedError: the trainer refused the request.
            ProtocolError: answers that cannot be read, three in a row.
            Stopped: ``stop`` said so.
        """
        assert self._pending is not None
        message, body = self._pending
        try:
            while True:
                try:
                    return self.receive()
                except LinkLost as lost:
                    self._resume(lost, outage_s, message, body)
        finally:
            self._pending = None

    def _resume(self, lost: LinkLost, outage_s: float | None, message: Message, body: Body) -> None:
        self._notify(f"link lost ({lost}); waiting for the trainer at {self.endpoint}")
        self.outages += 1
        self._disconnect()
        self.open(outage_s)
        self._notify("the trainer is back")
        with contextlib.suppress(LinkLost):  # then `receive` finds it lost again
            self.send(message, body)

    def send(self, message: Message, body: Body = b"") -> None:
        """Send without expecting to resume (``adc-edge link``); raises LinkLost."""
        if self._socket is None:
            raise LinkLost("not connected")
        for header, piece in cut(message, body):
            self._writable()
            self._socket.send_multipart([header, piece])
            self._framed = (self._framed[0] + frame_bytes(header, piece), self._framed[1])

    def receive(self, timeout_ms: float | None = None) -> Answer:
        """The next whole message; raises LinkLost, RefusedError, Stopped, or LinkLost after ``timeout_ms``."""
        deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1e3
        while True:
            frames = self._frames(deadline)
            assert self._inbox is not None
            try:
                answer = self._inbox.feed(frames[0], frames[1]) if len(frames) == 2 else None
            except ProtocolError as error:
                self._unreadable += 1
                if self._unreadable >= _UNREADABLE:
                    raise
                raise LinkLost(f"unreadable answer: {error.received}") from error
            if answer is None:
                continue
            if not isinstance(answer[0], Welcome):
                self._unreadable = 0
            if isinstance(answer[0], Refused):
                refused = answer[0]
                if refused.code == "unknown-device":  # a trainer that was restarted: say hello again
                    raise LinkLost("the trainer was restarted")
                raise RefusedError(refused.code, refused.received, refused.expected, refused.remedy)
            return answer

    def totals(self) -> tuple[int, int]:
        """Bytes sent and received on all connections so far: as the kernel counts them, or else as frames add up."""
        if not KERNEL_COUNTS:
            return self._framed
        up, down = self._meter.totals() if self._meter else (0, 0)
        return self._past[0] + up, self._past[1] + down

    def tcp(self) -> TcpInfo | None:
        """The live connection as the kernel sees it."""
        return self._meter.now() if self._meter else None

    def farewell(self, session: int) -> None:
        """Tell the trainer that the session is over, and wait briefly until it knows."""
        try:
            self.send(Bye(session))
            deadline = time.monotonic() + CONNECT_MS / 1e3
            while not isinstance(self.receive((deadline - time.monotonic()) * 1e3)[0], ByeAck):
                pass
        except (LinkLost, RefusedError, Stopped):
            self._notify("the trainer did not acknowledge the goodbye")

    def close(self) -> None:
        """Close every socket at once."""
        self._disconnect()
        self._context.term()

    def _connect(self) -> None:
        self._disconnect()
        self._socket = self._context.socket(zmq.DEALER)
        tune(self._socket, self.endpoint)
        self._socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_MS)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)  # a fresh socket per retry instead
        self._socket.setsockopt(zmq.SNDHWM, 0)  # one request in flight bounds the queue
        self._meter = SocketMeter(self._socket)
        self._inbox = Assembler(unpack_from_trainer, self._body_bytes)
        try:
            self._socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            raise LinkLost(error.strerror) from None
        if self._hello is None:
            self._writable()
            return
        self.send(self._hello())
        answer, _ = self.receive(WELCOME_MS)
        if not isinstance(answer, Welcome):
            raise LinkLost(f"a {type(answer).__name__} instead of a Welcome")

    def _body_bytes(self, message: FromTrainer) -> int:
        if isinstance(message, Gradient):
            expected = self._gradient_bytes(message)
            if message.body_bytes != expected:
                raise ProtocolError(
                    f"a gradient of {message.body_bytes} bytes", f"{expected} bytes", "use one version", "size"
                )
            return expected
        return min(message.body_bytes, CHUNK_BYTES) if isinstance(message, Pong) else 0

    def _writable(self) -> None:
        assert self._socket is not None
        deadline = time.monotonic() + CONNECT_MS / 1e3
        while not self._socket.poll(_TICK_MS, zmq.POLLOUT):
            self._watch()
            if time.monotonic() > deadline:
                raise LinkLost("connection refused or no route")

    def _frames(self, deadline: float | None) -> list[bytes]:
        if self._socket is None:
            raise LinkLost("not connected")
        while not self._socket.poll(_TICK_MS, zmq.POLLIN):
            self._watch()
            if deadline is not None and time.monotonic() > deadline:
                raise LinkLost("no answer in time")
        frames = self._socket.recv_multipart()
        self._framed = (self._framed[0], self._framed[1] + frame_bytes(*frames))
        return frames

    def _watch(self) -> None:
        if self._stop():
            raise Stopped
        assert self._meter is not None
        self._meter.poll()
        if self._meter.failure or self._meter.lost:
            raise LinkLost(self._meter.failure or "connection closed")

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._stop():
                raise Stopped
            time.sleep(min(left, _TICK_MS / 1e3))

    def _disconnect(self) -> None:
        if self._socket is None:
            return
        assert self._meter is not None
        self._meter.close()
        up, down = self._meter.totals()
        self._past = (self._past[0] + up, self._past[1] + down)
        self._socket.close(0)
        self._socket = self._meter = self._inbox = None
