"""A channel to a trainer that outlives its connections: back-off, messages, byte counts. Knows no session."""

from __future__ import annotations

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

from adc_edge.arrays import Body
from adc_edge.errors import LinkError, ProtocolError, RefusedError
from adc_edge.wire.connection import ClientKeys, Connection, LinkLost, Stopped
from adc_edge.wire.framing import Assembler, to_frames
from adc_edge.wire.messages import (
    CHUNK_BYTES,
    FromTrainer,
    Message,
    Pong,
    Refused,
    Welcome,
    check_foreign_refusal,
    unpack_from_trainer,
)
from adc_edge.wire.tcp import KERNEL_COUNTS, TcpInfo

_SAY_EVERY_S = 30.0
_UNREADABLE = 3  # answers in a row after which the two sides do not speak one language
_TRY_AGAIN = {"unknown-device", "corrupt", "busy"}  # refusals that a fresh connection may mend

Answer = tuple[FromTrainer, memoryview]


class Channel:
    """A way to a trainer that outlives its connections.

    Args:
        endpoint: ``tcp://HOST:PORT``.
        keys: for an encrypted connection.
        notify: told in words when the link is lost, tried again, and back.
        stop: asked while waiting; True raises Stopped.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        keys: ClientKeys | None = None,
        notify: Callable[[str], None] = lambda text: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.endpoint = endpoint
        self._keys, self._notify, self._stop = keys, notify, stop
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._connection: Connection | None = None
        self._inbox = Assembler(unpack_from_trainer, self._body_bytes, check_foreign_refusal)
        self._past = self._framed = (0, 0)
        self._unreadable = 0

    def open(self, wait_s: float | None) -> None:
        """Connect and greet, trying for ``wait_s`` seconds (None: for ever).

        Raises:
            LinkError: the trainer did not answer in time.
            RefusedError: it answered no.
            Stopped: ``stop`` said so.
        """
        start, said = time.monotonic(), -math.inf

        def say_now_and_then(state: RetryCallState) -> None:
            nonlocal said
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                why = state.outcome.exception() if state.outcome else ""
                self._notify(f"waiting for the trainer at {self.endpoint} ({why})")

        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(LinkLost),
                wait=wait_random_exponential(multiplier=0.2, max=5),
                stop=stop_never if wait_s is None else stop_after_delay(wait_s),
                sleep=self._sleep,
                before_sleep=say_now_and_then,
            ):
                with attempt:
                    self._disconnect()
                    self._connection = Connection(self._context, self.endpoint, self._keys, self._stop)
                    self._greet()
        except RetryError as error:
            cause = error.last_attempt.exception()
            raise LinkError(
                f"no trainer at {self.endpoint} after {time.monotonic() - start:.0f} s ({cause})",
                "a running `adc-edge trainer` bound to that address",
                "check address, firewall and keys, or let it keep trying with --wait inf",
            ) from None

    def send(self, message: Message, body: Body = b"") -> None:
        """Send a message from its ``offset`` on; raises LinkLost, Stopped."""
        for header, piece in to_frames(message, body):
            self._live().send(header, piece)

    def receive(self, timeout_ms: float | None = None) -> Answer:
        """The next whole message; raises LinkLost, RefusedError, Stopped, or LinkLost after ``timeout_ms``."""
        deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1e3
        while True:
            frames = self._live().receive(deadline)
            try:
                answer = self._inbox.feed(bytes(frames[0]), frames[1]) if len(frames) == 2 else None
            except ProtocolError as error:
                self._unreadable += error.code != "corrupt"
                if self._unreadable >= _UNREADABLE:
                    raise
                raise LinkLost(f"unreadable answer: {error.received}") from error
            if answer is None:
                continue
            if not isinstance(answer[0], Welcome):
                self._unreadable = 0
            if isinstance(answer[0], Refused):
                refused = answer[0]
                if refused.code in _TRY_AGAIN:
                    raise LinkLost(f"{refused.code}: {refused.received}")
                raise RefusedError(refused.code, refused.received, refused.expected, refused.remedy)
            return answer

    def totals(self) -> tuple[int, int]:
        """Bytes sent and received on all connections so far: as the kernel counts them, or else as frames add up."""
        live = self._connection
        if not KERNEL_COUNTS:
            up, down = live.framed if live else (0, 0)
            return self._framed[0] + up, self._framed[1] + down
        up, down = live.totals() if live else (0, 0)
        return self._past[0] + up, self._past[1] + down

    def tcp(self) -> TcpInfo | None:
        """The live connection as the kernel sees it."""
        return self._connection.tcp() if self._connection else None

    @property
    def congestion(self) -> str | None:
        """Congestion control of the live connection; None where the system does not tell."""
        return self._connection.congestion if self._connection else None

    def close(self) -> None:
        """Close every socket at once."""
        self._disconnect()
        self._context.term()

    def _greet(self) -> None:
        """What a fresh connection begins with; raises LinkLost to try again."""
        self._live().writable()

    def _body_bytes(self, message: FromTrainer) -> int:
        """Size of a message's body, checked before it is allocated."""
        return min(message.body_bytes, CHUNK_BYTES) if isinstance(message, Pong) else 0

    def _live(self) -> Connection:
        if self._connection is None:
            raise LinkLost("not connected")
        return self._connection

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._stop():
                raise Stopped
            time.sleep(min(left, 0.1))

    def _disconnect(self) -> None:
        if self._connection is None:
            return
        connection, self._connection = self._connection, None
        connection.close()
        self._past = _sum(self._past, connection.totals())
        self._framed = _sum(self._framed, connection.framed)


def _sum(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]
