"""A channel to a trainer that outlives its connections: back-off, messages, byte counts. It knows no session."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import NamedTuple

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
from adc_edge.errors import ProtocolError, RefusedError
from adc_edge.wire.addresses import CONNECT_S, Address, resolve
from adc_edge.wire.connection import (
    ClientKeys,
    Connection,
    LinkLost,
    NotATrainer,
    Stopped,
    TrainerBusy,
    not_reached,
)
from adc_edge.wire.fleet_messages import Paused
from adc_edge.wire.framing import Assembler, to_frames
from adc_edge.wire.headers import check_foreign_refusal, unpack_from_trainer
from adc_edge.wire.link_messages import BulkAnswer, Pong
from adc_edge.wire.message import CHUNK_BYTES, Message
from adc_edge.wire.messages import FromTrainer, Moved, Refused, Welcome
from adc_edge.wire.route import Elsewhere, Route
from adc_edge.wire.tcp import KERNEL_COUNTS, TcpInfo

_LOG_EVERY_S = 30.0
_UNREADABLE = 3  # unreadable answers in a row after which the two sides are taken to speak different protocols
_TRY_AGAIN = {"unknown-device", "corrupt", "busy"}  # refusals that a new connection may resolve

Answer = tuple[FromTrainer, memoryview]

logger = logging.getLogger(__name__)


def padding_bytes(message: FromTrainer) -> int:
    """Body size of an answer outside a session: only those that measure the link may have a body."""
    if isinstance(message, BulkAnswer):
        return message.body_bytes
    return min(message.body_bytes, CHUNK_BYTES) if isinstance(message, Pong) else 0


def tell_pause(paused: bool) -> None:
    """Log that a person has paused this device at its trainer, or has it go on."""
    text = "the trainer has paused this device: its messages wait" if paused else "the trainer has this device go on"
    logger.log(logging.WARNING if paused else logging.INFO, text)


class Attempt(NamedTuple):
    """An attempt to reach the trainer."""

    since: float  # monotonic clock, when the first one of this outage began
    number: int
    why: str  # the one before failed; nothing: it is the first


class Channel:
    """A channel to a trainer that outlives its connections.

    Args:
        endpoint: ``tcp://HOST:PORT``. A trainer of several ranks may tell another one for a session.
        keys: keys for an encrypted connection.
        stop: asked while waiting; True raises Stopped.
        loopback_alone: connect to no other address, whatever the name resolves to: there are no keys.
        body_bytes: body size that an answer must have, or ProtocolError; asked before the body is allocated.
        on_try: told how many tries to connect have failed, before each pause, and 0 once the trainer answers.
        look_up: returns the numeric addresses of a host, or raises NameUnknown.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        keys: ClientKeys | None = None,
        stop: Callable[[], bool] = lambda: False,
        loopback_alone: bool = False,
        body_bytes: Callable[[FromTrainer], int] = padding_bytes,
        on_try: Callable[[int], None] = lambda failed: None,
        look_up: Callable[[Address], list[Address]] = resolve,
    ) -> None:
        self.route = Route(endpoint, loopback_alone, look_up)
        self._keys, self._stop, self._on_try = keys, stop, on_try
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._connection: Connection | None = None
        self.inbox = Assembler(unpack_from_trainer, body_bytes, check_foreign_refusal)
        self.attempt: Attempt | None = None  # that is under way
        self._past = self._past_framed = (0, 0)
        self._unreadable = 0

    def open(self, wait_s: float | None, open_session: Callable[[], None] | None = None) -> None:
        """Connect, trying for ``wait_s`` seconds (None: for ever).

        Args:
            wait_s: how long to try.
            open_session: called on each new connection; it may raise LinkLost to try again. None: wait until the
                connection can send.

        Raises:
            LinkError: the trainer did not answer in time.
            RefusedError: the trainer refused.
            Stopped: ``stop`` returned True.
        """
        start, told = time.monotonic(), dict[str, float]()
        self.attempt = Attempt(start, 1, "")

        def tell(state: RetryCallState) -> None:
            self._on_try(state.attempt_number)
            why = str(state.outcome.exception()) if state.outcome else ""
            self.attempt = Attempt(start, state.attempt_number + 1, why)
            if time.monotonic() - told.get(why, -math.inf) > _LOG_EVERY_S:
                told[why] = time.monotonic()
                logger.info("waiting for the trainer at %s (%s)", self.endpoint, why)

        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(LinkLost),
                wait=wait_random_exponential(multiplier=0.2, max=5),
                stop=stop_never if wait_s is None else stop_after_delay(wait_s),
                sleep=self.pause,
                before_sleep=tell,
            ):
                with attempt:
                    self.connect(open_session)
                    self._on_try(0)
        except RetryError as error:
            waited_s = time.monotonic() - start
            raise not_reached(self.endpoint, error.last_attempt.exception(), waited_s) from None
        finally:
            self.attempt = None

    def connect(self, open_session: Callable[[], None] | None = None, connect_s: float = CONNECT_S) -> None:
        """Try the addresses of the host once, in turn, and where the trainer moves this device, those of that host.

        Args:
            open_session: see ``open``.
            connect_s: how long to wait for the TCP connection to each address.

        Raises:
            LinkLost: no address answers as a trainer; its remedy tells what to do if that is known.
            LinkError: something else has answered several times in a row.
            ProtocolError: the trainer moves this device to an address that it must not use.
            RefusedError, Stopped: see ``open``.
        """
        while True:
            try:
                self._try_addresses(open_session, connect_s)
                self.route.reached()
                return
            except Elsewhere:
                continue
            except LinkLost as lost:
                self.route.failed(lost)
                raise
            except RefusedError as error:
                self.route.refused(error)

    def _try_addresses(self, open_session: Callable[[], None] | None, connect_s: float) -> None:
        reasons: list[LinkLost] = []
        for address in self.route.targets():
            self.disconnect()
            self._connection = connection = Connection(
                self._context, address.endpoint, self._keys, self._stop, connect_s
            )
            try:
                (open_session or connection.writable)()
                return
            except LinkLost as lost:
                if isinstance(lost, Elsewhere) or (connection.meter.handshaken and not isinstance(lost, NotATrainer)):
                    raise
                reasons.append(lost)
        text = "; ".join(dict.fromkeys(map(str, reasons)))
        self.route.give_up_on_others(all(isinstance(lost, NotATrainer) for lost in reasons), text)
        raise LinkLost(text, next((lost.remedy for lost in reasons if lost.remedy), ""))

    def send(self, message: Message, body: Body = b"") -> None:
        """Send a message from its ``offset`` on; raises LinkLost, Stopped."""
        for header, piece in to_frames(message, body):
            self.send_piece(header, piece)

    def send_piece(self, header: bytes, piece: bytes | memoryview) -> None:
        """Send the two frames of one piece of a message; raises LinkLost, Stopped."""
        self._live().send(header, piece)

    def receive(self, timeout_ms: float | None = None) -> Answer:
        """The next complete message; raises RefusedError, Stopped, and LinkLost, also after ``timeout_ms``."""
        deadline = None if timeout_ms is None else time.monotonic() + timeout_ms / 1e3
        while True:
            frames = self._live().receive(deadline)
            try:
                answer = self.inbox.feed(bytes(frames[0]), frames[1]) if len(frames) == 2 else None
            except ProtocolError as error:
                self._unreadable += error.code != "corrupt"
                if self._unreadable >= _UNREADABLE:
                    raise
                raise LinkLost(f"unreadable answer: {error.received}") from error
            if answer is None:
                continue
            if not isinstance(answer[0], Welcome):
                self._unreadable = 0
            if isinstance(answer[0], Paused):
                tell_pause(answer[0].paused)
                continue
            if isinstance(answer[0], Moved):
                self.route.move(answer[0].endpoint)
                raise Elsewhere(f"moved to {answer[0].endpoint}")
            if isinstance(answer[0], Refused):
                refused = answer[0]
                if refused.code in _TRY_AGAIN:
                    raise (TrainerBusy if refused.code == "busy" else LinkLost)(f"{refused.code}: {refused.received}")
                raise RefusedError(refused.code, refused.received, refused.expected, refused.remedy)
            return answer

    def arrived(self, wait_ms: int) -> bool:
        """Return whether something can be received, after ``wait_ms`` at most; raises LinkLost, Stopped."""
        return self._live().arrived(wait_ms)

    @property
    def endpoint(self) -> str:
        """The address that is used now, or tried next."""
        return self.route.endpoint

    def totals(self) -> tuple[int, int]:
        """Bytes sent and received on all connections so far: by the kernel's count, or else the sum of the frames."""
        if not KERNEL_COUNTS:
            return self.framed()
        return self._past if self._connection is None else _sum(self._past, self._connection.meter.totals())

    def framed(self) -> tuple[int, int]:
        """Bytes of the frames sent and received on all connections so far."""
        return self._past_framed if self._connection is None else _sum(self._past_framed, self._connection.framed)

    def tcp(self) -> TcpInfo | None:
        """The kernel's figures for the live connection; None if there are none."""
        return self._connection.meter.now() if self._connection else None

    @property
    def congestion(self) -> str | None:
        """Congestion control of the live connection; None where the system does not tell."""
        return self._connection.meter.congestion if self._connection else None

    def pause(self, seconds: float) -> None:
        """Wait; raises Stopped as soon as ``stop`` returns True."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._stop():
                raise Stopped
            time.sleep(min(left, 0.1))

    def disconnect(self) -> None:
        """Drop the connection; ``open`` makes a new one."""
        if self._connection is None:
            return
        connection, self._connection = self._connection, None
        connection.close()
        self._past = _sum(self._past, connection.meter.totals())
        self._past_framed = _sum(self._past_framed, connection.framed)

    def leave_bbr(self) -> None:
        """Send by Reno on the live connection, which carries nothing but a few small messages."""
        self._live().meter.leave_bbr()

    def abort(self) -> None:
        """Close every socket, and let the kernel discard what it has not sent."""
        if self._connection is not None:
            self._connection.meter.discard_unsent()
        self.close()

    def close(self) -> None:
        """Close every socket at once."""
        self.disconnect()
        self._context.term()

    def _live(self) -> Connection:
        if self._connection is None:
            raise LinkLost("not connected")
        return self._connection


def _sum(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]
